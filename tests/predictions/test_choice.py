"""Rules and parameters that the program chooses, or reads from files."""

import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from jacfuse_jax import fusion, linalg, selection
from jacfuse_jax.predictions import labelled
from tests.data_pipelines.real_arrays import LOGITS, needs_real_arrays, read_npz
from tests.predictions.runs import (
    AUDIO,
    KERNEL,
    LABELS,
    NUM_CLASSES,
    NUM_ROWS,
    VIDEO,
    error_of,
    fuse,
    write_inputs,
)

IDS = np.arange(NUM_ROWS) + 100
NUM_VALIDATION = 200


@pytest.fixture
def files(tmp_path):
    return write_inputs(tmp_path)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "fused.npz"


def metadata_of(output):
    with np.load(output) as file:
        return json.loads(str(file["jacfuse_jax"]))


@pytest.fixture
def validation(tmp_path):
    """Rows of ten people, and flags that name them."""
    rng = np.random.default_rng(1)
    labels = rng.integers(NUM_CLASSES, size=NUM_VALIDATION)
    people = np.array([f"p{i}" for i in rng.integers(10, size=NUM_VALIDATION)])
    logits = {
        name: (
            rng.normal(size=(NUM_VALIDATION, NUM_CLASSES)) + strength * np.eye(NUM_CLASSES)[labels]
        ).astype(np.float32)
        for name, strength in (("audio", 3), ("video", 2))
    }
    for name, z in logits.items():
        np.savez(tmp_path / f"clean_{name}.npz", logits=z, labels=labels, person=people)
    flags = [f"--validation={name}={tmp_path}/clean_{name}.npz" for name in logits]
    return (logits, labels, people), [*flags, "--groups_column=person"]


def by_hand(data, share, against, rules=None):
    """The choice, of the library's functions, on rows in the order in which they are drawn."""
    logits, labels, people = data
    order = np.random.default_rng(0).permutation(NUM_VALIDATION)
    groups = pd.factorize(people)[0][order]  # numbered as they come
    suspects = selection.Suspects.of("audio")
    prior = np.full(NUM_CLASSES, 1 / NUM_CLASSES)
    arguments = ({m: z[order] for m, z in logits.items()}, labels[order], prior, suspects)
    grams = {"audio": linalg.spectrum_from_kernel(KERNEL - KERNEL.mean(axis=1, keepdims=True))}
    candidates = (
        selection.candidates(*arguments, shares=[share], groups=groups)
        if rules is None
        else [selection.Candidate(rule) for rule in rules]
    )
    found = selection.measure(candidates, *arguments, grams=grams, groups=groups)
    return selection.choose(found, share, against=against, groups=groups)


class TestAuto:
    @pytest.mark.slow
    @pytest.mark.parametrize(("share", "against"), [(0.1, "faults"), (0.3, "anything")])
    def test_any_rule(self, share, against, files, validation, output, capsys):
        data, flags = validation
        arguments = ["--perturbed=audio", "--rule=auto", f"--against={against}"]
        arguments += [] if share == 0.1 else [f"--attack_share={share}"]  # if nothing is said
        fuse(*files, *flags, *arguments, f"--output={output}")
        expected = by_hand(data, share, against)
        metadata = metadata_of(output)
        assert fusion.rule_from_json(metadata["rule"]) == expected.rule
        choice = metadata["choice"]
        assert (choice["share"], choice["against"]) == (share, against)
        assert choice["expected"] == pytest.approx(expected.worth.expected)
        assert choice["low"] == pytest.approx(expected.low)
        assert choice["baselines"]["statistical"]["clean"] == pytest.approx(
            expected.baselines[fusion.Statistical()].clean
        )
        assert metadata["chosen"] == ["rule"]
        assert metadata["chosen_on"] == "validation"
        said = capsys.readouterr().out
        assert f"for {100 * share:g}% of inputs whose perturbed modalities fail" in said
        for worth in (expected.worth, *expected.baselines.values()):
            cells = r" *\| ".join(f"{100 * x:.2f}" for x in worth)
            assert re.search(cells, said), cells
        with np.load(output) as file:
            logits = {"audio": AUDIO, "video": VIDEO}
            fused = fusion.fuse(
                expected.rule,
                logits,
                np.full(NUM_CLASSES, 1 / NUM_CLASSES),
                perturbed="audio",
                grams={"audio": linalg.spectrum_from_kernel(KERNEL - KERNEL.mean(1)[:, None])},
            )
            np.testing.assert_allclose(file["log_probs"], fused, atol=2e-5)
            has_norm = isinstance(expected.rule, fusion.Robust | fusion.ContaminatedRobust)
            assert ("jacobian_norm" in file) == has_norm

    @pytest.mark.slow
    def test_parameters_of_the_rule_that_contaminates_and_recalibrates(
        self, files, validation, output, capsys
    ):
        data, flags = validation
        arguments = ["--perturbed=audio", "--gamma=0.3", "--contamination=auto"]
        fuse(*files, *flags, *arguments, "--attack_share=0.4", f"--output={output}")
        rules = [fusion.ContaminatedRobust(e, 0.3) for e in selection.VALUES["contamination"]]
        expected = by_hand(data, 0.4, "faults", rules)
        found = fusion.rule_from_json(metadata_of(output)["rule"])
        assert found == expected.rule
        assert found.parameters["gamma"] == 0.3
        assert "for comparison: trusted modalities alone" in capsys.readouterr().out

    def test_takes_a_sample_of_rows_that_say_something(
        self, files, tmp_path, output, monkeypatch, capsys
    ):
        bad, excluding = np.random.default_rng(0).permutation(NUM_ROWS)[7:9]
        audio = AUDIO.copy()
        audio[bad, 0], audio[excluding, 0] = np.inf, -np.inf
        np.savez(tmp_path / "audio.npz", logits=audio, ids=IDS, labels=LABELS)
        monkeypatch.setattr(labelled, "MOST_ROWS", 20)
        fuse(*files, "--perturbed=audio", "--contamination=auto", f"--output={output}")
        printed = capsys.readouterr()
        assert "chosen on --input: right only if nothing is perturbed there" in printed.out
        assert (
            "--contamination=auto leaves out, of 40 rows of --input: 20 not among 20 drawn at "
            "random, 1 in which a modality says nothing\n"
        ) in printed.err

    def test_flags_that_would_not_be_used_are_refused(self, files, output):
        for given, message in (
            (["--attack_share=0.2"], "--attack_share would not be used, since nothing is auto"),
            (["--rule=auto", "--gamma=0.2"], "--gamma would not be used with --rule=auto"),
            (["--rule=no.json"], "--rule=no.json is neither auto nor a file"),
            (["--gamma=auto", "--against=anything"], "--against=anything: of rules with a gamma"),
            (["--gamma=auto", "--groups_column=who"], "--groups_column=who is in no --input"),
        ):
            found = error_of(*files, "--perturbed=audio", *given, f"--output={output}")
            assert found.startswith(message)
        found = error_of(*files, "--rule=auto", f"--output={output}")
        assert found.startswith("--rule=auto needs --perturbed")

    def test_groups_must_agree(self, tmp_path, output):
        groups = np.arange(NUM_ROWS) % 4
        for name, z, own in (("audio", AUDIO, groups), ("video", VIDEO, np.roll(groups, 1))):
            np.savez(tmp_path / f"{name}.npz", logits=z, ids=IDS, labels=LABELS, who=own)
        arguments = [f"--input={m}={tmp_path}/{m}.npz" for m in ("audio", "video")]
        arguments += ["--perturbed=audio", "--gamma=auto", "--groups_column=who"]
        found = error_of(*arguments, f"--output={output}")
        assert found.endswith("disagree about 40 of 40 groups, of id 100, 101, 102, ...")


class TestFile:
    def write(self, path, *entries, **content):
        chosen = [
            {
                "suspect": "+".join(perturbed),
                "perturbed": list(perturbed),
                "share": share,
                "against": against,
                "rule": json.loads(rule.to_json()),
                "expected": 0.5,
            }
            for rule, perturbed, share, against in entries
        ]
        path.write_text(json.dumps({"schema": 1, "chosen": chosen, **content}))
        return f"--rule={path}"

    @pytest.fixture
    def rule(self, tmp_path):
        return self.write(
            tmp_path / "chosen.json",
            (fusion.Cascade(0.7), ["audio"], 0.1, "faults"),
            (fusion.Scaled(0.2), ["audio"], 0.5, "faults"),
            (fusion.Cascade(0.4), ["video"], 0.1, "faults"),
        )

    @pytest.mark.parametrize(
        ("flags", "expected"),
        [
            (["--perturbed=audio", "--attack_share=0.1"], fusion.Cascade(0.7)),
            (["--attack_share=0.5"], fusion.Scaled(0.2)),
            (["--perturbed=video"], fusion.Cascade(0.4)),
        ],
    )
    def test_a_chosen_rule(self, flags, expected, rule, files, output, capsys):
        fuse(*files, rule, *flags, f"--output={output}")
        metadata = metadata_of(output)
        assert fusion.rule_from_json(metadata["rule"]) == expected
        perturbed = metadata["perturbed"]
        assert perturbed == (["video"] if "--perturbed=video" in flags else ["audio"])
        with np.load(output) as file:
            fused = fusion.fuse(
                expected,
                {"audio": AUDIO, "video": VIDEO},
                np.full(NUM_CLASSES, 1 / NUM_CLASSES),
                perturbed=tuple(perturbed),
            )
            np.testing.assert_allclose(file["log_probs"], fused, atol=2e-6)
        assert "against faults, 50.00% expected" in capsys.readouterr().out

    def test_a_rule_alone(self, files, tmp_path, output):
        (tmp_path / "rule.json").write_text(fusion.Contaminated(0.3).to_json())
        flag = f"--rule={tmp_path}/rule.json"
        fuse(*files, flag, "--perturbed=video", f"--output={output}")
        assert fusion.rule_from_json(metadata_of(output)["rule"]) == fusion.Contaminated(0.3)
        found = error_of(*files, flag, f"--output={output}")
        assert found.endswith(
            "does not say which modalities are perturbed; name them by --perturbed"
        )

    def test_learned_weights_survive(self, files, tmp_path, output):
        rng = np.random.default_rng(0)
        alone, fused = (tuple(float(x) for x in rng.normal(size=11)) for _ in range(2))
        rule = fusion.LearnedCascade(0.2, alone, fused, ())
        (tmp_path / "rule.json").write_text(rule.to_json())
        fuse(*files, f"--rule={tmp_path}/rule.json", "--perturbed=audio", f"--output={output}")
        assert fusion.rule_from_json(metadata_of(output)["rule"]) == rule

    def test_what_does_not_fit_is_refused(self, rule, files, tmp_path, output):
        def error(*flags):
            return error_of(*files, *flags, f"--output={output}")

        path = tmp_path / "chosen.json"
        assert error(rule).startswith(
            f"--rule={path}: 3 of its rules fit; ask for one of: perturbed="
        )
        assert error(rule, "--attack_share=0.3").startswith(f"--rule={path}: none of its rules fit")
        bad = tmp_path / "bad.json"
        for content, message in (
            ("{", "no JSON"),
            ("[1]", "holds neither `rule` nor `chosen`"),
            ('{"schema": 2, "chosen": []}', "of schema 2, not 1: a newer jacfuse_jax reads it"),
            ('{"schema": 0, "chosen": []}', "of schema 0, not 1: write it again"),
            ('{"schema": 1, "chosen": []}', "`chosen` is no list of perturbed, share"),
            ('{"schema": 1, "chosen": [{"share": 1}]}', "`chosen` is no list of perturbed, share"),
            ('{"schema": 1, "rule": "magic"}', "rule must be one of mean, max"),
            ('{"schema": 1, "rule": "scaled", "scale": 3}', "scale must lie in [0, 1], got 3"),
            ('{"schema": 1, "rule": "scaled", "scale": "x"}', "scale must be made of numbers"),
            (
                fusion.LearnedCascade(0.1, (1.0,), (1.0,), ()).to_json(),
                "alone must have 11 weights for 5 classes, got 1",
            ),
            (
                fusion.LearnedCascade(0.1, (1.0,), (1.0,), ()).to_json().replace("1.0", '"x"'),
                "must be made of numbers, got",
            ),
        ):
            bad.write_text(content)
            found = error(f"--rule={bad}", "--perturbed=audio")
            assert message in found
            assert found.startswith(f"--rule={bad}: ")
            assert not output.exists()
        unknown = self.write(bad, (fusion.Scaled(0.2), ["smell"], 0.1, "faults"))
        assert "for the modality smell, and there are only audio, video" in error(unknown)

    def test_of_other_classes_is_refused(self, tmp_path, output):
        names = np.array(list("abcde"))
        for name, z in (("audio", AUDIO), ("video", VIDEO)):
            np.savez(tmp_path / f"{name}.npz", logits=z, ids=IDS, classes=names)
        inputs = [f"--input={m}={tmp_path}/{m}.npz" for m in ("audio", "video")]
        entry = (fusion.Scaled(0.2), ["audio"], 0.1, "faults")
        flag = self.write(tmp_path / "chosen.json", entry, classes=list("abced"))
        found = error_of(*inputs, flag, f"--output={output}")
        assert found.endswith(
            "rules were chosen for other classes, or another order of them; choose for these"
        )
        flag = self.write(tmp_path / "chosen.json", entry, classes=list("abcde"))
        fuse(*inputs, flag, f"--output={output}")


@needs_real_arrays
@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--gamma=auto", "--contamination=auto"], ["--rule=auto"]])
def test_on_published_logits_a_choice_costs_little_and_says_so(flags, tmp_path, capsys):
    """Speech of RAVDESS under suspicion, chosen on four folds and tested on the fifth."""
    data = read_npz(LOGITS)
    output, arguments = tmp_path / "fused.parquet", []
    for name, key in (("audio", "audio_wav2vec"), ("video", "video_au_bilstm")):
        for flag, rows in (("input", data["fold"] == 4), ("validation", data["fold"] != 4)):
            path = tmp_path / f"{name}_{flag}.npz"
            columns: dict[str, Any] = {x: data[x][rows] for x in ("ids", "labels", "actor")}
            np.savez(path, logits=data[key][rows], **columns)
            arguments.append(f"--{flag}={name}={path}")
    arguments += ["--perturbed=audio", "--groups_column=actor", f"--output={output}"]
    fuse(*arguments, *flags)
    said = capsys.readouterr().out
    accuracy = {
        row[1].strip(): float(row[2])
        for row in (line.split("|") for line in said.splitlines())
        if len(row) > 4 and row[2].strip()[:1].isdigit()
    }
    assert accuracy["statistical fusion"] == pytest.approx(87.5, abs=0.05)
    metadata = json.loads(pq.read_schema(output).metadata[b"jacfuse_jax"])
    choice = metadata["choice"]
    others = [worth["expected"] for worth in choice["baselines"].values()]
    assert choice["expected"] >= max(others)
    # What it costs in clean accuracy on rows that were not seen: 5 points where it was not asked.
    assert accuracy["result"] > 83
    for worth in choice["baselines"].values():
        assert f"{100 * worth['expected']:.2f}" in said
