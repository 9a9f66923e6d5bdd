import numpy as np
import pytest

from experiments import certified
from jacfuse_jax.evaluation import certified as certifying
from jacfuse_jax.evaluation import radii
from jacfuse_jax.evaluation.certified import Row
from jacfuse_jax.fusion import Cascade, Contaminated, Statistical
from tests.experiments import runs
from tests.experiments.read_page import Page

FLAGS = (
    *runs.SMALL,
    "--num_epochs=12",
    "--contaminations=0.9,0.97",
    "--confidences=0.4,0.6",
    "--attack_share=0.3",
)


@pytest.mark.slow
def test_a_run_writes_what_is_certified(tmp_path, kept_figures):
    stdout, _ = runs.run(tmp_path / "run", *FLAGS, binary=certified)
    rows = runs.read_rows(tmp_path / "run", "certified.csv")
    assert list(rows[0]) == list(Row._fields)
    for corrupted in ("upper", "lower"):
        chosen = [row for row in rows if row["corrupted"] == corrupted]
        assert [(r["method"], r["contamination"], r["confidence"]) for r in chosen] == [
            ("statistical", "", ""),
            ("contaminated", "0.9", ""),
            ("contaminated", "0.97", ""),
            ("cascade", "", "0.4"),
            ("cascade", "", "0.6"),
        ]
        for method in ("statistical", "contaminated", "cascade"):
            marks = [r["selected"] for r in chosen if r["method"] == method]
            assert marks.count("True") == 1
        values = np.array([[float(r["clean"]), float(r["certified"])] for r in chosen])
        assert (values[:, 1] <= values[:, 0]).all()
        assert values[0, 1] == 0  # statistical fusion
        assert values[2, 1] > values[1, 1] > 0  # more contamination, more certified
        assert values[3, 1] > values[4, 1] > 0  # less confidence needed, more certified
        for row in chosen:
            for name in ("clean", "certified"):
                low, mid, high = (float(row[name + end]) for end in ("_low", "", "_high"))
                assert low <= mid <= high
    found = runs.read_rows(tmp_path / "run", "radii.csv")
    check_radii(found, rows)
    table, of_radii = runs.read_tables(stdout)
    assert table[1:] == [cells_of(row) for row in rows]
    check_table_of_radii(of_radii, found)
    figure, *_ = kept_figures
    check_figure(figure, rows)
    assert (tmp_path / "run" / "figures" / "certified.png").stat().st_size > 10_000
    assert stdout.endswith(f"wrote {tmp_path / 'run' / 'report.html'}\n")
    page = Page(tmp_path / "run" / "report.html")
    assert [row[0] for row in page.table("upper may say anything: certified accuracy").rows] == [
        cells_of(row)[1].replace(
            " *", " chosen" if row["contamination"] or row["confidence"] else ""
        )
        for row in rows
        if row["corrupted"] == "upper"
    ]


def cells_of(row):
    """What the table says of a row of the file."""
    label = row["method"]
    if row["contamination"]:
        label += f" e={row['contamination']}"
    if row["confidence"]:
        label += f" c={row['confidence']}"
    clean, mid, low, high = (
        f"{100 * float(row[name]):.1f}"
        for name in ("clean", "certified", "certified_low", "certified_high")
    )
    star = " *" if row["selected"] == "True" else ""
    return [row["corrupted"], label + star, clean, f"{mid} [{low}, {high}]"]


def check_figure(figure, rows):
    """A panel for every modality, a line for every method, a star for what was chosen."""
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["upper may say anything", "lower may say anything"]
    for axis, corrupted in zip(figure.axes, ("upper", "lower"), strict=True):
        lines = {line.get_label(): line for line in axis.get_lines() if line.get_marker() != "*"}
        assert list(lines) == ["statistical", "contaminated", "cascade"]
        stars = [tuple(xy) for line in axis.get_lines()[1::2] for xy in line.get_xydata()]
        expected_stars = []
        for method, line in lines.items():
            points = [
                (100 * float(row["clean"]), 100 * float(row["certified"]), row["selected"])
                for row in rows
                if (row["corrupted"], row["method"]) == (corrupted, method)
            ]
            points.sort(key=lambda point: point[1])
            np.testing.assert_allclose(line.get_xydata(), [p[:2] for p in points], rtol=1e-5)
            expected_stars += [point[:2] for point in points if point[2] == "True"]
        np.testing.assert_allclose(stars, expected_stars, rtol=1e-5)


def check_radii(found, certified_rows):
    assert list(found[0]) == list(radii.Row._fields)
    chosen = {
        row["corrupted"]: row["contamination"]
        for row in certified_rows
        if row["method"] == "contaminated" and row["selected"] == "True"
    }
    assert [(r["corrupted"], r["method"], r["contamination"], r["gamma"]) for r in found] == [
        (modality, *rule)
        for modality in ("upper", "lower")
        for rule in (
            ("statistical", "", ""),
            ("contaminated", chosen[modality], ""),
            ("robust", "", "0.1"),
        )
    ]
    for row in found:
        assert (float(row["unlimited"]) > 0) == (row["method"] == "contaminated")
        assert 0 < float(row["median"]) < 1
        assert 1 < float(row["lipschitz"]) < 1000
        assert row["num_examples"] == "20"
        shares = [float(row[f"changed_{factor}"]) for factor in (1, 10, 100)]
        assert shares[0] == 0
    assert max(float(row["changed_100"]) for row in found) > 0.3


def check_table_of_radii(table, rows):
    symbols = {"contamination": "e", "gamma": "γ"}
    for cells, row in zip(table[1:], rows, strict=True):
        names = ("unlimited", "changed_1", "changed_10", "changed_100")
        unlimited, *changed = (f"{100 * float(row[name]):.1f}" for name in names)
        label = row["method"] + "".join(f" {s}={row[n]}" for n, s in symbols.items() if row[n])
        median = f"{float(row['median']):.2g}"
        assert cells == [row["corrupted"], label, unlimited, median, *changed]


def make_outcomes(**counts):
    """Of a hundred rows, so many right and so many certified."""
    return {
        rule: certifying.Outcome(np.arange(100) < clean, np.arange(100) < sure)
        for rule, (clean, sure) in counts.items()
    }


def test_what_validation_data_choose():
    rules = {
        "statistical": Statistical(),
        "little": Contaminated(0.1),
        "more": Contaminated(0.5),
        "most": Contaminated(0.9),
        "drop": Cascade(0.0),
    }
    found = make_outcomes(
        statistical=(95, 0), little=(93, 20), more=(90, 60), most=(80, 79), drop=(70, 70)
    )
    outcomes = {rules[name]: outcome for name, outcome in found.items()}
    contaminated = [Contaminated(0.1), Contaminated(0.5), Contaminated(0.9)]
    groups = np.arange(100)
    chosen = {
        share: certifying.choose(contaminated, outcomes, share, groups)
        for share in (0.0, 0.05, 0.1, 0.5, 0.9)
    }
    # Of a share of 5% they are worth 89.4, 88.5 and 80.0 points; at 50% 56.5, 75.0 and 79.5, of
    # which a hundred rows do not tell the last two apart; at 90% 27.3, 63.0 and 79.1.
    assert chosen == {
        0.0: Contaminated(0.1),
        0.05: Contaminated(0.1),
        0.1: Contaminated(0.1),
        0.5: Contaminated(0.5),
        0.9: Contaminated(0.9),
    }
    # What is worth less than fusing everything, or than dropping, is chosen where nothing is more.
    weak = {**outcomes, Cascade(0.9): make_outcomes(a=(70, 0))["a"]}
    assert certifying.choose([Cascade(0.9)], weak, 0.5, groups) == Cascade(0.9)
    tied = {**outcomes, Cascade(0.9): make_outcomes(a=(71, 68))["a"]}
    assert certifying.choose([Cascade(0.9), Cascade(0.0)], tied, 0.9, groups) == Cascade(0.0)
