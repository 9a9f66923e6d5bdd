import csv
import json

import numpy as np
import pytest
from PIL import Image

from experiments.reports import robust_fusion
from experiments.reports.figures import write_curves, write_trade_off
from experiments.reports.tables import make_comparison, make_tables
from jacfuse_jax import fusion
from jacfuse_jax.evaluation.measure import ENSEMBLE, WORST_ATTACK, flatten
from jacfuse_jax.evaluation.selection import BestRule, Score
from jacfuse_jax.evaluation.shuffled import Shuffled
from jacfuse_jax.evaluation.summary import Comparison, summarise
from jacfuse_jax.programs.files import write_atomically
from tests.evaluation import tiny
from tests.evaluation.tiny import STATISTICAL, make_row, robust, scaled

MEAN = fusion.Mean()
GROUPS = np.arange(8, dtype=np.int32)


def attacked(method, accuracies, *, changes=None, **kinds):
    """Rows of the worst case, and of other kinds of targets, at severities 1 to 5."""
    rows = []
    for severity, accuracy in enumerate(accuracies, start=1):
        common = {"severity": severity, "num_examples": 4, **(changes or {})}
        of_kinds = [("pgd", ENSEMBLE, accuracy), (WORST_ATTACK, ENSEMBLE, accuracy)]
        of_kinds += [("pgd", target, shares[severity - 1]) for target, shares in kinds.items()]
        for perturbation, target, share in of_kinds:
            row = {"perturbation": perturbation, "attack_target": target, "accuracy": share}
            rows.append(make_row(method, **{**row, **common}))
    return rows


ROWS = [
    make_row(MEAN),
    make_row(robust(1e-6), accuracy=1.0),
    make_row(MEAN, perturbation="missing", severity=1, accuracy=0.5),
    make_row(MEAN, perturbation="missing", severity=2, accuracy=0.25),
    *attacked(MEAN, (0.5, 0.25, 0, 0, 0), unimodal=(0.75, 0.75, 0.5, 0.5, 0.25), mean=[0.5] * 5),
]
OUTCOMES = {
    ("known", "image", WORST_ATTACK, severity, MEAN): np.arange(4) < round(4 * accuracy)
    for severity, accuracy in enumerate((0.5, 0.25, 0, 0, 0), start=1)
}


def summaries_of(rows, outcomes=OUTCOMES):
    return summarise(rows, outcomes, GROUPS)


def cells_of(table):
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


class TestTables:
    def test_says_what_is_perturbed_and_shows_means_and_the_worst_case(self):
        text = make_tables(ROWS, summaries_of(ROWS))
        assert text.startswith(
            "digits, image perturbed, threat model known "
            "(accuracy in %; means over severities; 8 rows, 4 attacked)\n\n|"
        )
        header, _, of_mean, of_robust = cells_of(text)
        epsilons = [f"ε = {e}" for e in ("0.01", "0.03", "0.1", "0.2", "0.4")]
        assert header == [
            *("method", "clean", "missing", "transfer", "adaptive", "worst case"),
            *("certified", *epsilons),
        ]
        assert of_mean[:5] == ["mean", "75.0", "37.5", "55.0", "50.0"]
        (line,) = (x for x in summaries_of(ROWS) if x.rule == MEAN)
        assert line.worst_low is not None
        assert line.worst_high is not None
        assert of_mean[5] == f"15.0 [{100 * line.worst_low:.1f}, {100 * line.worst_high:.1f}]"
        assert of_mean[6:] == ["", "50.0", "25.0", "0.0", "0.0", "0.0"]
        assert of_robust == ["robust γ=1e-06", "100.0", *[""] * 10]

    def test_the_certificate_stands_beside_the_worst_case(self):
        certified = [row._replace(certified=0.125) if row.attack_target else row for row in ROWS]
        header, _, of_mean, _ = cells_of(make_tables(certified, summaries_of(certified)))
        assert dict(zip(header, of_mean, strict=True))["certified"] == "12.5"

    def test_many_corruptions_share_a_column(self):
        names = ("missing", "gaussian_noise", "bias", "occlusion")
        rows = [make_row(MEAN)] + [
            make_row(MEAN, perturbation=name, severity=1, accuracy=index / 4)
            for index, name in enumerate(names)
        ]
        header, _, of_mean = cells_of(make_tables(rows, summaries_of(rows)))
        assert header == ["method", "clean", "corruptions"]
        assert of_mean == ["mean", "75.0", "37.5"]
        assert "8 rows, 0 attacked" in make_tables(rows, summaries_of(rows))

    def test_attacks_with_other_budgets_have_columns_of_their_own(self):
        changes = {"perturbation": "pgd_l2"}
        on_mean = make_row(MEAN, severity=1, attack_target="mean", accuracy=1.0, **changes)
        rows = [*ROWS, *attacked(MEAN, [0.5] * 5, changes=changes), on_mean]
        header, *_, of_mean, _ = cells_of(make_tables(rows, summaries_of(rows)))
        assert header[-1] == "pgd_l2"
        assert of_mean[-1] == "50.0"

    def test_counts_rows_whatever_is_perturbed_and_in_whatever_order(self):
        first = make_row(
            MEAN, perturbation="pgd_l2", severity=1, attack_target=ENSEMBLE, num_examples=4
        )
        rows = [first, make_row(MEAN)]
        assert "; 8 rows, 4 attacked)" in make_tables(rows, summaries_of(rows, {}))

    def test_only_chosen_parameters_are_shown(self):
        rows = [
            make_row(MEAN),
            make_row(scaled(0.1), selected=False),
            make_row(scaled(0.2), selected=True),
        ]
        *_, first, second = cells_of(make_tables(rows, summaries_of(rows)))
        assert [first[0], second[0]] == ["mean", "scaled t=0.2"]

    def test_every_threat_model_and_modality_has_a_table(self):
        rows = [
            make_row(threat_model=model, perturbed=name)
            for model, name in (("known", "image"), ("known", "audio"), ("both", "image+audio"))
        ]
        tables = make_tables(rows, summaries_of(rows)).split("\n\n")[::2]
        assert [table.partition(" (")[0] for table in tables] == [
            "digits, image perturbed, threat model known",
            "digits, audio perturbed, threat model known",
            "digits, image+audio perturbed, threat model both",
        ]

    def test_of_several_seeds_mean_and_deviation_of_what_was_chosen_in_each(self):
        rows = []
        for seed, scale, accuracy in ((0, 0.1, 0.5), (1, 0.2, 0.6), (2, 0.2, 0.9)):
            rows += [
                make_row(MEAN, seed=seed, accuracy=accuracy),
                make_row(scaled(scale), seed=seed, accuracy=accuracy, selected=True),
                make_row(
                    scaled(scale),
                    seed=seed,
                    perturbation="missing",
                    severity=1,
                    selected=True,
                    accuracy=accuracy / 2,
                ),
                make_row(scaled(0.9), seed=seed, accuracy=1.0, selected=False),
            ]
        summaries = [
            line for seed in range(3) for line in summaries_of([r for r in rows if r.seed == seed])
        ]
        _, _, of_mean, of_scaled = cells_of(make_tables(rows, summaries))
        # Mean 2/3 and standard deviation sqrt(13/300) of 0.5, 0.6, 0.9.
        assert of_mean == ["mean", "66.7 ± 20.8", ""]
        assert of_scaled == ["scaled", "66.7 ± 20.8", "33.3 ± 10.4"]

    def test_comparison_is_in_points_with_its_sign(self):
        line = Comparison(
            *(0, "known", "image", WORST_ATTACK, None, robust(), scaled()),
            *(-0.0123, -0.05, 0.021),
        )
        others = [
            line._replace(rule=MEAN),  # not a rule with parameters
            line._replace(perturbation="missing"),
            line._replace(severity=3, difference=0.5),
        ]
        header, _, first, second = cells_of(make_comparison([line, *others]))
        assert header[-1] == "difference in points, paired 95% interval"
        assert first[3:] == [
            *(WORST_ATTACK, "mean", "robust γ=0.1", "scaled t=0.2", "-1.2 [-5.0, +2.1]")
        ]
        assert second[4] == "3"
        assert second[-1].startswith("+50.0 [")

    def test_comparison_is_of_a_defender_who_knows_or_nothing(self):
        known = Comparison(
            *(0, "known", "image", "clean", 0, robust(), scaled()),
            *(0.01, -0.05, 0.021),
        )
        unknown = known._replace(threat_model="unknown")
        _, _, *body = cells_of(make_comparison([unknown, known]))
        assert [cells[0] for cells in body] == ["known"]
        assert make_comparison([unknown]) == ""


def is_drawn(path):
    with Image.open(path) as image:
        image.load()
        pixels = np.asarray(image.convert("RGB"))
    # Marks and lines in several colours, not only text and axes.
    colours = np.unique(pixels.reshape(-1, 3), axis=0).astype(int)
    return pixels.shape[0] > 300 and np.ptp(colours, axis=1).max() > 80 and pixels.std() > 10


def outcomes_of(rows):
    return {
        ("known", r.perturbed, r.perturbation, r.severity, r.rule): (
            np.arange(r.num_examples) < round(r.num_examples * r.accuracy)
        )
        for r in rows
    }


FIGURE_ROWS = [
    row
    for perturbed in ("image", "audio")
    for method in (MEAN, STATISTICAL, scaled(), robust())
    for row in (
        make_row(method, perturbed=perturbed, selected=True if method == scaled() else None),
        *attacked(method, (1, 0.75, 0.5, 0.25, 0), changes={"perturbed": perturbed}),
    )
]


class TestFigures:
    def test_curves_are_drawn_where_something_is_perturbed(self, tmp_path):
        rows = [
            *FIGURE_ROWS,
            make_row(perturbed="text"),  # clean alone
            make_row(threat_model="either", perturbed="image or audio"),
            make_row(
                threat_model="either",
                perturbed="image or audio",
                severity=1,
                perturbation="missing",
            ),
        ]
        paths = write_curves(rows, tmp_path / "figures")
        assert [path.name for path in paths] == [
            "accuracy_known_image.png",
            "accuracy_known_audio.png",
            "accuracy_either_image_or_audio.png",
        ]
        assert all(is_drawn(path) for path in paths)

    def test_trade_off_is_drawn_where_the_defender_knows(self, tmp_path):
        summaries = summaries_of(FIGURE_ROWS, outcomes_of(FIGURE_ROWS))
        (path,) = write_trade_off(summaries, tmp_path)
        assert path == tmp_path / "trade_off.png"
        assert is_drawn(path)
        unknown = [line._replace(threat_model="unknown") for line in summaries]
        assert write_trade_off(unknown, tmp_path) == []
        assert write_trade_off(summaries_of([make_row()], {}), tmp_path) == []

    @pytest.mark.parametrize("names", [("missing",), ("missing", "bias", "contrast", "pgd")])
    def test_the_vertical_axis_says_what_it_shows(self, names, tmp_path, kept_figures):
        rows = [make_row(MEAN)] + [
            make_row(MEAN, perturbation=name, severity=1, accuracy=0.5) for name in names
        ]
        write_curves(rows, tmp_path)
        (figure,) = kept_figures
        shown = [axis for axis in figure.axes if axis.get_visible()]
        labels = {axis.get_title(): axis.get_ylabel() for axis in shown}
        assert labels == {n: "accuracy" if n in names[::3] else "" for n in names}

    def test_curves_are_means_over_seeds_in_the_worst_case_of_chosen_parameters(
        self, tmp_path, kept_figures
    ):
        rows = []
        for seed, clean in ((0, 0.9), (1, 0.7)):
            accuracies = [clean - 0.1 * severity for severity in range(1, 6)]
            rows += [
                make_row(MEAN, seed=seed, accuracy=clean),
                *attacked(MEAN, accuracies, changes={"seed": seed}, unimodal=[1.0] * 5),
                make_row(scaled(), seed=seed, accuracy=0.1, selected=False),
                *attacked(scaled(), accuracies, changes={"seed": seed, "selected": False}),
            ]
        write_curves(rows, tmp_path)
        (figure,) = kept_figures
        assert {axis.get_title() for axis in figure.axes} == {"pgd", "worst attack"}
        for axis in figure.axes:
            (line,) = axis.get_lines()
            assert line.get_label() == "mean"
            np.testing.assert_allclose(line.get_xdata(), range(6))
            np.testing.assert_allclose(line.get_ydata(), 0.8 - 0.1 * np.arange(6))

    def test_every_rule_has_a_colour_of_its_own(self, tmp_path, kept_figures):
        rows = [
            make_row(tiny.make_rule(name), perturbation=perturbation, severity=severity)
            for name in tiny.NAMES[1:]
            for perturbation, severity in (("clean", 0), ("missing", 1), ("bias", 1), ("pgd", 1))
        ]
        write_curves(rows, tmp_path)
        (figure,) = kept_figures
        for axis in figure.axes:
            colours = [line.get_color() for line in axis.get_lines()]
            assert len(set(colours)) == len(colours) == len(tiny.NAMES[1:])

    def test_trade_off_is_worst_case_against_clean_in_percent(self, tmp_path, kept_figures):
        summaries = summaries_of(FIGURE_ROWS, outcomes_of(FIGURE_ROWS))
        write_trade_off(summaries, tmp_path)
        (figure,) = kept_figures
        assert [axis.get_title() for axis in figure.axes] == ["image perturbed", "audio perturbed"]
        for axis in figure.axes:
            points = {x: y for line in axis.get_lines() for x, y in line.get_xydata()}
            assert points == pytest.approx({75.0: 50.0})  # all methods are alike
            stars = [line for line in axis.get_lines() if line.get_marker() == "*"]
            assert len(stars) == 1  # of the scaled method
            assert axis.get_xlim() == pytest.approx((70, 75.25))
            assert "further left" not in axis.get_xlabel()
        assert figure.axes[0].get_ylabel() == "worst-case accuracy in %"

    def test_trade_off_names_what_lies_outside(self, tmp_path, kept_figures):
        summaries = summaries_of(FIGURE_ROWS, outcomes_of(FIGURE_ROWS))
        moved = [line._replace(clean=0.69) if line.rule == MEAN else line for line in summaries]
        write_trade_off(moved, tmp_path)
        (figure,) = kept_figures
        for axis in figure.axes:
            *_, last = axis.get_xlabel().splitlines()
            assert last == "further left (clean, worst): mean (69.0, 50.0)"


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_leaves_what_does_not_apply_empty(tmp_path):
    robust_fusion.write_csv([flatten(row) for row in ROWS], tmp_path / "results.csv")
    first, second, *_ = read_csv(tmp_path / "results.csv")
    assert first["gamma"] == first["scale"] == first["attack_target"] == first["selected"] == ""
    assert second["gamma"] == "1e-06"
    assert (first["nll"], first["accuracy"], first["ece"]) == ("0.333333", "0.750000", "0.000000")
    assert first["num_examples"] == "8"
    names = list(first)
    assert names[names.index("ece") + 1] == "macro_accuracy"
    assert first["macro_accuracy"] == "0.625000"


def test_all_files_of_several_seeds_are_written_and_named(tmp_path, capsys):
    findings = {}
    for seed in (3, 4):
        rows = [
            row._replace(seed=seed, selected=True if row.rule == scaled() else None)
            for row in FIGURE_ROWS
        ]
        scores = [Score("image", scaled(), 0.5, None, True)]
        tested = [Shuffled(seed, "image", robust(), 0.5, 0.4, 0.1, 0.05, 0.15)]
        baselines = {STATISTICAL: 0.4, scaled(): 0.5}
        best = [BestRule("image", 0.1, scaled(), 0.5, 0.5, 0.5, 0.4, 0.6, baselines, 7)]
        findings[seed] = robust_fusion.Findings(
            rows, outcomes_of(rows), scores, best, tested, GROUPS, 7
        )
    paths = robust_fusion.write(findings, tmp_path, note="How it was.")
    files = {"results.csv", "summary.csv", "comparison.csv", "selection.csv", "report.md"}
    files |= {"envelope.csv", "shuffled.csv", "rules.json"}
    figures = {"accuracy_known_image.png", "accuracy_known_audio.png", "trade_off.png"}
    assert {str(path.relative_to(tmp_path)) for path in paths} == {
        *files,
        *(f"figures/{name}" for name in figures),
    }
    assert {path for path in tmp_path.rglob("*.*") if path.is_file()} == set(paths)
    for name in ("results", "summary", "comparison", "selection", "envelope", "shuffled"):
        assert {row["seed"] for row in read_csv(tmp_path / f"{name}.csv")} == {"3", "4"}
    assert len(read_csv(tmp_path / "results.csv")) == 2 * len(FIGURE_ROWS)
    selection = read_csv(tmp_path / "selection.csv")
    assert selection[0]["robust"] == ""
    rules = json.loads((tmp_path / "rules.json").read_text())
    assert rules["schema"] == 1
    assert [line.pop("rule") for line in rules["rules"]] == [json.loads(scaled().to_json())] * 2
    assert rules["rules"] == [
        {"seed": seed, "believed": "image", "selected": True, "best_for_shares": [0.1]}
        for seed in (3, 4)
    ]
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("How it was.\n\n")
    assert "75.0 ± 0.0" in text
    assert "Against globally scaled fusion" in text
    assert "| 50.0          | 40.0            | +10.0 [+5.0, +15.0] |" in text
    assert text in capsys.readouterr().out


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, "old")

    def interrupted(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupted)
    assert path.read_text() == "old"
