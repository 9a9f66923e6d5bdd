"""report.html: what it says is what the files say, and nothing in them is taken for HTML."""

import json
import shlex
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import make_report
from experiments.reports.page import files
from experiments.reports.page.page import write_comparison, write_report
from jacfuse_jax.evaluation import certified, envelope, radii
from jacfuse_jax.evaluation.measure import flatten
from jacfuse_jax.evaluation.rules import PARAMETERS
from jacfuse_jax.evaluation.summary import Summary
from jacfuse_jax.programs.command_line import parse_flags
from tests.evaluation.tiny import make_row
from tests.experiments import finished, runs
from tests.experiments.finished import CLEAN, HALF, SHARES, WORST, chosen_for, worth
from tests.experiments.read_page import Page

HOSTILE = "<script>alert(1)</script>\" onload='x' & $a_b$ 音"


def shown(share, half=HALF):
    """A share as tables have it."""
    low, high = 100 * (share - half), 100 * (share + half)
    return f"{100 * share:.1f} [{low:.1f}, {high:.1f}]"


def signed(difference, half=HALF):
    ends = (difference, difference - half, difference + half)
    mean, low, high = (f"{100 * x:+.1f}".replace("-", "−") for x in ends)
    return f"{mean} [{low}, {high}]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return finished.write_run(tmp_path_factory.mktemp("finished") / "first")


@pytest.fixture(scope="module")
def page(folder):
    return Page(write_report(folder))


class TestOfARun:
    def test_is_one_small_file_that_is_made_again_alike(self, page, folder):
        path = folder / "report.html"
        first = path.read_bytes()
        assert len(first) < 3e6
        assert write_report(folder) == path
        assert path.read_bytes() == first
        assert len(set(page.ids)) == len(page.ids)
        assert page.title == "Robust fusion: digits"
        assert not [path for path in folder.iterdir() if "partial" in path.name]

    def test_says_which_rule_was_chosen_and_what_it_is_worth(self, page):
        label = chosen_for(finished.STATED)
        for modality, said in zip(finished.MODALITIES, page.findings, strict=True):
            assert said.startswith(
                f"Where {modality} is attacked in 10% of inputs, validation rows chose {label}. "
            )
            expected = worth(label, 0.1)
            assert f"worth {shown(expected).replace(' [', '% [')} on test rows" in said
            for baseline, called in (
                ("statistical", "statistical fusion"),
                ("scaled t=0.5", "scaling (t=0.5)"),
                ("drop_suspect c=0", f"dropping {modality}"),
            ):
                difference = expected - worth(baseline, 0.1)
                assert f"{signed(difference)} against {called}" in said
            # 92.2 against 89.6, 90.0 and 70.0, three points each way.
            assert said.endswith(
                "It is not told apart from statistical fusion or scaling (t=0.5): the interval of "
                "the difference contains zero."
            )

    def test_tables_of_worth_are_those_of_the_envelope(self, page):
        table = page.table("image: the chosen rule for every share")
        assert table.column("share") == ["2%", "10%", "50%"]
        assert table.column("chosen rule") == [chosen_for(share) for share in SHARES]
        assert table.column("worth") == [shown(worth(chosen_for(s), s)) for s in SHARES]
        first, *others = table.column("against statistical fusion")
        assert first == "the same rule"
        assert others == [
            signed(worth(chosen_for(s), s) - worth("statistical", s)) for s in SHARES[1:]
        ]

    def test_tables_of_accuracy_are_those_of_the_results(self, page):
        table = page.table("image perturbed, threat model known")
        labels = ["mean", "statistical", "scaled t=0.5", "drop_suspect c=0", "cascade c=0.8 t=1"]
        # Not scaled t=0.2, which was not chosen.
        assert [label.partition(" chosen")[0] for label in table.column("rule")] == labels
        assert table.column("rule")[4] == "cascade c=0.8 t=1 chosen for 10%, 50%"
        assert table.column("clean") == [shown(CLEAN[label]) for label in labels]
        assert table.column("worst case") == [shown(WORST[label]) for label in labels]
        row = table.row("statistical")
        assert row["missing"] == f"{100 * WORST['statistical']:.1f}"
        assert row["ε = 0.01"] == shown(0.95 - 0.9 / 5)
        assert row["ε = 0.4"] == shown(0.95 - 0.9)
        assert row["calibration error"] == "0.125"
        assert row["certified"] == ""
        assert table.row("drop_suspect c=0")["certified"] == "70.0"
        titles = {table.title for table in page.tables}
        assert "audio perturbed, threat model unknown" in titles

    def test_says_how_it_was(self, page):
        facts = page.facts
        assert facts["Data"] == "digits, 500 test rows"
        assert facts["Perturbed"] == "image; audio"
        assert facts["Attacks"].startswith("apgd with 0.01, 0.03, 0.1, 0.2, 0.4, in units of the")
        assert facts["Attacks"].endswith("steps: 10, starts: 1; the first 60 test rows")
        assert "--attack_share=0.1" in facts["Choice"]
        assert "150 of them attacked by apgd" in facts["Choice"]
        assert (facts["Seeds"], facts["Device"], facts["Time"]) == ("0", "cpu", "1 h 2 min")
        assert facts["Gradients"] == "1,234,567 in attacks"
        assert facts["Versions"] == "python 3.11.7, jax 0.9.2"

    def test_every_figure_says_what_is_to_be_seen(self, page):
        # Two of worth a modality; severity of attack and corruption, and the trade-off.
        assert len(page.alternatives) == 2 * (2 + 3) + 2 * 2
        assert page.tags.count("svg") == len(page.alternatives) == page.tags.count("figure")
        (of_attacks, *_) = (x for x in page.alternatives if "strength of the worst attack" in x)
        assert "statistical from 95.0% at none to 5.0% at 0.4" in of_attacks
        assert "cascade c=0.8 t=1 from 94.0% at none to 64.0% at 0.4" in of_attacks
        assert "mean" not in of_attacks  # grey
        (of_worth, *_) = (x for x in page.alternatives if "Lines: worth in" in x)
        first, last = (100 * worth(chosen_for(s), s) for s in (0.02, 0.5))
        assert f"chosen rule from {first:.1f}% at 2% to {last:.1f}% at 50%" in of_worth

    def test_the_command_is_one_that_the_program_takes(self, page):
        command, _ = page.commands
        program, *arguments = shlex.split(command.replace("\\\n", " "))[2:]
        assert program == "experiments.robust_fusion"
        with flagsaver.flagsaver():
            assert parse_flags([program, *arguments]) == [program]
            assert flags.FLAGS.attack_share == finished.STATED
            assert flags.FLAGS.perturbations == ("clean", "missing", "apgd")
        assert "/home/somebody" not in command


class TestOfOtherRuns:
    def test_says_so_where_a_simple_rule_is_best(self, tmp_path):
        folder = finished.write_run(tmp_path / "run", modalities=("image",))
        lines = runs.read_rows(folder, "envelope.csv")
        for line in lines:
            if line["share"] == "0.1" and line["baseline"].startswith("drop"):
                line |= {"difference": "-0.1", "difference_low": "-0.12"}
                line |= {"difference_high": "-0.08"}
        finished.write_csv(folder / "envelope.csv", lines)
        (said,) = Page(write_report(folder)).findings
        best = 100 * (worth(chosen_for(0.1), 0.1) + 0.1)
        assert said.endswith(f"Best of these is dropping image, at {best:.1f}%.")

    def test_of_several_seeds_brackets_are_their_range(self, tmp_path):
        folder = finished.write_run(tmp_path / "run", seeds=(3, 4, 5), modalities=("image",))
        path = write_report(folder)
        page = Page(path)
        (said,) = page.findings
        mean = worth(chosen_for(0.1), 0.1, 0.01)
        assert f"worth {100 * mean:.1f}% [{100 * mean - 1:.1f}, {100 * mean + 1:.1f}]" in said
        assert "lowest and the highest of 3 seeds" in path.read_text()
        table = page.table("image perturbed, threat model known")
        assert table.column("rule") == ["mean", "statistical", "scaled", "drop_suspect", "cascade"]
        assert table.row("scaled")["clean"] == "94.0 [93.0, 95.0]"
        of_worth = page.table("image: the chosen rule for every share")
        assert of_worth.column("seed") == ["3"] * 3 + ["4"] * 3 + ["5"] * 3
        assert page.facts["Seeds"] == "3, 4 and 5"

    def test_where_nothing_was_chosen_it_says_what_to_doubt(self, tmp_path):
        folder = finished.write_run(tmp_path / "run", is_chosen=False, modalities=("image",))
        page = Page(write_report(folder))
        said, doubt = page.findings
        assert said == (
            "Of the rules measured with image perturbed, cascade c=0.8 t=1 has the best worst case,"
            " 76.0% [73.0, 79.0]; statistical fusion has 41.0% [38.0, 44.0]."
        )
        assert "--num_select" in doubt
        assert "scaled t=0.2" in page.table("image perturbed, threat model known").column("rule")

    def test_of_what_is_certified(self, tmp_path):
        page = Page(write_report(finished.write_certified(tmp_path / "run")))
        assert page.findings[0] == (
            "Whatever image says, cascade c=0.8 is right on 62.0% [60.0, 64.0] of test rows; on "
            "clean ones on 94.0% [92.0, 96.0]. Statistical fusion is right on 95.0% of clean rows, "
            "and on 0.0% whatever image says."
        )
        table = page.table("audio may say anything: certified accuracy")
        assert table.column("rule") == [
            *("statistical", "contaminated e=0.3 chosen", "contaminated e=0.7"),
            "cascade c=0.8 chosen",
        ]
        assert table.row("contaminated e=0.7")["certified"] == "60.0 [58.0, 62.0]"
        assert page.table("image moves: certified radii").rows == [
            ["statistical", "0.0", "0.012", "0.0", "25.0", "50.0"],
            ["contaminated e=0.7", "100.0", "∞", "", "", ""],
        ]
        assert page.facts["Time"] == "not recorded"

    def test_a_run_that_was_certified_later_has_both(self, tmp_path):
        folder = finished.write_run(tmp_path / "run", modalities=("image",))
        finished.write_certified(folder, modalities=("image",))
        page = Page(write_report(folder))
        assert len(page.findings) == 2
        programs = [command.split()[2] for command in page.commands]
        assert programs == [
            f"experiments.{x}" for x in ("robust_fusion", "certified", "make_report")
        ]

    def test_of_saved_predictions(self, tmp_path):
        page = Page(write_report(finished.write_stress(tmp_path / "run")))
        assert page.title == "Fusion of image and audio"
        assert page.findings[1] == (
            "Where audio fails in 10% of inputs, labelled rows chose contaminated e=0.3 t=1. It is "
            "worth 85.2% [80.0, 90.0] on these rows; in points, +3.2 against statistical fusion "
            "and +15.2 against dropping audio."
        )
        table = page.table("image fails: all rules")
        assert table.row("contaminated e=0.3 t=1")["silent"] == "60.0"
        assert table.row("robust γ=0.1")["anything"] == ""
        assert table.column("rule")[2] == "contaminated e=0.3 t=1 chosen for 10%, 50%"
        assert page.facts["Data"] == (
            "1440 labelled rows of 24 groups, predictions of image and audio"
        )
        (front, *_) = (text for text in page.alternatives if "Points: " in text)
        assert "without it 70.0% clean, 70.0% in the worst case" in front
        assert "robust" not in front


class TestNames:
    @pytest.mark.parametrize("write", [finished.write_run, finished.write_certified])
    def test_are_texts_whatever_they_look_like(self, write, tmp_path):
        plain, hostile = (
            Page(write_report(write(tmp_path / name, modalities=(modality, "audio"))))
            for name, modality in (("plain", "image"), ("hostile", HOSTILE))
        )
        assert hostile.tags == plain.tags
        assert any(HOSTILE in said for said in hostile.findings)
        assert any(HOSTILE in table.title for table in hostile.tables)
        assert any(HOSTILE in text for text in hostile.alternatives)

    def test_of_saved_predictions_and_data_sets(self, tmp_path):
        folder = finished.write_stress(tmp_path / "a", modalities=(HOSTILE, "audio"))
        page = Page(write_report(folder))
        assert page.title == f"Fusion of {HOSTILE} and audio"
        assert page.tags.count("script") == 1
        folder = finished.write_run(tmp_path / "<b>", dataset=HOSTILE)
        page = Page(write_report(folder))
        assert page.title == f"Robust fusion: {HOSTILE}"
        assert page.tags.count("script") == 1
        assert page.facts["Run"] == "<b>"


class TestComparison:
    def test_has_every_run_beside_the_others(self, tmp_path):
        folders = [
            finished.write_run(tmp_path / "first"),
            finished.write_run(tmp_path / "second", seeds=(1, 2), modalities=("image",)),
        ]
        path = tmp_path / "out" / "comparison.html"
        write_comparison(folders, path)
        page = Page(path)
        assert page.title == "Comparison of first and second"
        assert len(page.findings) == 2 + 1
        settings = page.table("Settings")
        assert settings.headers == ["setting", "first", "second"]
        assert settings.row("Seeds") == {"setting": "Seeds", "first": "0", "second": "1 and 2"}
        chosen = page.table("Chosen rules of every run")
        assert [row[:2] for row in chosen.rows] == [
            ["first", "image"],
            ["first", "audio"],
            ["second", "image"],
        ]
        assert chosen.rows[0][4] == shown(worth(chosen_for(0.1), 0.1))
        rules = page.table("image perturbed, threat model known")
        assert {row[0] for row in rules.rows} == {"first", "second"}
        assert sum("second: image" in text for text in page.alternatives) == 1

    def test_takes_runs_of_all_kinds_and_of_one_name(self, tmp_path):
        folders = [
            finished.write_certified(tmp_path / "a" / "run"),
            finished.write_stress(tmp_path / "b" / "run"),
            finished.write_run(tmp_path / "c" / "run", is_chosen=False),
        ]
        write_comparison(folders, tmp_path / "page.html")
        page = Page(tmp_path / "page.html")
        assert page.table("Settings").headers == ["setting", *map(str, folders)]
        assert page.table("Chosen rules of every run").column("run") == [str(folders[1])] * 2

    def test_of_one_run_is_its_report(self, folder, page, tmp_path):
        write_comparison([folder], tmp_path / "page.html")
        assert Page(tmp_path / "page.html").findings == page.findings


def error_of(*arguments):
    """The message with which the program ends."""
    values = flags.FlagValues()
    make_report.define_flags(values)
    with pytest.raises(SystemExit) as caught:
        make_report.main(parse_flags(["make_report", *map(str, arguments)], values), values)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix("error: ")


class TestWhatIsWrong:
    def test_with_flags(self, folder, tmp_path):
        output = f"--output={tmp_path}/page.html"
        for arguments, message in (
            ([output], "--workdirs is missing: name folders of finished runs"),
            ([f"--workdirs={folder}"], "--output is missing: name a file"),
            ([f"--workdirs={folder}", "--output=page.pdf"], "--output=page.pdf: name a file that"),
            ([f"--workdirs={tmp_path}/no", output], f"--workdirs={tmp_path}/no: no such folder"),
            ([f"--workdirs={folder},{tmp_path}", output], f"{tmp_path} has no results.csv, "),
            ([f"--workdir={folder}", output], "--workdir is no flag of this program"),
        ):
            assert error_of(*arguments).startswith(message)
        assert not [*tmp_path.iterdir()]

    @pytest.mark.parametrize(
        ("name", "damage_fn", "message"),
        [
            ("config.json", None, "config.json is missing: give the same command again"),
            ("summary.csv", None, "summary.csv is missing: "),
            ("config.json", lambda text: text[:-20], "config.json is damaged ("),
            ("config.json", lambda _: "[]", "config.json lacks flags, versions, device: "),
            ("results.csv", lambda text: text[:-9], "results.csv is damaged: line "),
            ("results.csv", lambda text: text.splitlines()[0], "results.csv has no line below its"),
            ("results.csv", lambda _: "", "results.csv has no column 'accuracy'"),
            ("results.csv", lambda text: text.replace("0.95", ""), "results.csv is damaged: line "),
            (
                "config.json",
                lambda text: text.replace('{"flags": {', '{"flags": 1, "a": {'),
                "conf",
            ),
            ("envelope.csv", lambda text: text.replace("0.5", "half"), "envelope.csv is damaged: "),
            (
                "summary.csv",
                lambda text: text.replace("worst_low", "low"),
                "summary.csv has no col",
            ),
        ],
    )
    def test_with_files(self, name, damage_fn, message, tmp_path):
        folder = finished.write_run(tmp_path / "run", modalities=("image",))
        path = folder / name
        if damage_fn is None:
            path.unlink()
        else:
            path.write_text(damage_fn(path.read_text()))
        said = error_of(f"--workdirs={folder}", f"--output={tmp_path}/page.html")
        assert said.startswith(f"{folder}/{message}")
        assert said.endswith("give the same command again, or leave the folder out")
        assert not (tmp_path / "page.html").exists()

    def test_with_chosen_rules(self, tmp_path):
        folder = finished.write_stress(tmp_path / "run")
        content = json.loads((folder / "chosen.json").read_text())
        first = content["chosen"][0]
        for changes in ({"rule": {"rule": "magic"}}, {"rule": None}, {"expected": "much"}):
            content["chosen"][0] = first | changes
            (folder / "chosen.json").write_text(json.dumps(content))
            said = error_of(f"--workdirs={folder}", f"--output={tmp_path}/page.html")
            assert said.startswith(f"{folder}/chosen.json has an entry that is not whole")
        (folder / "chosen.json").unlink()
        said = error_of(f"--workdirs={folder}", f"--output={tmp_path}/page.html")
        assert said.startswith(f"{folder}/chosen.json is missing")


def test_the_program_writes_a_page_from_any_folder(folder, tmp_path):
    found = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.make_report", f"--workdirs={folder}"),
            f"--output={tmp_path}/page.html",
        ],
        cwd=runs.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == f"wrote {tmp_path}/page.html\n"
    assert Page(tmp_path / "page.html").findings


def test_columns_are_those_that_are_written():
    written = {
        "results": flatten(make_row()),
        "summary": Summary._fields,
        "envelope": envelope.Line._fields,
        "certified": certified.Row._fields,
        "radii": radii.Row._fields,
    }
    for name, columns in written.items():
        names = {*columns, "method", *PARAMETERS}
        assert {*files.TEXTS[name], *files.NUMBERS[name]} <= names, name
