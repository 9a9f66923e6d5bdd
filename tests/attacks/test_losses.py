import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.special import log_softmax

from jacfuse_jax.attacks import losses

BATCH, CLASSES = 64, 5
UNTARGETED = [losses.cross_entropy, losses.margin, losses.dlr]


def random_case(dtype="float64"):
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(BATCH, CLASSES))
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    labels, targets = rng.integers(CLASSES, size=(2, BATCH))
    return log_probs.astype(dtype), labels, targets


def oracle(loss_fn, log_probs, labels, targets):
    """Row by row in float64, by sorting."""
    values = []
    for z, y, t in zip(log_probs.astype(np.float64), labels, targets, strict=True):
        descending = np.sort(z)[::-1]
        difference = np.delete(z, y).max() - z[y]
        values.append(
            {
                losses.cross_entropy: -z[y],
                losses.margin: difference,
                losses.dlr: difference / (descending[0] - descending[2]),
                losses.targeted_dlr: (z[t] - z[y]) / (descending[0] - descending[2:4].mean()),
            }[loss_fn]
        )
    return np.array(values)


def evaluate_eagerly(loss_fn, log_probs, labels, targets):
    if loss_fn is losses.targeted_dlr:
        return loss_fn(log_probs, labels, targets)
    return loss_fn(log_probs, labels)


evaluate = jax.jit(evaluate_eagerly, static_argnames="loss_fn")


@functools.partial(jax.jit, static_argnames="loss_fn")
def value_and_gradient(loss_fn, log_probs, labels, targets):
    def total(log_probs):
        values = evaluate_eagerly(loss_fn, log_probs, labels, targets)
        return values.sum(), values

    gradient, values = jax.grad(total, has_aux=True)(log_probs)
    return values, gradient


@pytest.mark.parametrize("loss_fn", [*UNTARGETED, losses.targeted_dlr])
class TestEveryLoss:
    def test_agrees_with_the_definition_and_under_jit(self, loss_fn, dtype):
        case = random_case(dtype)
        for evaluate_fn in (evaluate, evaluate_eagerly):
            values = evaluate_fn(loss_fn, *case)
            assert values.dtype == dtype
            # Differences of entries up to 20 over a spread that is 0.3 at the least.
            atol = 200 * np.finfo(dtype).eps
            np.testing.assert_allclose(values, oracle(loss_fn, *case), rtol=0, atol=atol)

    def test_gradient_agrees_with_finite_differences(self, loss_fn):
        log_probs, labels, targets = random_case()
        check_grads(lambda z: evaluate(loss_fn, z, labels, targets), (log_probs,), order=1)

    def test_gradient_agrees_with_finite_differences_at_a_zero_probability(self, loss_fn):
        log_probs, labels, targets = random_case()
        log_probs[np.arange(BATCH), (labels + 1) % CLASSES] = -np.inf
        targets = (labels + 2) % CLASSES
        finite = np.isfinite(log_probs)

        def value(z):
            return evaluate(loss_fn, jnp.where(finite, z, -jnp.inf), labels, targets)

        check_grads(value, (np.where(finite, log_probs, 0),), order=1)

    def test_ties_and_zero_probabilities_give_neither_nan_nor_infinite_gradients(
        self, loss_fn, dtype
    ):
        rows = [
            [1, 0, 0, 0, 0],
            [0, 1, 0, 0, 0],
            [0, 0.25, 0.25, 0.25, 0.25],
            [0.2, 0.2, 0.2, 0.2, 0.2],
            [0.5, 0.5, 0, 0, 0],
            [0.2, 0.4, 0.4, 0, 0],
        ]
        with np.errstate(divide="ignore"):
            log_probs = np.log(np.repeat(rows, 5, axis=0)).astype(dtype)
        labels = np.tile(np.arange(5), len(rows))
        targets = (labels + 1) % 5

        values, gradient = value_and_gradient(loss_fn, log_probs, labels, targets)
        assert not np.isnan(values).any()
        assert np.isfinite(gradient).all()

    def test_a_row_of_nan_reaches_no_other_row(self, loss_fn):
        log_probs, labels, targets = random_case()
        broken = log_probs.copy()
        broken[3] = np.nan
        others = np.arange(BATCH) != 3

        expected = value_and_gradient(loss_fn, log_probs, labels, targets)
        found = value_and_gradient(loss_fn, broken, labels, targets)
        for clean, spoilt in zip(expected, found, strict=True):
            np.testing.assert_array_equal(np.asarray(spoilt)[others], np.asarray(clean)[others])
        assert np.isnan(np.asarray(found[0])[3])

    def test_permuted_samples_give_permuted_losses(self, loss_fn):
        case = random_case()
        order = np.random.default_rng(1).permutation(BATCH)
        permuted = evaluate(loss_fn, *(array[order] for array in case))
        np.testing.assert_array_equal(permuted, np.asarray(evaluate(loss_fn, *case))[order])

    def test_misuse(self, loss_fn):
        log_probs, labels, targets = random_case()
        with pytest.raises(TypeError, match="log_probs must be float32 or float64, got int64"):
            evaluate(loss_fn, labels, labels, targets)
        with pytest.raises(ValueError, match=r"log_probs must have shape \(B, K\) with K >= "):
            evaluate(loss_fn, log_probs[0], labels, targets)
        with pytest.raises(TypeError, match="labels must be integer, got float64"):
            evaluate(loss_fn, log_probs, labels.astype(float), targets)
        with pytest.raises(ValueError, match=r"labels must have shape \(64,\), one class a sample"):
            evaluate(loss_fn, log_probs, labels[:1], targets)


@pytest.mark.parametrize(
    ("loss_fn", "min_classes"), [(losses.margin, 2), (losses.dlr, 3), (losses.targeted_dlr, 4)]
)
def test_too_few_classes_are_refused(loss_fn, min_classes):
    labels = np.zeros(2, int)
    with pytest.raises(ValueError, match=rf"K >= {min_classes}, got \(2, {min_classes - 1}\)"):
        evaluate(loss_fn, np.zeros((2, min_classes - 1)), labels, labels)
    evaluate(loss_fn, np.zeros((2, min_classes)), labels, labels)


def test_targets_must_be_classes_too():
    log_probs, labels, _ = random_case()
    with pytest.raises(TypeError, match="targets must be integer, got float64"):
        losses.targeted_dlr(log_probs, labels, log_probs[:, 0])
    with pytest.raises(ValueError, match=r"targets must have shape \(64,\)"):
        losses.targeted_dlr(log_probs, labels, labels[:, None])


@pytest.mark.parametrize("loss_fn", [losses.margin, losses.dlr])
def test_sign_tells_whether_the_prediction_is_wrong(loss_fn):
    log_probs, labels, _ = random_case()
    values = np.asarray(evaluate(loss_fn, log_probs, labels, labels))
    np.testing.assert_array_equal(values > 0, log_probs.argmax(axis=1) != labels)
    if loss_fn is losses.dlr:
        assert values.min() >= -1


@pytest.mark.parametrize("loss_fn", [losses.dlr, losses.targeted_dlr])
def test_the_ratio_is_blind_to_temperature(loss_fn):
    log_probs, labels, targets = random_case()
    tempered = log_softmax(7 * log_probs + 1, axis=1)
    np.testing.assert_allclose(
        evaluate(loss_fn, tempered, labels, targets),
        evaluate(loss_fn, log_probs, labels, targets),
        rtol=1e-12,
        atol=1e-12,
    )


def test_ratio_of_a_zero_probability_is_its_limit(dtype):
    labels = np.arange(4)
    log_probs = np.tile(np.array([np.log(0.6), np.log(0.4), -np.inf, -np.inf], dtype), (4, 1))
    near = np.maximum(log_probs, np.array(-1e12, dtype))
    found, expected = (evaluate(losses.dlr, z, labels, labels) for z in (log_probs, near))
    np.testing.assert_allclose(found, expected, atol=1e-11)
