from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines import datasets
from experiments.run import prepared
from jacfuse_jax.evaluation.rows import make_rows
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
