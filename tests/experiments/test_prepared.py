from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import datasets
from experiments.run import prepared
from jacfuse_jax.evaluation.rows import make_rows
from jacfuse_jax.evaluation.subspaces import residual
from jacfuse_jax.programs import InputError
from tests.evaluation import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small data set, and models that saw it once."""
    dataset = datasets.load("digits", data_dir=Path("unused"), num_train=100, num_eval=50)
    models = prepared.train_models(
        dataset,
        ["statistical"],
        num_epochs=1,
        batch_size=8,
        weights={},
        seed=0,
        folder=tmp_path_factory.mktemp("trained"),
    )
    return dataset, models


def test_models_know_what_training_inputs_are_like(trained):
    dataset, models = trained
    for modality in dataset.modalities:
        x = np.asarray(dataset.splits["train"][modality], np.float64)
        assert models.valid_ranges[modality] == (x.min(), x.max())
        np.testing.assert_allclose(models.fill_values[modality], x.mean(axis=0), atol=1e-7)
        np.testing.assert_allclose(models.stddevs[modality], [x.std()], rtol=1e-6)


def test_evidence_holds_the_mean_of_the_squared_jacobians(trained):
    dataset, models = trained
    validation = dataset.splits["validation"]
    rows = make_rows(models, validation, batch_size=8, with_grams=False)
    outputs = rows.outputs["standard"]
    log_probs = sum(jax.nn.log_softmax(np.asarray(o.logits, np.float64)) for o in outputs.values())
    counts = np.bincount(dataset.splits["train"]["label"], minlength=10)
    probs = np.asarray(jax.nn.softmax(log_probs - np.log(counts / counts.sum())[None]))
    jac = [np.diag(p) - np.outer(p, p) for p in probs]
    expected = np.mean([j @ j for j in jac], axis=0)
    actual = models.evidence.mean_squared_jacobian
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_input_grams_that_fill_the_memory_are_refused(monkeypatch):
    models = tiny.make_models()
    monkeypatch.setattr(prepared, "_MAX_GRAMS", 2000)
    with pytest.raises(InputError, match="--jacobian=input takes .* GiB .* 8 rows .*--num_eval"):
        prepared.check_grams(models, 8)
    prepared.check_grams(models, 3)
    for num_rows, fits in ((8, False), (3, True)):
        grams = tiny.make_rows(models, num_rows, with_grams=True).grams
        assert all((gram.nbytes <= 2000) == fits for gram in grams.values())


class TestSubspaces:
    RNG = np.random.default_rng(0)
    # Three directions hold all but little of the variance.
    TRAIN = RNG.normal(size=(300, 3)) @ RNG.normal(size=(3, 20)) + 0.05 * RNG.normal(size=(300, 20))
    VALIDATION = TRAIN[::-1] + 0.05 * RNG.normal(size=(300, 20))

    def test_are_the_fewest_leading_components_with_95_percent_of_the_variance(self):
        subspace = prepared.fit_subspace(
            self.TRAIN.reshape(300, 4, 5, 1), self.VALIDATION.reshape(300, 4, 5, 1)
        )
        centered = self.TRAIN - self.TRAIN.mean(axis=0)
        values, directions = np.linalg.svd(centered, full_matrices=False)[1:]
        rank = np.searchsorted(np.cumsum(values**2) / np.sum(values**2), 0.95) + 1
        basis = np.asarray(subspace.basis, float)
        assert basis.shape == (20, rank)
        expected = directions[:rank].T @ directions[:rank]
        np.testing.assert_allclose(basis @ basis.T, expected, atol=1e-3)

    def test_let_99_percent_of_the_validation_rows_pass(self):
        subspace = prepared.fit_subspace(self.TRAIN, self.VALIDATION)
        passes = np.asarray(residual(subspace, jnp.asarray(self.VALIDATION, jnp.float32))) <= 1
        assert passes.sum() == 297

    def test_of_rows_that_lie_in_it_rounding_passes(self):
        flat = self.RNG.normal(size=(50, 2)) @ self.RNG.normal(size=(2, 20))
        subspace = prepared.fit_subspace(flat[:40], flat[40:])
        assert np.asarray(residual(subspace, jnp.asarray(flat[40:], jnp.float32))).max() < 0.5
        assert subspace.threshold < 0.01
