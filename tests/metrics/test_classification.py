import jax
import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score, brier_score_loss, log_loss

from jacfuse_jax import metrics

classification_sums = jax.jit(metrics.classification_sums)


def random_predictions(count=300, num_classes=4, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=count)
    logits = rng.normal(size=(count, num_classes))
    logits[np.arange(count), labels] += 1.5
    return scipy.special.log_softmax(logits, axis=-1).astype(dtype), labels


def test_accuracy_and_likelihood_match_scikit_learn(dtype):
    log_probs, labels = random_predictions(dtype=dtype)
    result = metrics.finalise(classification_sums(log_probs, labels))
    assert result.accuracy == pytest.approx(accuracy_score(labels, log_probs.argmax(axis=1)))
    probs = np.exp(log_probs.astype(np.float64))
    expected = log_loss(labels, probs / probs.sum(axis=1, keepdims=True))
    assert result.nll == pytest.approx(expected, rel=float(100 * np.finfo(dtype).eps))
    assert result.num_examples == 300


@pytest.mark.parametrize("num_classes", [2, 309])
# It says so of predictions of a class without samples, which are no trouble.
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_macro_accuracy_matches_scikit_learn(num_classes, dtype):
    rng = np.random.default_rng(1)
    frequency = 1 / np.arange(1, num_classes + 1) ** 1.5  # rare classes have no sample
    labels = rng.choice(num_classes, size=2000, p=frequency / frequency.sum())
    logits = rng.normal(size=(2000, num_classes)) + frequency
    logits[np.arange(2000), labels] += 1.0
    log_probs = scipy.special.log_softmax(logits, axis=-1).astype(dtype)
    if num_classes > 2:
        assert 0 < len(np.unique(labels)) < num_classes
    expected = balanced_accuracy_score(labels, log_probs.argmax(axis=1))
    result = metrics.finalise(classification_sums(log_probs, labels))
    assert result.macro_accuracy == pytest.approx(expected, rel=1e-12)
    assert abs(result.macro_accuracy - result.accuracy) > 0.02
    # Batches add up, and padding counts for nothing, whatever its label.
    batches = [
        classification_sums(log_probs, labels, np.arange(2000) % 3 == part) for part in range(3)
    ]
    total = jax.tree.map(lambda *sums: np.sum(sums, axis=0), *batches)
    assert metrics.finalise(total).macro_accuracy == pytest.approx(expected, rel=1e-12)


def test_macro_accuracy_counts_classes_alike():
    labels = np.array([0] * 98 + [2] * 2)
    log_probs = np.log(np.full((100, 4), 0.1))
    log_probs[:, 0] = np.log(0.7)  # the majority's
    result = metrics.finalise(classification_sums(log_probs, labels))
    assert (result.accuracy, result.macro_accuracy) == (0.98, 0.5)


def test_brier_score_of_two_classes_is_twice_scikit_learns(dtype):
    log_probs, labels = random_predictions(num_classes=2, dtype=dtype)
    result = metrics.finalise(classification_sums(log_probs, labels))
    expected = 2 * brier_score_loss(labels, np.exp(log_probs[:, 1].astype(np.float64)))
    assert result.brier == pytest.approx(expected, rel=float(100 * np.finfo(dtype).eps))


def test_brier_score_of_many_classes_matches_its_definition():
    log_probs, labels = random_predictions(num_classes=5)
    expected = np.mean(np.sum((np.exp(log_probs) - np.eye(5)[labels]) ** 2, axis=1))
    result = metrics.finalise(classification_sums(log_probs, labels))
    assert result.brier == pytest.approx(expected, rel=1e-12)


def test_brier_score_is_zero_when_certain_and_correct_and_two_when_wrong():
    log_probs = np.array([[0.0, -np.inf, -np.inf]])
    for label, expected in ((0, 0.0), (2, 2.0)):
        sums = classification_sums(log_probs, np.array([label]))
        assert metrics.finalise(sums).brier == expected


def test_calibration_error_matches_its_definition():
    log_probs, labels = random_predictions()
    confidence = np.exp(log_probs.max(axis=1))
    correct = log_probs.argmax(axis=1) == labels
    expected = 0.0
    for low, high in zip(np.arange(15) / 15, np.arange(1, 16) / 15, strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
    result = metrics.finalise(classification_sums(log_probs, labels))
    assert result.ece == pytest.approx(expected, rel=1e-12)


def test_batches_with_padding_add_up_to_the_whole():
    log_probs, labels = random_predictions(dtype="float32")
    whole = metrics.classification_sums(log_probs, labels)  # outside of jit
    batches = []
    for start in range(0, 300, 128):
        rows = np.arange(start, min(start + 128, 300))
        padded = np.pad(rows, (0, 128 - len(rows)), constant_values=7)
        mask = np.arange(128) < len(rows)
        batches.append(classification_sums(log_probs[padded], labels[padded], mask))
    total = jax.tree.map(lambda *sums: np.sum(sums, axis=0), *batches)
    for a, b in zip(total, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=100 * float(np.finfo(np.float32).eps))


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (3, 10), (10, 10), (988, 1000)])
def test_interval_matches_scipys_wilson_interval(successes, count):
    expected = scipy.stats.binomtest(successes, count).proportion_ci(0.95, "wilson")
    assert metrics.wilson_interval(successes, count) == pytest.approx(tuple(expected), abs=1e-12)


def test_trouble_shows_instead_of_improving_a_figure():
    log_probs = np.log(np.full((3, 2), 0.5))
    log_probs[0] = np.nan  # argmax of NaN would be class 0, the label
    log_probs[1] = np.log([0.9, 0.1])
    log_probs[2, 1] = np.nan
    result = metrics.finalise(classification_sums(log_probs, np.zeros(3, int)))
    assert result.accuracy == pytest.approx(1 / 3)
    assert result.macro_accuracy == pytest.approx(1 / 3)
    assert np.isnan(result.nll)
    assert np.isnan(result.brier)
    masked = classification_sums(log_probs, np.zeros(3, int), np.array([0, 1, 0]))
    assert metrics.finalise(masked).nll == pytest.approx(-np.log(0.9))
    assert metrics.finalise(masked).brier == pytest.approx(2 * 0.1**2)


@pytest.mark.parametrize("label", [3, -1])
def test_traced_label_that_is_no_class_shows_but_in_padding(label):
    log_probs = np.log(np.full((2, 3), 1 / 3))
    labels = np.array([0, label])
    result = metrics.finalise(classification_sums(log_probs, labels))
    assert np.isnan([result.accuracy, result.ci_low, result.nll, result.brier]).all()
    assert np.isnan(result.macro_accuracy)
    result = metrics.finalise(classification_sums(log_probs, labels, np.array([1.0, 0.0])))
    assert result.accuracy == 1
    assert np.isfinite(result).all()


def test_impossible_label_costs_infinity():
    log_probs = np.array([[0.0, -np.inf]])
    assert np.isinf(metrics.finalise(classification_sums(log_probs, np.array([1]))).nll)


def test_misuse():
    log_probs, labels = random_predictions(10)
    with pytest.raises(ValueError, match=r"labels must have shape \(10,\), .* got \(9,\)"):
        metrics.classification_sums(log_probs, labels[:9])
    with pytest.raises(ValueError, match="no samples were counted"):
        metrics.finalise(classification_sums(log_probs, labels, np.zeros(10)))
    with pytest.raises(ValueError, match=r"labels must lie in 0 \.\.\. 3, got -1 in row 2"):
        metrics.classification_sums(log_probs, np.where(np.arange(10) < 2, labels, -1))
    with pytest.raises(TypeError, match="labels must be integer, got bool"):
        metrics.classification_sums(log_probs, labels > 0)
    with pytest.raises(TypeError, match="log_probs must be float32 or float64"):
        metrics.classification_sums(log_probs.astype(int), labels)
