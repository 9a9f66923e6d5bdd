import chex
import jax
import numpy as np
import pytest
import scipy.special

from jacfuse_jax.models import UnimodalOutput
from jacfuse_jax.training import _heads as heads
from jacfuse_jax.training import iterate_batches

NUM_FEATURES = {"video": 5, "audio": 7, "image": 6}
NUM_CLASSES = 4
LABELS = np.random.default_rng(0).integers(NUM_CLASSES, size=500).astype(np.int32)


def make_outputs(num_modalities):
    """Linear classifiers that are right in about two of three rows."""
    rng = np.random.default_rng(num_modalities)
    outputs = {}
    for name, num_features in list(NUM_FEATURES.items())[:num_modalities]:
        means = rng.normal(size=(NUM_CLASSES, num_features))
        features = means[LABELS] + rng.normal(size=(len(LABELS), num_features))
        logits = features @ means.T - (means**2).sum(axis=1) / 2
        outputs[name] = UnimodalOutput._make(
            [logits.astype(np.float32), features.astype(np.float32)]
        )
    return outputs


def train(name, outputs, workdir):
    return heads.train_head(name, outputs, LABELS, batch_size=32, seed=0, workdir=workdir)


@pytest.fixture(
    scope="module",
    params=[(name, count) for name in heads.HEADS for count in (2, 3)],
    ids=str,
)
def trained(request, tmp_path_factory):
    name, count = request.param
    outputs = make_outputs(count)
    workdir = tmp_path_factory.mktemp("head")
    return name, outputs, train(name, outputs, workdir), workdir


def concatenate(outputs):
    return np.concatenate([outputs[name].features for name in sorted(outputs)], axis=1)


def affine(parameters, x):
    return x @ np.asarray(parameters["kernel"]) + np.asarray(parameters["bias"])


def test_log_probs_are_those_of_the_formula(trained):
    name, outputs, head, _ = trained
    outputs, parameters = jax.tree.map(np.float64, (outputs, head.parameters))
    if name == "concatenation":
        hidden = np.maximum(affine(parameters["hidden"], concatenate(outputs)), 0)
        assert hidden.shape == (500, 64)
        logits = affine(parameters["head"], hidden)
    else:
        gates = scipy.special.softmax(affine(parameters["gate"], concatenate(outputs)), axis=1)
        logits = sum(
            gates[:, [m]] * scipy.special.log_softmax(outputs[modality].logits, axis=1)
            for m, modality in enumerate(sorted(outputs))
        )
    np.testing.assert_allclose(
        head.log_probs_fn(parameters, outputs),
        scipy.special.log_softmax(logits, axis=1),
        rtol=1e-6,
        atol=1e-6,
    )


def test_is_more_accurate_than_chance_and_improves_on_single_modalities(trained):
    _, outputs, head, _ = trained

    def accuracy(log_probs):
        return np.mean(np.asarray(log_probs).argmax(axis=1) == LABELS)

    fused = accuracy(head.log_probs_fn(head.parameters, outputs))
    assert fused > 0.7
    assert fused > max(accuracy(output.logits) for output in outputs.values()) - 0.02


def test_is_differentiable_under_jit(trained):
    _, outputs, head, _ = trained

    @jax.jit
    @jax.grad
    def gradient(arguments):
        log_probs = head.log_probs_fn(*arguments)
        return -log_probs[np.arange(500), LABELS].mean()

    gradients = gradient((head.parameters, outputs))
    chex.assert_trees_all_equal_shapes(gradients, (head.parameters, outputs))
    for name in outputs:
        assert np.abs(gradients[1][name].features).max() > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_modalities_may_come_in_any_order(trained):
    _, outputs, head, _ = trained
    reordered = dict(reversed(outputs.items()))
    np.testing.assert_array_equal(
        head.log_probs_fn(head.parameters, reordered), head.log_probs_fn(head.parameters, outputs)
    )


def test_a_trained_head_is_restored_without_a_step(trained, monkeypatch):
    name, outputs, head, workdir = trained
    assert [path.name for path in workdir.iterdir()] == [f"checkpoints_{name}"]

    def must_not_be_called(*args, **kwargs):
        raise AssertionError((args, kwargs))

    monkeypatch.setattr(heads, "iterate_batches", must_not_be_called)
    restored = train(name, outputs, workdir)
    chex.assert_trees_all_equal(restored.parameters, head.parameters)


@pytest.mark.parametrize("trained", [("gated", 2)], indirect=True)
@pytest.mark.slow
def test_a_killed_training_ends_where_an_uninterrupted_one_does(trained, tmp_path, monkeypatch):
    name, outputs, head, _ = trained

    def killed(arrays, batch_size, *, shuffle_seed):
        if shuffle_seed[:2] == (0, 4):
            raise KeyboardInterrupt
        return iterate_batches(arrays, batch_size, shuffle_seed=shuffle_seed)

    with monkeypatch.context() as patch:
        patch.setattr(heads, "iterate_batches", killed)
        with pytest.raises(KeyboardInterrupt):
            train(name, outputs, tmp_path)
    chex.assert_trees_all_equal(train(name, outputs, tmp_path).parameters, head.parameters)


def test_an_unknown_head_is_named(tmp_path):
    with pytest.raises(ValueError, match="head must be one of concatenation, gated, got 'gate'"):
        train("gate", make_outputs(2), tmp_path)
