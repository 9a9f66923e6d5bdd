import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from experiments import extra_modality
from experiments.extra_modality import Row
from tests.experiments import runs


def test_logits_of_the_gaussian_model_are_its_posterior():
    rng = np.random.default_rng(0)
    means = rng.normal(size=(4, 3))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    x = rng.normal(size=(5, 3))
    logits = extra_modality._gaussian_logits(jnp.asarray(x), jnp.asarray(means), 2.5)
    densities = [scipy.stats.multivariate_normal(2.5 * mean).logpdf(x) for mean in means]
    expected = scipy.special.softmax(np.stack(densities, axis=-1), axis=-1)
    np.testing.assert_allclose(scipy.special.softmax(logits, axis=-1), expected, rtol=1e-12)


@pytest.mark.slow
def test_a_run_tells_bias_and_sensitivity_for_every_strength(tmp_path):
    process = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.extra_modality", *runs.SMALL),
            *("--gammas=0.5,0.01", "--perturbed=upper", f"--workdir={tmp_path / 'run'}"),
        ],
        cwd=runs.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    rows = runs.read_rows(tmp_path / "run", "extra_modality.csv")
    assert list(rows[0]) == list(Row._fields)
    for source, perturbed, count in (("gaussian", "x", 8), ("digits", "upper", 6)):
        name = f"extra_modality_{source}_{perturbed}.png"
        assert (tmp_path / "run" / "figures" / name).stat().st_size > 10_000
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
        if source == "gaussian":
            self_check_gaussian(chosen)


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
