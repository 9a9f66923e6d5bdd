"""The binary that fuses predictions from files, against a NumPy oracle of the fusion."""

import dataclasses
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import scipy.special
from numpy.testing import assert_allclose, assert_array_equal

from jacfuse_jax import fusion
from jacfuse_jax.predictions import stream
from jacfuse_jax.predictions.flags import FuseConfig
from tests import reference
from tests.predictions.formats import WRITERS
from tests.predictions.runs import (
    AUDIO,
    KERNEL,
    LABELS,
    NUM_CLASSES,
    NUM_ROWS,
    RNG,
    ROOT,
    VIDEO,
    error_of,
    fuse,
    start,
    write_inputs,
)
from tests.test_readme import README

PAGE = ROOT / "docs" / "predictions.md"
UNIFORM = np.full(NUM_CLASSES, 1 / NUM_CLASSES)


def oracle(logits, grams, prior, *, gamma, contamination=0.0):
    """Probabilities and norms of the Jacobian in float64, row by row with dense solves.

    Args:
      logits: {modality: (N, K)}.
      grams: {perturbed modality: (K, K)}, not centred.
    """
    logits = {name: np.asarray(z, np.float64) for name, z in logits.items()}
    C = np.eye(len(prior)) - 1 / len(prior)
    grams = {name: C @ gram @ C for name, gram in grams.items()}
    if contamination:
        for name in grams:
            posterior = scipy.special.softmax(logits[name], axis=1)
            logits[name] = np.log((1 - contamination) * posterior + contamination * prior)
    all_probs, norms = [], []
    for i, p in enumerate(reference.statistical_fusion(logits, prior)):
        R = {
            name: reference.recalibration_matrix_by_eigh(p, gram, (1 - gamma) / gamma)
            for name, gram in grams.items()
        }
        total = sum(R[name] @ z[i] if name in R else z[i] for name, z in logits.items())
        probs = scipy.special.softmax(total - (len(logits) - 1) * np.log(prior))
        J = reference.softmax_jacobian(probs)
        squares = (np.trace(J @ R[name] @ gram @ R[name].T @ J) for name, gram in grams.items())
        all_probs.append(probs)
        norms.append(np.sqrt(sum(squares)))
    return np.stack(all_probs), np.array(norms)


def assert_agrees(path, expected, *, tolerance=8):
    """That a file holds what the oracle says, to `tolerance` K roundings."""
    probs, norms = expected
    with np.load(path) as file:
        eps = tolerance * probs.shape[1] * np.finfo(file["log_probs"].dtype).eps
        assert_allclose(np.exp(file["log_probs"]), probs, rtol=0, atol=eps)
        assert_allclose(file["jacobian_norm"], norms, rtol=0, atol=eps * max(1, norms.max()))
        sure = np.diff(np.sort(probs, axis=1)[:, -2:]).ravel() > 2 * eps
        assert_array_equal(file["prediction"][sure], probs.argmax(axis=1)[sure])


@pytest.fixture
def files(tmp_path):
    return write_inputs(tmp_path)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "fused.npz"


class TestAgreesWithTheOracle:
    @pytest.mark.parametrize("perturbed", ["audio", "audio,video"])
    def test_rows_joined_by_id_in_chunks(self, perturbed, files, output, monkeypatch, capsys):
        monkeypatch.setattr(stream, "_CHUNK_ENTRIES", 7 * NUM_CLASSES)
        fuse(*files, f"--perturbed={perturbed}", "--contamination=0.3", f"--output={output}")
        grams = {"audio": KERNEL.T @ KERNEL, "video": np.eye(NUM_CLASSES)}
        expected = oracle(
            {"audio": AUDIO, "video": VIDEO},
            {name: grams[name] for name in perturbed.split(",")},
            UNIFORM,
            gamma=0.1,
            contamination=0.3,
        )
        assert_agrees(output, expected)
        with np.load(output) as file:
            assert_array_equal(file["ids"], np.arange(NUM_ROWS) + 100)
            metadata = json.loads(str(file["jacfuse_jax"]))
        # Where a modality has no kernel, both the report and the file say so.
        said = "no kernel of video: its Gram matrix is the identity" in capsys.readouterr().out
        assert said == ("video" in perturbed) == (metadata["identity_gram"] == ["video"])
        assert metadata["perturbed"] == perturbed.split(",")
        rule = fusion.ContaminatedRobust(contamination=0.3, gamma=0.1)
        assert fusion.rule_from_json(metadata["rule"]) == rule
        assert metadata["schema"] == 1
        assert metadata["input"] == {"audio": "audio.npz", "video": "video.safetensors"}

    @pytest.mark.parametrize(("shape", "floating"), [((1, 2), "float64"), ((6, 309), "float32")])
    def test_other_sizes(self, shape, floating, tmp_path, output):
        logits = {name: 2 * RNG.normal(size=shape).astype(floating) for name in ("audio", "video")}
        for name, z in logits.items():
            np.save(tmp_path / f"{name}.npy", z)
        kernel = RNG.normal(size=(400, shape[1])).astype(floating) / 20
        np.save(tmp_path / "kernel.npy", kernel)
        fuse(
            *(f"--input={name}={tmp_path}/{name}.npy" for name in logits),
            f"--kernel=audio={tmp_path}/kernel.npy",
            "--perturbed=audio",
            f"--output={output}",
        )
        kernel = kernel.astype(np.float64)
        prior = np.full(shape[1], 1 / shape[1])
        assert_agrees(output, oracle(logits, {"audio": kernel.T @ kernel}, prior, gamma=0.1))
        with np.load(output) as file:
            assert file["log_probs"].dtype == file["jacobian_norm"].dtype == floating

    def test_both_parts_switched_off_are_statistical_fusion(self, files, output):
        fuse(*files, "--perturbed=audio", "--gamma=1", "--contamination=0", f"--output={output}")
        with np.load(output) as file:
            probs = reference.statistical_fusion({"audio": AUDIO, "video": VIDEO}, UNIFORM)
            assert_allclose(np.exp(file["log_probs"]), probs, atol=1e-6)

    @pytest.mark.parametrize("head", ["kernel", "weight", "gram", None])
    def test_a_constant_in_a_row_changes_nothing(self, head, tmp_path, output):
        matrices = {"kernel": KERNEL, "weight": KERNEL.T, "gram": KERNEL.T @ KERNEL}
        heads: dict[str, Any] = {} if head is None else {head: matrices[head]}
        inputs = [f"--input={name}={tmp_path}/{name}.npz" for name in ("audio", "video")]
        all_probs = []
        log_sums = np.log(np.exp(AUDIO.astype(np.float64)).sum(axis=1, keepdims=True))
        for shift in (0, RNG.normal(size=(NUM_ROWS, 1)), -log_sums):
            np.savez(tmp_path / "audio.npz", logits=AUDIO.astype(np.float64) + shift, **heads)
            np.savez(tmp_path / "video.npz", logits=VIDEO.astype(np.float64) - shift)
            for contamination in (0, 1e-30):
                fuse(
                    *inputs,
                    "--perturbed=audio",
                    f"--contamination={contamination}",
                    f"--output={output}",
                )
                with np.load(output) as file:
                    all_probs.append(np.exp(file["log_probs"]))
                    eps = np.finfo(file["log_probs"].dtype).eps
        statistical = reference.statistical_fusion({"audio": AUDIO, "video": VIDEO}, UNIFORM)
        assert np.abs(all_probs[0] - statistical).max() > 0.05  # the rule does something
        for probs in all_probs[1:]:
            assert_allclose(probs, all_probs[0], rtol=0, atol=8 * NUM_CLASSES * eps)

    def test_the_command_of_the_readme(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (command,) = re.findall(
            r"^    \S+python -m jacfuse_jax.predictions (.*?)\n\n", README.read_text(), re.M | re.S
        )
        rng = np.random.default_rng(0)
        for suffix in ("", "_val"):
            labels = rng.integers(5, size=80)
            arrays: dict[str, Any] = {
                m: {
                    "logits": (2 * np.eye(5)[labels] + rng.normal(size=(80, 5))).astype(np.float32),
                    "ids": np.arange(80),
                    "labels": labels,
                }
                for m in ("audio", "video")
            }
            safetensors.numpy.save_file(arrays["audio"], f"audio{suffix}.safetensors")
            np.savez(f"video{suffix}.npz", **arrays["video"])
        fuse(*shlex.split(command.replace("\\\n", " ")))
        metadata = json.loads(pq.read_table("fused.parquet").schema.metadata[b"jacfuse_jax"])
        assert fusion.rule_from_json(metadata["rule"]).name in {r.kind for r in fusion.RULES}
        assert metadata["chosen"]

    def test_what_the_page_saves_of_torch(self, tmp_path, monkeypatch, torch):
        monkeypatch.chdir(tmp_path)
        [(block, command)] = re.findall(
            r"```python\n(import torch\n.*?)```\n\n .* -m jacfuse_jax.predictions (.*?)\n\n",
            PAGE.read_text(),
            flags=re.DOTALL,
        )
        torch.manual_seed(0)
        saved: dict[str, Any] = {}
        exec(compile(block, str(PAGE), "exec"), saved)
        audio, weight = saved["logits"].numpy(), saved["model"][-1].weight.detach().numpy()
        video, order = RNG.normal(size=audio.shape).astype(np.float32), RNG.permutation(len(audio))
        np.savez("video.npz", logits=video[order], ids=order)
        fuse(*shlex.split(command.replace("\\\n", " ")))
        table = pq.read_table("fused.parquet")
        metadata = json.loads(table.schema.metadata[b"jacfuse_jax"])
        rule: Any = fusion.rule_from_json(metadata["rule"])
        contamination = rule.contamination
        assert metadata["chosen"] == ["contamination"]
        probs, norms = oracle(
            {"audio": audio, "video": video},
            {"audio": weight.astype(np.float64) @ weight.T.astype(np.float64)},
            np.full(10, 0.1),
            gamma=0.1,
            contamination=contamination,
        )
        eps = 80 * float(np.finfo(np.float32).eps)
        assert_array_equal(table["ids"], np.arange(200))
        assert_allclose(np.exp(table["log_probs"].to_pylist()), probs, rtol=0, atol=eps)
        assert_allclose(table["jacobian_norm"], norms, rtol=0, atol=eps * max(1, norms.max()))

    @pytest.mark.parametrize("gamma", [1e-30, 0.1, 1])
    def test_large_kernels_give_norms(self, gamma, tmp_path, output):
        largest = np.finfo(np.float32).max * np.finfo(np.float32).eps
        kernel = KERNEL * np.sqrt(0.9 * largest / np.sum(KERNEL.astype(np.float64) ** 2))
        inputs = [f"--input={name}={tmp_path}/{name}.npz" for name in ("audio", "video")]
        for name, logits in (("audio", AUDIO), ("video", VIDEO)):
            np.savez(tmp_path / f"{name}.npz", logits=logits, kernel=kernel)
        fuse(*inputs, "--perturbed=audio,video", f"--gamma={gamma}", f"--output={output}")
        with np.load(output) as file:
            assert np.isfinite(file["jacobian_norm"]).all()
            assert np.isfinite(file["log_probs"]).all()


class TestReport:
    def test_judges_before_and_after(self, files, output, capsys):
        fuse(*files, "--perturbed=audio", "--contamination=0.3", f"--output={output}")
        printed = capsys.readouterr().out
        logits = {"audio": AUDIO, "video": VIDEO}
        result = oracle(
            logits, {"audio": KERNEL.T @ KERNEL}, UNIFORM, gamma=0.1, contamination=0.3
        )[0]
        all_probs = {
            **{name: scipy.special.softmax(z.astype(float), axis=1) for name, z in logits.items()},
            "statistical fusion": reference.statistical_fusion(logits, UNIFORM),
            "result": result,
        }
        rows = [line.split("|")[1:5] for line in printed.splitlines() if line.startswith("|")][2:]
        assert [row[0].strip() for row in rows] == list(all_probs)
        for row, probs in zip(rows, all_probs.values(), strict=True):
            accuracy = 100 * (probs.argmax(axis=1) == LABELS).mean()
            assert float(row[1]) == pytest.approx(accuracy, abs=0.006)
            nll = -np.log(probs[np.arange(NUM_ROWS), LABELS]).mean()
            assert float(row[3]) == pytest.approx(nll, abs=1e-4)

    @pytest.mark.parametrize("is_perturbed", [True, False])
    @pytest.mark.parametrize("kind", ["npz", "safetensors", "parquet"])
    def test_rows_that_are_not_numbers(self, kind, is_perturbed, files, tmp_path, output, capsys):
        np.save(tmp_path / "kernel.npy", KERNEL)
        bad = AUDIO.copy()
        bad[3, 1], bad[7] = np.inf, -np.inf
        path = tmp_path / f"bad.{kind}"
        WRITERS[kind](path, {"logits": bad, "ids": np.arange(NUM_ROWS) + 100, "labels": LABELS})
        perturbed_flag = "--perturbed=audio" if is_perturbed else "--perturbed=video"
        fuse(*files, perturbed_flag, f"--output={output}")
        with np.load(output) as file:
            clean = {name: file[name] for name in file}
        capsys.readouterr()
        arguments = [f"--input=audio={path}", files[1], perturbed_flag]
        if is_perturbed:
            arguments.append(f"--kernel=audio={tmp_path}/kernel.npy")
        fuse(*arguments, f"--output={output}")
        printed = capsys.readouterr().out
        said = "\naudio says nothing in 2 rows, of +inf or nothing finite"
        if is_perturbed:
            said += "; it counts as the class prior there"
        else:
            said += (
                "\n2 rows have no prediction: a trusted modality says nothing, or no class is left"
            )
        said += "\nfigures are of 38 rows, which have labels and no modality that says nothing\n"
        assert said in printed
        is_bad = np.isin(np.arange(NUM_ROWS), (3, 7))
        with np.load(output) as file:
            for name in ("prediction", "log_probs", "jacobian_norm"):
                assert_array_equal(file[name][~is_bad], clean[name][~is_bad])
            if is_perturbed:
                video = scipy.special.softmax(VIDEO[is_bad], axis=1)
                assert_allclose(np.exp(file["log_probs"][is_bad]), video, atol=1e-6)
            else:
                assert_array_equal(file["prediction"][is_bad], -1)
                assert np.isnan(file["log_probs"][is_bad]).all()
        correct = (clean["prediction"] == LABELS)[~is_bad].mean()
        assert f"| result             | {100 * correct:.2f} " in printed

    def test_classes_that_are_excluded(self, files, tmp_path, output):
        logits = AUDIO.copy()
        logits[:, 2] = -np.inf
        np.savez(tmp_path / "audio.npz", logits=logits, ids=np.arange(NUM_ROWS) + 100)
        fuse(*files, "--perturbed=video", f"--output={output}")
        with np.load(output) as file:
            probs = np.exp(file["log_probs"])
        assert_array_equal(probs[:, 2], 0)
        assert_allclose(probs.sum(axis=1), 1, rtol=1e-6)

    def test_nothing_but_such_rows(self, files, tmp_path, output, capsys):
        ids = np.arange(NUM_ROWS) + 100
        np.savez(tmp_path / "audio.npz", logits=AUDIO + np.inf, ids=ids, labels=LABELS)
        fuse(*files, "--perturbed=video", f"--output={output}")
        printed = capsys.readouterr().out
        assert f"\n{NUM_ROWS} rows have no prediction" in printed
        assert "accuracy" not in printed


class TestMissing:
    @pytest.fixture
    def holed(self, tmp_path):
        """Audio of rows 0 to 29, labelled, two of them NaN; video of rows 10 to 39."""
        audio = AUDIO[:30].copy()
        audio[[12, 20]] = np.nan
        ids = np.arange(NUM_ROWS)
        np.savez(tmp_path / "a.npz", logits=audio, ids=ids[:30], labels=LABELS[:30], kernel=KERNEL)
        np.savez(tmp_path / "v.npz", logits=VIDEO[10:], ids=ids[10:])
        return f"--input=audio={tmp_path}/a.npz", f"--input=video={tmp_path}/v.npz"

    def test_is_fused_as_what_is_left(self, holed, output, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(stream, "_CHUNK_ENTRIES", 7 * NUM_CLASSES)
        fuse(*holed, "--perturbed=audio", "--contamination=0.3", f"--output={output}")
        ids = np.arange(NUM_ROWS)
        lacks = {"audio": np.isin(ids, [12, 20]) | (ids >= 30), "video": ids < 10}
        grams = {"audio": KERNEL.T @ KERNEL}
        options = {"gamma": 0.1, "contamination": 0.3}
        probs, norms = oracle({"audio": AUDIO, "video": VIDEO}, grams, UNIFORM, **options)
        alone = oracle({"audio": AUDIO}, grams, UNIFORM, **options)
        probs[lacks["video"]], norms[lacks["video"]] = (x[lacks["video"]] for x in alone)
        probs[lacks["audio"]] = scipy.special.softmax(VIDEO[lacks["audio"]], axis=1)
        norms[lacks["audio"]] = 0
        assert_agrees(output, (probs, norms))
        with np.load(output) as file:
            assert_array_equal(file["ids"], ids)
            metadata = json.loads(str(file["jacfuse_jax"]))
        assert metadata["num_missing"] == {"audio": 12, "video": 10}
        printed = capsys.readouterr()
        assert printed.err.startswith(
            f"audio is missing in 10 of 40 rows, whose ids are not in {tmp_path}/a.npz: 30, 31, "
            "32, ...; it is fused without\n"
        )
        assert "\naudio is missing in 12 rows, which are fused without it\n" in printed.out
        cells = {
            cell[0].strip(): [x.strip() for x in cell[1:]]
            for line in printed.out.splitlines()
            if line.startswith("|")
            for cell in [line.strip("|").split("|")]
        }
        right = {
            "audio": (AUDIO.argmax(axis=1) == LABELS)[~lacks["audio"] & (ids < 30)],
            "video": (VIDEO.argmax(axis=1) == LABELS)[10:30],
            "result": (probs.argmax(axis=1) == LABELS)[:30],
        }
        for name, of_rows in right.items():
            assert cells[name][0] == f"{100 * of_rows.mean():.2f}"
            assert cells[name][-1] == str(len(of_rows))

    def test_may_be_left_out_or_refused(self, holed, output, capsys):
        fuse(*holed, "--missing=drop", f"--output={output}")
        with np.load(output) as file:
            assert_array_equal(file["ids"], np.delete(np.arange(10, 30), [2, 10]))
        assert capsys.readouterr().err.count("; such rows are left out\n") == 3
        message = error_of(*holed, "--missing=error", f"--output={output}")
        assert message.startswith("--missing=error: audio is missing in 10 of 40 rows, whose ids")

    def test_rows_that_lack_a_modality_count_in_a_choice(self, holed, output, monkeypatch):
        def choose(fitted, rows, names, **_):
            order = np.random.default_rng(0).permutation(NUM_ROWS)
            order = order[order < 30]  # labelled
            assert_array_equal(rows.labels, LABELS[order])
            assert_array_equal(rows.present["audio"], ~np.isin(order, [12, 20]))
            assert_array_equal(rows.present["video"], order >= 10)
            assert names == ["gamma"]
            return fitted._replace(rule=dataclasses.replace(fitted.rule, gamma=0.5)), None

        monkeypatch.setattr(stream, "choose", choose)
        fuse(*holed, "--perturbed=audio", "--gamma=auto", f"--output={output}")

    def test_of_everything_gives_the_prior(self, tmp_path, output):
        np.savez(tmp_path / "a.npz", logits=np.where(np.arange(40) < 3, np.nan, AUDIO.T).T)
        np.save(tmp_path / "prior.npy", [1, 2, 3, 4, 10])
        inputs = [f"--input={m}={tmp_path}/a.npz" for m in ("audio", "video")]
        fuse(*inputs, f"--class_prior={tmp_path}/prior.npy", f"--output={output}")
        with np.load(output) as file:
            assert_allclose(np.exp(file["log_probs"][:3]), [[0.05, 0.1, 0.15, 0.2, 0.5]] * 3, 1e-6)
            assert_array_equal(file["prediction"][:3], 4)


class TestJoin:
    @pytest.fixture
    def shuffled(self, tmp_path):
        """Flags of two data frames that are one only by a column `video_id`."""
        order = RNG.permutation(NUM_ROWS)
        frame = pd.DataFrame({"video_id": [f"v{i:03}" for i in range(NUM_ROWS)]})
        frame["split"] = "test"
        frame.assign(logits=list(AUDIO), labels=LABELS).to_parquet(tmp_path / "a.parquet")
        video = frame.assign(logits=list(VIDEO)).iloc[order].reset_index(drop=True)
        video.to_parquet(tmp_path / "v.parquet")
        return f"--input=audio={tmp_path}/a.parquet", f"--input=video={tmp_path}/v.parquet", order

    def test_by_a_column_of_another_name(self, shuffled, output, tmp_path, capsys):
        fuse(*shuffled[:2], f"--output={output}")
        printed = capsys.readouterr()
        assert f"{NUM_ROWS} rows, joined by video_id; statistical fusion, since not" in printed.out
        assert f"{tmp_path}/a.parquet: not used: split\n" in printed.err
        assert f"{tmp_path}/v.parquet: not used: split\n" in printed.err
        with np.load(output) as file:
            probs = reference.statistical_fusion({"audio": AUDIO, "video": VIDEO}, UNIFORM)
            assert_allclose(np.exp(file["log_probs"]), probs, atol=1e-6)
            assert_array_equal(file["jacobian_norm"], 0)
            assert file["ids"].tolist() == [f"v{i:03}" for i in range(NUM_ROWS)]
            metadata = json.loads(str(file["jacfuse_jax"]))
        assert metadata["joined_by"] == "video_id"
        assert metadata["perturbed"] == []
        rule = fusion.rule_from_json(metadata["rule"])
        assert rule == fusion.ContaminatedRobust(contamination=0.0, gamma=1.0)

    def test_by_position_if_told_to(self, shuffled, output, tmp_path, capsys):
        *inputs, order = shuffled
        fuse(*inputs, "--join=position", f"--output={output}")
        printed = capsys.readouterr()
        assert f"{NUM_ROWS} rows, joined by position; " in printed.out
        assert f"{tmp_path}/a.parquet: not used: video_id, split\n" in printed.err
        with np.load(output) as file:
            probs = reference.statistical_fusion({"audio": AUDIO, "video": VIDEO[order]}, UNIFORM)
            assert_allclose(np.exp(file["log_probs"]), probs, atol=1e-6)
            assert_array_equal(file["ids"], np.arange(NUM_ROWS))

    def test_by_position_is_said(self, tmp_path, output, capsys):
        for name, logits in (("audio", AUDIO), ("video", VIDEO)):
            np.save(tmp_path / f"{name}.npy", logits)
        inputs = [f"--input={name}={tmp_path}/{name}.npy" for name in ("audio", "video")]
        fuse(*inputs, f"--output={output}")
        assert capsys.readouterr().err.startswith(
            "no input has a column of ids: rows are joined by position\n"
        )

    @pytest.mark.parametrize("ending", ["parquet", "npz"])
    def test_output_can_be_fused_again(self, ending, files, tmp_path, output):
        twice = tmp_path / f"twice.{ending}"
        fuse(*files, f"--output={twice}")
        fuse(f"--input=both={twice}", files[1], f"--output={output}")
        logits = {"both": np.log(reference.statistical_fusion({"a": AUDIO, "v": VIDEO}, UNIFORM))}
        with np.load(output) as file:
            probs = reference.statistical_fusion({**logits, "video": VIDEO}, UNIFORM)
            assert_allclose(np.exp(file["log_probs"]), probs, atol=1e-6)
            assert_array_equal(file["ids"], np.arange(NUM_ROWS) + 100)


class TestNames:
    def test_of_columns(self, files, tmp_path, output, capsys):
        columns: dict[str, Any] = {
            "scores": AUDIO,
            "key": np.arange(NUM_ROWS),
            "target": LABELS,
            "ids": LABELS,
        }
        np.savez(tmp_path / "audio.npz", logits=AUDIO[:, 1:], **columns)
        np.savez(tmp_path / "clean.npz", **columns)
        flags = ["--logits_column=scores", "--ids_column=key", "--labels_column=target"]
        arguments = [f"--validation=audio={tmp_path}/clean.npz", "--class_prior=labels"]
        fuse(files[0], *arguments, *flags, f"--output={output}")
        assert f"{tmp_path}/audio.npz: not used: logits, ids\n" in capsys.readouterr().err
        prior = np.bincount(LABELS) / NUM_ROWS
        with np.load(output) as file:
            metadata = json.loads(str(file["jacfuse_jax"]))
            probs = scipy.special.softmax(AUDIO.astype(float), axis=1)
            assert_allclose(np.exp(file["log_probs"]), probs, atol=1e-6)
        assert_allclose(metadata["class_prior"], prior, rtol=1e-6)
        assert metadata["joined_by"] == "key"
        np.savez(tmp_path / "audio.npz", scores=AUDIO)
        message = error_of(files[0], *flags[::2], f"--output={output}")
        assert message == "--labels_column=target is in no input"


class TestProbabilities:
    @pytest.mark.parametrize("floating", [np.float32, np.float64])
    def test_give_what_their_logits_give(self, floating, files, tmp_path, output, capsys):
        ids = np.arange(NUM_ROWS) + 100
        for name, logits in (("audio", AUDIO), ("video", VIDEO)):
            probs = scipy.special.softmax(logits.astype(floating), axis=1)
            np.savez(tmp_path / f"{name}.npz", logits=probs, ids=ids, kernel=KERNEL)
        arguments = (files[0], f"--input=video={tmp_path}/video.npz", "--perturbed=audio")
        fuse(*arguments, "--inputs_are=probabilities", f"--output={output}")
        assert "look like" not in capsys.readouterr().err
        kernel = KERNEL.astype(np.float64)
        expected = oracle(
            {"audio": AUDIO, "video": VIDEO}, {"audio": kernel.T @ kernel}, UNIFORM, gamma=0.1
        )
        assert_agrees(output, expected)
        fuse(*arguments, f"--output={output}")
        said = capsys.readouterr().err
        for name in ("audio", "video"):
            assert f"warning: {tmp_path}/{name}.npz: logits look like probabilities: all" in said
        fuse(*arguments, "--inputs_are=logits", f"--output={output}")
        assert "look like" not in capsys.readouterr().err

    def test_must_be_such(self, files, output):
        message = error_of(*files, "--inputs_are=probabilities", f"--output={output}")
        assert message.startswith("--inputs_are=probabilities: in row 0 of ")


class TestClassPrior:
    @pytest.mark.parametrize("counts", [[1, 2, 3, 4, 5], [0.1, 0.2, 0.2, 0.25, 0.25]])
    def test_from_a_file_of_counts_or_frequencies(self, counts, files, tmp_path, output):
        np.save(tmp_path / "prior.npy", counts)
        prior_flag = f"--class_prior={tmp_path}/prior.npy"
        fuse(*files, "--perturbed=audio", "--gamma=1", prior_flag, f"--output={output}")
        prior = np.divide(counts, np.sum(counts))
        with np.load(output) as file:
            probs = reference.statistical_fusion({"audio": AUDIO, "video": VIDEO}, prior)
            assert_allclose(np.exp(file["log_probs"]), probs, atol=1e-6)


class TestProcess:
    """The binary as users start it: x64 is off."""

    def test_rounds_float64_and_makes_the_folder(self, files, tmp_path):
        np.savez(tmp_path / "audio.npz", logits=AUDIO.astype(np.float64), ids=np.arange(100, 140))
        output = tmp_path / "new" / "folder" / "fused.parquet"
        process = start(*files, "--perturbed=audio", f"--output={output}")
        stdout, stderr = process.communicate()
        assert process.returncode == 0, stderr
        assert f"wrote {output}\n" in stdout
        assert stderr == "float64 logits are rounded to float32\n"  # no bar, without a terminal
        table = pq.read_table(output)
        assert str(table.schema.field("log_probs").type.value_type) == "float"
        expected, _ = oracle(
            {"audio": AUDIO, "video": VIDEO}, {"audio": np.eye(NUM_CLASSES)}, UNIFORM, gamma=0.1
        )
        assert_allclose(np.exp(table["log_probs"].to_pylist()), expected, atol=5e-6)

    @pytest.mark.slow
    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory as Linux tells it")
    def test_takes_no_more_memory_for_more_rows(self, tmp_path):
        # Of this process alone: resource.getrusage also knows the peak of the one that started it.
        script = (
            "import sys\n"
            "from absl import flags\n"
            "from jacfuse_jax.predictions import __main__ as program, stream\n"
            "from jacfuse_jax.predictions.flags import define_flags\n"
            "stream._CHUNK_ENTRIES = 2**16\n"
            "define_flags(flags.FLAGS)\n"
            "flags.FLAGS(sys.argv)\n"
            "program.main(sys.argv[:1])\n"
            "print(open('/proc/self/status').read())\n"
        )
        names, num_classes = ("audio", "video"), 10
        sizes, peaks = (100_000, 1_700_000), []
        for num_rows in sizes:
            for name in names:
                logits = RNG.normal(size=(num_rows, num_classes)).astype(np.float32)
                np.save(tmp_path / f"{name}.npy", logits)
            arguments = [f"--input={name}={tmp_path}/{name}.npy" for name in names]
            arguments += ["--perturbed=audio", f"--output={tmp_path}/fused.parquet"]
            process = subprocess.run(
                [sys.executable, "-c", script, *arguments],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=True,
            )
            [kib] = re.findall(r"VmHWM:\s+(\d+) kB", process.stdout)
            peaks.append(1024 * int(kib))
        added = (sizes[1] - sizes[0]) * num_classes * 4 * len(names)
        assert peaks[1] - peaks[0] < added / 2

    @pytest.mark.slow
    @pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
    def test_that_is_ended_leaves_what_was_there(self, sent, tmp_path):
        shape = (200_000, 60)
        for name in ("audio", "video"):
            np.save(tmp_path / f"{name}.npy", RNG.normal(size=shape).astype(np.float32))
        output = tmp_path / "fused.parquet"
        output.write_text("of an earlier run")
        process = start(
            *(f"--input={name}={tmp_path}/{name}.npy" for name in ("audio", "video")),
            "--perturbed=audio",
            f"--output={output}",
        )
        while not any(
            path.stat().st_size > 100_000 for path in tmp_path.glob(".fused.*.partial.parquet")
        ):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        process.send_signal(sent)
        _, stderr = process.communicate()
        assert output.read_text() == "of an earlier run"
        if sent == signal.SIGINT:
            assert process.returncode == 130
            assert "\ninterrupted\n" in stderr
            assert "Traceback" not in stderr

    def test_errors_take_one_line(self, files, output):
        process = start(*files, "--perturbed=smell", f"--output={output}")
        _, stderr = process.communicate()
        assert process.returncode == 1
        assert stderr == "error: --perturbed=smell: unknown 'smell'; choose from audio,video\n"

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            (
                "--imput=a=a.npz",
                "--imput is no flag of this program (did you mean --input or --inputs_are?)",
            ),
            pytest.param("--gamma", "Missing value for flag --gamma", marks=pytest.mark.slow),
            pytest.param(
                "--join=ids", "--join=ids: value should be one of", marks=pytest.mark.slow
            ),
        ],
    )
    def test_errors_of_the_command_line_too(self, argument, message):
        process = start(argument)
        _, stderr = process.communicate()
        assert process.returncode == 1
        assert stderr.startswith(f"error: {message}")
        assert stderr.endswith(" (--help lists all flags)\n")
        assert stderr.count("\n") == 1

    @pytest.mark.parametrize("name", ["jacfuse_jax.predictions", "experiments.fuse_predictions"])
    def test_help_lists_the_flags_without_loading_what_reads_files(self, name):
        script = (
            "import runpy, sys\n"
            "sys.argv = ['predictions', '--help']\n"
            "try:\n"
            f"    runpy.run_module({name!r}, None, '__main__', True)\n"
            "finally:\n"
            "    print({'pyarrow', 'scipy', 'tabulate'} & set(sys.modules))\n"
        )
        process = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
        )
        listed = re.findall(r"^  --(\w+):", process.stdout, flags=re.MULTILINE)
        assert sorted(listed) == sorted(field.name for field in dataclasses.fields(FuseConfig))
        assert "Robust late fusion of what classifiers of any framework predicted" in process.stdout
        assert process.stdout.endswith("set()\n")
