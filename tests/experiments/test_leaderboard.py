"""Results of runs in files that are committed, and the page that is made of them."""

import json
import re

import numpy as np
import pytest
from absl import flags
from PIL import Image

from experiments import leaderboard as binary
from experiments.reports import leaderboard, robust_fusion
from experiments.run.workdir import write_config
from jacfuse_jax.evaluation.measure import WORST_ATTACK
from jacfuse_jax.evaluation.rules import Unimodal
from jacfuse_jax.evaluation.selection import BestRule, Score
from jacfuse_jax.evaluation.shuffled import Shuffled
from jacfuse_jax.fusion import Cascade, Statistical
from jacfuse_jax.programs import InputError
from tests.evaluation.tiny import make_row, scaled
from tests.experiments.test_flags import config_of
from tests.test_readme import ROOT

NUM_ROWS, NUM_ATTACKED = 200, 100
GROUPS = np.arange(NUM_ROWS, dtype=np.int32)
CASCADE, OTHER, IMAGE = Cascade(0.8), Cascade(0.5), Unimodal("image")
CLEAN = {Statistical(): 0.9, scaled(): 0.88, CASCADE: 0.87, OTHER: 0.6, IMAGE: 0.5}
WORST = {Statistical(): 0.1, scaled(): 0.2, CASCADE: 0.7, OTHER: 0.75, IMAGE: 0.0}
SELECTED = {scaled(): True, CASCADE: True, OTHER: False}


def make_findings(seed):
    """What the rules above achieve with the image perturbed."""
    rng = np.random.default_rng(seed)
    rows, outcomes = [], {}
    for rule in CLEAN:
        for perturbation, severities, count, shares in (
            ("clean", [0], NUM_ROWS, CLEAN),
            (WORST_ATTACK, range(1, 6), NUM_ATTACKED, WORST),
        ):
            for severity in severities:
                right = rng.permutation(np.arange(count) < round(count * shares[rule]))
                outcomes["known", "image", perturbation, severity, rule] = right
                rows.append(
                    make_row(
                        rule,
                        seed=seed,
                        perturbation=perturbation,
                        severity=severity,
                        attack_target=None if perturbation == "clean" else "ensemble",
                        accuracy=float(right.mean()),
                        selected=SELECTED.get(rule),
                        num_examples=count,
                    )
                )
    scores = [Score("image", rule, CLEAN[rule], WORST[rule], rule == CASCADE) for rule in CLEAN]
    baselines = dict.fromkeys((Statistical(), scaled()), 0.5)
    best = [
        BestRule("image", share, rule, 0.9, 0.5, 0.6, 0.5, 0.7, baselines, 21)
        for share, rule in ((0.02, Statistical()), (0.5, CASCADE), (0.8, OTHER))
    ]
    tested = [
        Shuffled(seed, "image", CASCADE, 0.8, 0.7, 0.1, 0.05 + 0.01 * seed, 0.15),
        Shuffled(seed, "image", OTHER, 0.8, 0.8, 0.0, -0.01, 0.01),
    ]
    return robust_fusion.Findings(rows, outcomes, scores, best, tested, GROUPS, 7)


@pytest.fixture
def workdir(tmp_path, capsys):
    folder = tmp_path / "private" / "run"
    folder.mkdir(parents=True)
    config = config_of("--suite=standard", "--dataset=av_mnist/balanced", f"--workdir={folder}")
    robust_fusion.write({seed: make_findings(seed) for seed in (0, 1)}, folder)
    write_config(config, "abc", "cpu", wall_time_s=1.0, num_gradients=7)
    capsys.readouterr()
    return folder


def run(*arguments):
    values = flags.FlagValues()
    binary.define_flags(values)
    values(["leaderboard", *arguments])
    binary.main(["leaderboard"], values)


def cells_of(page, first):
    """{first cells: the others} of all tables below a line."""
    lines = page.partition(first)[2].splitlines()
    return [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]


class TestResults:
    def test_a_run_is_one_file_a_seed_and_all_make_a_page(self, workdir, tmp_path, capsys):
        results, page = tmp_path / "results", tmp_path / "page.md"
        run(f"--add={workdir}", f"--results={results}", f"--page={page}")
        names = [f"av_mnist_balanced_seed_{seed}.json" for seed in (0, 1)]
        assert [path.name for path in sorted(results.iterdir())] == names
        said = capsys.readouterr().out
        assert said.splitlines() == [
            f"wrote {p}" for p in (*sorted(results.iterdir()), page.with_suffix(".png"), page)
        ]
        with Image.open(page.with_suffix(".png")) as image:
            assert image.size == (528, 363)  # one panel
        for path in results.iterdir():
            text = path.read_text()
            assert "private" not in text
            assert len(text) < 100_000
            result = json.loads(text)
            assert result["schema"] == 1
            assert result["command"].endswith("--suite=standard --dataset=av_mnist/balanced")
            assert {rule["rule"]["rule"] for rule in result["rules"]} == {
                *("cascade", "statistical")
            }

    def test_figures_are_those_of_the_run(self, workdir):
        first, second = leaderboard.collect(workdir)
        assert (first["seed"], second["seed"]) == (0, 1)
        figures = {line["label"]: line for line in first["figures"]}
        assert set(figures) == {"statistical", "scaled t=0.2", "cascade c=0.8 t=1", IMAGE.name}
        for rule in (Statistical(), scaled(), CASCADE, IMAGE):
            line = figures[rule.label]
            assert line["clean"] == pytest.approx(CLEAN[rule], abs=1e-6)
            assert line["worst"] == pytest.approx(WORST[rule], abs=1e-6)
            assert line["clean_low"] <= line["clean"] <= line["clean_high"]
            assert line["corruptions"] is None  # nothing of the kind was measured
        for line in first["envelope"]:
            assert line["num_candidates"] == 21

    def test_the_page_averages_seeds_and_marks_what_is_sure(self, workdir):
        results = leaderboard.collect(workdir)
        page = leaderboard.make_page(results)
        header, _, *envelope = cells_of(page.partition("image perturbed,")[0], "Worth by share")
        assert header == [
            *("suspect", "share", "chosen", "of", "worth", "statistical", "scaled", "dropping"),
        ]
        worth = {line[1]: line for line in envelope}
        assert worth["0.02"][2] == "statistical"
        assert worth["0.02"][4].startswith("88.4 [")
        assert worth["0.02"][5] == "+0.0 [+0.0, +0.0]"
        assert worth["0.5"][2] == "**cascade c=0.8 t=1**"
        assert worth["0.5"][4].startswith("78.5 [")
        assert worth["0.5"][5].startswith("+28.5 [")
        lows = [
            100 * line["difference_low"]
            for result in results
            for line in result["envelope"]
            if (line["share"], line["baseline"]) == (0.5, "scaled t=0.2")
        ]
        assert worth["0.5"][6].startswith(f"+24.5 [{min(lows):+.1f}, ")
        assert worth["0.5"][7] == ""  # dropping was not measured
        rules = [line[0] for line in cells_of(page, "image perturbed, accuracy")[2:]]
        assert rules == ["cascade c=0.8 t=1", "scaled t=0.2", "statistical", IMAGE.name]
        weights = [line[-1] for line in cells_of(page, "image perturbed, accuracy")[2:]]
        assert weights == ["+5.0 [-1.0, +15.0] (decoration)", "", "", ""]

    def test_worse_than_a_baseline_is_struck_out(self, workdir):
        results = leaderboard.collect(workdir)
        for line in results[0]["envelope"] + results[1]["envelope"]:
            if (line["share"], line["baseline"]) == (0.5, "scaled t=0.2"):
                line |= {"difference": -0.05, "difference_low": -0.08, "difference_high": -0.01}
        page = leaderboard.make_page(results)
        assert "~~cascade c=0.8 t=1~~" in page
        assert "**cascade c=0.8" not in page

    def test_parameters_that_differ_by_seed_are_not_shown(self, workdir):
        results = leaderboard.collect(workdir)
        for line in results[1]["envelope"]:
            line["method"] = line["method"].replace("c=0.8", "c=0.9")
        table = leaderboard.make_page(results).partition("image perturbed,")[0]
        assert re.search(r"\| \*\*cascade\*\* +\|", table)

    def test_weights_that_hurt_are_no_decoration(self, workdir):
        results = leaderboard.collect(workdir)
        for line in results[0]["shuffled"] + results[1]["shuffled"]:
            line |= {"difference": -0.05, "low": -0.08, "high": -0.02}
        page = leaderboard.make_page(results)
        assert "-5.0 [-8.0, -2.0] |" in page
        assert "(decoration)" not in page

    def test_folds_are_data_of_their_own_and_weights_are_named_without_folders(self, workdir):
        config = json.loads((workdir / "config.json").read_text())
        config["flags"] |= {"dataset": "ravdess", "fold": 2, "weights": {"a": "/private/w.st"}}
        (workdir / "config.json").write_text(json.dumps(config))
        first, _ = leaderboard.collect(workdir)
        assert first["name"] == "ravdess/fold_2"
        assert first["flags"]["weights"] == {"a": "w.st"}
        assert "private" not in json.dumps(first)

    def test_seeds_are_read_in_their_order(self, workdir, tmp_path):
        first, _ = leaderboard.collect(workdir)
        for seed in (10, 2):
            leaderboard.write({**first, "seed": seed}, tmp_path / "results")
        assert [r["seed"] for r in leaderboard.read(tmp_path / "results")] == [2, 10]


class TestBadInput:
    def test_seeds_of_different_settings(self, workdir, tmp_path):
        first, second = leaderboard.collect(workdir)
        other = {**second, "flags": {**second["flags"], "num_attack": 7}}
        for result in (first, other):
            leaderboard.write(result, tmp_path / "results")
        with pytest.raises(InputError, match="seeds 0 and 1 of av_mnist/balanced are of different"):
            leaderboard.read(tmp_path / "results")

    def test_files_that_are_damaged(self, workdir):
        (workdir / "rules.json").write_text("{")
        with pytest.raises(InputError, match="rules.json is no JSON; give the command of the run"):
            leaderboard.collect(workdir)

    @pytest.mark.parametrize(
        "name",
        ["config.json", "results.csv", "summary.csv", "envelope.csv", "shuffled.csv", "rules.json"],
    )
    def test_a_run_that_is_not_whole(self, workdir, name):
        (workdir / name).unlink()
        with pytest.raises(InputError, match=rf"--add=.*run has no {name}: name the folder"):
            leaderboard.collect(workdir)

    def test_a_run_that_has_not_ended(self, workdir):
        config = json.loads((workdir / "config.json").read_text())
        (workdir / "config.json").write_text(json.dumps(config | {"num_gradients": None}))
        with pytest.raises(InputError, match="is not finished; give its command again"):
            leaderboard.collect(workdir)

    def test_data_without_a_name_or_a_licence(self, workdir):
        config = json.loads((workdir / "config.json").read_text())
        config["flags"]["dataset"] = "arrays"
        (workdir / "config.json").write_text(json.dumps(config))
        for given in ({}, {"name": "phones"}, {"licence": "CC0"}):
            with pytest.raises(InputError, match="give --name and --licence"):
                leaderboard.collect(workdir, **given)
        first, _ = leaderboard.collect(workdir, name="phones", licence="CC0")
        assert (first["name"], first["licence"]) == ("phones", "CC0")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "is no JSON"),
            ("[]", "has schema None, not 1"),
            ('{"schema": 2}', "has schema 2, not 1"),
            ('{"schema": 1, "name": "a"}', "has no seed, licence, command"),
        ],
    )
    def test_results_of_another_kind(self, content, message, tmp_path):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(InputError, match=f"a.json {message}"):
            leaderboard.read(tmp_path)

    def test_errors_end_in_one_line_and_leave_the_page(self, tmp_path, capsys):
        page = tmp_path / "page.md"
        page.write_text("old")
        with pytest.raises(SystemExit) as caught:
            run(f"--add={tmp_path / 'gone'}", f"--results={tmp_path}", f"--page={page}")
        assert str(caught.value).startswith("error: --add=")
        with pytest.raises(SystemExit, match="has no results; give --add"):
            run(f"--results={tmp_path}", f"--page={page}")
        assert page.read_text() == "old"
        assert not capsys.readouterr().out


def test_the_page_is_that_of_the_results():
    page = ROOT / "docs" / "leaderboard.md"
    assert page.read_text() == leaderboard.make_page(leaderboard.read(ROOT / "results"))


def of_results(name, seed=0):
    """A committed result."""
    (found,) = (
        r for r in leaderboard.read(ROOT / "results") if (r["name"], r["seed"]) == (name, seed)
    )
    return found


def percent(*shares):
    mean, *ends = (f"{100 * share:.1f}" for share in shares)
    return f"{mean} [{', '.join(ends)}]" if ends else mean


def test_the_table_of_the_readme_is_that_of_the_results():
    lines = {}
    for line in of_results("av_mnist/balanced")["envelope"]:
        key = f"{line['perturbed']}, {100 * line['share']:g}%"
        lines.setdefault(key, {})[line["baseline"].partition(" ")[0]] = line
    page = (ROOT / "README.md").read_text().partition("\n\n- The chosen rule")[0]
    table = cells_of(page, "| attacked, share s")[1:]
    assert len(table) == 6
    for attacked, chosen, worth, *others in table:
        against = lines[attacked]
        own = against["statistical"]
        assert chosen == own["method"]
        assert worth == percent(own["expected"], own["low"], own["high"])
        assert others == [
            percent(own["expected"] - against[name]["difference"])
            for name in ("statistical", "scaled", "drop_suspect")
        ]


def test_the_tables_of_the_results_page_are_those_of_the_results():
    page = (ROOT / "docs" / "results.md").read_text()
    figures = of_results("av_mnist/balanced")["figures"]
    for modality in ("image", "audio"):
        known = {line["label"]: line for line in figures if line["perturbed"] == modality}
        table = cells_of(page.partition(f"| {modality} perturbed |")[2], "\n")
        rows = [line for line in table if line[0] in known][: len(known)]
        assert len(rows) > 15
        for label, clean, _, worst, certified, *_ in rows[:17]:
            line = known[label]
            assert clean == percent(line["clean"])
            assert worst == percent(line["worst"], line["worst_low"], line["worst_high"])
            assert certified == ("" if line["certified"] is None else percent(line["certified"]))
