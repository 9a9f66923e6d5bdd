import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from experiments import extra_modality
from experiments.measuring import extra_modality as measuring
from experiments.measuring.extra_modality import Row
from tests.experiments import runs


def test_logits_of_the_gaussian_model_are_its_posterior():
    rng = np.random.default_rng(0)
    means = rng.normal(size=(4, 3))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    x = rng.normal(size=(5, 3))
    logits = measuring._gaussian_logits(jnp.asarray(x), jnp.asarray(means), 2.5)
    densities = [scipy.stats.multivariate_normal(2.5 * mean).logpdf(x) for mean in means]
    expected = scipy.special.softmax(np.stack(densities, axis=-1), axis=-1)
    np.testing.assert_allclose(scipy.special.softmax(logits, axis=-1), expected, rtol=1e-12)


@pytest.mark.slow
def test_a_run_tells_bias_and_sensitivity_for_every_strength(tmp_path, kept_figures):
    flags = (*runs.SMALL, "--gammas=0.5,0.01", "--perturbed=upper")
    stdout, _ = runs.run(tmp_path, *flags, binary=extra_modality)
    rows = runs.read_rows(tmp_path, "extra_modality.csv")
    assert list(rows[0]) == list(Row._fields)
    parts = (("gaussian", "x", 8), ("digits", "upper", 6))
    tables = runs.read_tables(stdout)
    for (source, perturbed, count), table, figure in zip(parts, tables, kept_figures, strict=True):
        name = f"extra_modality_{source}_{perturbed}.png"
        assert (tmp_path / "figures" / name).stat().st_size > 10_000
        chosen = [row for row in rows if row["source"] == source]
        strengths = [float(strength) for strength in dict.fromkeys(r["strength"] for r in chosen)]
        assert len(strengths) == count
        assert strengths == sorted(strengths)
        methods = list(dict.fromkeys((row["method"], row["gamma"]) for row in chosen))
        assert len(chosen) == len(methods) * count
        for row in chosen:
            if row["method"] != "robust":
                assert row["bias"] == row["jacobian"] == ""
                continue
            assert 0 < float(row["bias"]) <= float(row["bias_bound"])
            gamma = float(row["gamma"])
            bound = np.sqrt(9 * gamma / (1 - gamma)) / 2
            np.testing.assert_allclose(float(row["a_priori_bound"]), bound, rtol=1e-5)
        for cells, row in zip(table[1:], chosen, strict=True):
            check_cells(cells, row)
        check_figure(figure, chosen, methods, strengths)
        if source == "gaussian":
            self_check_gaussian(chosen)


SHOWN = {  # factor and digits of a column
    "clean": (100, 1),
    "attacked": (100, 1),
    "bias": (1, 3),
    "bias_bound": (1, 2),
    "jacobian": (1, 3),
    "total_jacobian": (1, 3),
    "a_priori_bound": (1, 3),
    "above_bound": (100, 1),
}


def check_cells(cells, row):
    """The table says what the file says, to the digits shown."""
    gamma = f" γ={row['gamma']}" if row["gamma"] else ""
    assert cells[:2] == [f"{float(row['strength']):g}", row["method"] + gamma]
    for cell, (name, (factor, digits)) in zip(cells[2:], SHOWN.items(), strict=True):
        if row[name]:
            assert len(cell.partition(".")[2]) == digits
            assert float(cell) == pytest.approx(factor * float(row[name]), abs=0.51 / 10**digits)
        else:
            assert cell == ""


def check_figure(figure, rows, methods, strengths):
    """A line of every method in each panel, those of robust fusion with their bounds."""
    robust = [method for method in methods if method[0] == "robust"]
    columns = [[("clean", 100)], [("attacked", 100)], [("bias", 1), ("bias_bound", 1)]]
    columns.append([("jacobian", 1), ("total_jacobian", 1), ("a_priori_bound", 1)])
    shown = [methods, methods, robust, robust]
    for axis, of_panel, names in zip(figure.axes, shown, columns, strict=True):
        expected = [
            [factor * float(r[name]) for r in rows if (r["method"], r["gamma"]) == method]
            for method in of_panel
            for name, factor in names
        ]
        lines = axis.get_lines()
        np.testing.assert_allclose([line.get_ydata() for line in lines], expected, rtol=1e-5)
        assert all(list(line.get_xdata()) == pytest.approx(strengths) for line in lines)


def self_check_gaussian(rows):
    """What must hold where everything is known."""
    by_method = {}
    for row in rows:
        by_method.setdefault((row["method"], row["gamma"]), []).append(row)
    exact = [float(row["clean"]) for row in by_method["statistical", ""]]
    extra = [float(row["clean"]) for row in by_method["extra alone", ""]]
    alone = [float(row["clean"]) for row in by_method["perturbed alone", ""]]
    assert len(set(alone)) == 1
    assert abs(extra[0] - 0.1) < 0.03  # without strength it says nothing
    assert exact[0] == alone[0]
    assert np.all(np.diff(exact) > 0)
    for gamma in ("0.5", "0.01"):
        robust = [float(row["clean"]) for row in by_method["robust", gamma]]
        assert np.all(np.array(robust) <= np.array(exact) + 0.005)  # nothing beats the posterior
        biases = [float(row["bias"]) for row in by_method["robust", gamma]]
        assert np.all(np.diff(biases) < 0)
    assert all(float(r["attacked"]) < float(r["clean"]) for r in by_method["statistical", ""])
