from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines import datasets
from experiments import prepared
from experiments.config import ConfigError
from tests.experiments import tiny


def test_evidence_holds_the_mean_of_the_squared_jacobians(tmp_path):
    dataset = datasets.load("digits", data_dir=Path("unused"), num_train=100, num_eval=50)
    config = tiny.make_config(methods=("statistical",), num_epochs=1)
    models = prepared.train_models(config, dataset, 0, tmp_path)
    outputs = prepared.make_rows(config, models, dataset.splits["validation"]).outputs["standard"]
    log_probs = sum(jax.nn.log_softmax(np.asarray(o.logits, np.float64)) for o in outputs.values())
    counts = np.bincount(dataset.splits["train"]["label"], minlength=10)
    probs = np.asarray(jax.nn.softmax(log_probs - np.log(counts / counts.sum())[None]))
    jac = [np.diag(p) - np.outer(p, p) for p in probs]
    expected = np.mean([j @ j for j in jac], axis=0)
    actual = models.evidence.mean_squared_jacobian
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_input_grams_that_fill_the_memory_are_refused(monkeypatch):
    models = tiny.make_models()
    classifier = models.classifiers["standard"]["image"]
    monkeypatch.setattr(prepared, "_MAX_GRAMS", 1000)
    with pytest.raises(ConfigError, match="--jacobian=input takes .* GiB .* 8 rows .*--num_eval"):
        prepared._grams(classifier, np.zeros((8, *tiny.SHAPE)), 4)
    grams = prepared._grams(classifier, np.zeros((3, *tiny.SHAPE)), 4)
    assert grams.shape == (3, 6, 6)
