import jax
import numpy as np
import pytest
import scipy.special

from jacfuse_jax import fusion, metrics, selection
from jacfuse_jax.linalg import spectrum_from_kernel
from jacfuse_jax.selection import _faults

K, NUM_ROWS = 4, 60
SUSPECTS = selection.Suspects.of("image")
PRIOR = np.random.default_rng(3).dirichlet(np.full(K, 6.0))
GROUPS = np.arange(NUM_ROWS) // 3
_fuse = jax.jit(fusion.fuse, static_argnames="perturbed")


def make_rows(num_rows=NUM_ROWS, num_classes=K, dtype="float64", names=("image", "audio", "text")):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, size=num_rows)
    logits = {
        m: (2 * np.eye(num_classes)[labels] + 1.5 * rng.normal(size=(num_rows, num_classes)))
        for m in names
    }
    return {m: z.astype(dtype) for m, z in logits.items()}, labels.astype(np.int32)


def draw(labels, ranked, folds=None):
    folds = np.zeros(len(labels), int) if folds is None else folds
    return _faults.draw_variants(labels, ranked, folds, 0)


class TestFaults:
    def variants(self, num_classes=K, num_rows=NUM_ROWS):
        labels = make_rows(num_rows, num_classes)[1]
        ranked = np.argsort(np.random.default_rng(1).normal(size=(num_rows, num_classes)))
        folds = np.arange(num_rows) % 4
        return labels, ranked, folds, draw(labels, ranked, folds)

    def of(self, fault, **sizes):
        labels, ranked, folds, found = self.variants(**sizes)
        rows = found.names == fault
        return labels, ranked, folds, found.source[rows], found.is_there[rows], found.raised[rows]

    def test_names_are_those_that_are_told(self):
        *_, found = self.variants()
        assert list(dict.fromkeys(found.names)) == ["clean", *selection.FAULTS]

    def test_random_rows_are_others(self):
        *_, source, is_there, raised = self.of("random")
        assert source.shape == (5, NUM_ROWS)
        assert (source != np.arange(NUM_ROWS)).all()
        assert len(np.unique(source, axis=0)) == 5
        assert is_there.all()
        assert (raised == -1).all()

    def test_frozen_ones_are_one_row(self):
        *_, source, is_there, _ = self.of("frozen")
        assert (source == source[:, :1]).all()
        assert len(set(source[:, 0])) == 20
        assert is_there.all()

    def test_swapped_ones_stay_within_their_fold(self):
        _, _, folds, source, _, _ = self.of("swapped")
        for each in source:
            assert sorted(each) == list(range(NUM_ROWS))
            assert (each != np.arange(NUM_ROWS)).all()
            np.testing.assert_array_equal(folds[each], folds)

    def test_saturated_ones_are_every_wrong_class_once(self):
        labels, *_, raised = self.of("saturated")
        for n, label in enumerate(labels):
            assert sorted([*raised[:, n], label]) == list(range(K))

    def test_of_many_classes_the_likeliest_fifty(self):
        labels, ranked, *_, raised = self.of("saturated", num_classes=309)
        for n, label in enumerate(labels):
            np.testing.assert_array_equal(raised[:, n], [k for k in ranked[n] if k != label][:50])

    def test_silent_ones_are_not_there(self):
        *_, is_there, _ = self.of("silent")
        np.testing.assert_array_equal(is_there, [False])


def by_hand(rule, logits, labels, failing, grams, **options):
    """{fault: how often each row is right}, a fault at a time."""
    ranked = np.argsort(
        -np.asarray(fusion.statistical_fusion(logits, PRIOR)), axis=1, kind="stable"
    )
    folds = selection.assign_folds(len(labels), groups=GROUPS)
    variants = draw(labels, ranked, folds)
    found = {}
    for name, source, _, raised in zip(*variants, strict=True):
        changed = dict(logits)
        present = None
        for m in failing:
            changed[m] = logits[m][source]
            if name == "saturated":
                changed[m] = logits[m].copy()
                changed[m][np.arange(len(labels)), raised] += 20
        if name == "silent":
            present = {m: np.zeros(len(labels), bool) for m in failing}
        fused = _fuse(rule, changed, PRIOR, grams=grams, present=present, **options)
        found.setdefault(name, []).append(np.asarray(fused).argmax(axis=1) == labels)
    return {
        f: np.min(x, axis=0) if f == "saturated" else np.mean(x, axis=0) for f, x in found.items()
    }


def grams_of(names):
    return {m: spectrum_from_kernel(np.eye(K) - 1 / K) for m in names}


RULES = [
    fusion.Statistical(),
    fusion.Mean(),
    fusion.Median(),
    fusion.Scaled(0.4),
    fusion.Contaminated(0.3),
    fusion.Cascade(0.7),
    fusion.Robust(0.1),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_rows_are_as_right_as_by_hand(rule):
    logits, labels = make_rows()
    grams = grams_of(["image"])
    (found,) = selection.measure(
        [selection.Candidate(rule)], logits, labels, PRIOR, SUSPECTS, grams=grams, groups=GROUPS
    )
    expected = by_hand(rule, logits, labels, ["image"], grams, perturbed=("image",))
    np.testing.assert_array_equal(found.clean, expected["clean"])
    for fault in selection.FAULTS:
        np.testing.assert_allclose(found.faults[fault], expected[fault], err_msg=fault)
        assert found.figures[fault].accuracy == pytest.approx(expected[fault].mean())
    if isinstance(rule, fusion.Robust):
        assert found.any_input is None
    else:
        assert found.any_input is not None
        for of_fault in found.faults.values():  # no fault is worse than the worst
            assert (found.any_input <= of_fault).all()


def test_likelihood_and_calibration_are_those_of_the_metrics():
    logits, labels = make_rows()
    (found,) = selection.measure(
        [selection.Candidate(fusion.Statistical())], logits, labels, PRIOR, SUSPECTS
    )
    for name, present in (("clean", True), ("silent", False)):
        fused = fusion.statistical_fusion(
            logits, PRIOR, present={"image": np.full(NUM_ROWS, present)}
        )
        expected = metrics.finalise(metrics.classification_sums(fused, labels))
        assert found.figures[name].nll == pytest.approx(expected.nll, rel=1e-9)
        assert found.figures[name].ece == pytest.approx(expected.ece, rel=1e-9)
    worst = []
    for k in range(K):
        raised = logits | {"image": logits["image"] + 20 * np.eye(K)[k]}
        fused = np.asarray(fusion.statistical_fusion(raised, PRIOR))
        worst.append(np.where(labels == k, -np.inf, -fused[np.arange(NUM_ROWS), labels]))
    assert found.figures["saturated"].nll == pytest.approx(np.max(worst, axis=0).mean())


def test_of_several_cases_the_worst_counts():
    logits, labels = make_rows()
    logits["text"] += 8 * np.eye(K)[labels]  # what fusion rests on
    suspects = selection.Suspects.any_of(logits, 1)
    assert suspects.cases == (("image",), ("audio",), ("text",))
    rule = fusion.Contaminated(0.2)
    (found,) = selection.measure(
        [selection.Candidate(rule)], logits, labels, PRIOR, suspects, groups=GROUPS
    )
    each = {m: by_hand(rule, logits, labels, [m], None, perturbed=tuple(logits)) for m in logits}
    for fault in selection.FAULTS:
        assert found.faults[fault].mean() == min(x[fault].mean() for x in each.values())
    assert found.faults["silent"].mean() == each["text"]["silent"].mean() < 1
    assert found.any_input is not None
    assert (found.any_input <= found.clean).all()


def test_fitted_rules_are_held_out_from_the_rows_that_they_were_fitted_to():
    logits, labels = make_rows(names=("image", "audio"))
    found = selection.candidates(
        logits, labels, PRIOR, SUSPECTS, shares=[0.3], rules=[], groups=GROUPS
    )
    ((rule, folds, held_out),) = found
    assert isinstance(rule, fusion.LearnedCascade)
    assert folds is not None
    for fold in range(5):
        rows = folds != fold
        gate = selection.fit_gate(
            {m: z[rows] for m, z in logits.items()},
            labels[rows],
            PRIOR,
            perturbed="image",
            groups=GROUPS[rows],
        )
        assert held_out[fold] == fusion.LearnedCascade(0.3, *gate)
        assert not set(GROUPS[rows]) & set(GROUPS[~rows])
    (measured,) = selection.measure(found, logits, labels, PRIOR, SUSPECTS)
    for fold in range(5):
        fused = fusion.fuse(held_out[fold], logits, PRIOR, perturbed="image")
        is_right = np.asarray(fused).argmax(axis=1) == labels
        np.testing.assert_array_equal(measured.clean[folds == fold], is_right[folds == fold])


def test_what_is_missing_stays_missing():
    logits, labels = make_rows()
    present = {"image": np.arange(NUM_ROWS) % 2 == 0}
    logits["image"][~present["image"]] = np.nan
    (found,) = selection.measure(
        [selection.Candidate(fusion.Statistical())],
        logits,
        labels,
        PRIOR,
        SUSPECTS,
        present=present,
    )
    trusted = {m: z for m, z in logits.items() if m != "image"}
    expected = np.asarray(fusion.statistical_fusion(trusted, PRIOR)).argmax(axis=1) == labels
    np.testing.assert_array_equal(found.faults["silent"], expected)
    lacks = ~present["image"]
    for rows in (found.clean, found.faults["saturated"], found.any_input):
        assert rows is not None
        np.testing.assert_array_equal(rows[lacks], expected[lacks])


@pytest.mark.parametrize("num_classes", [2, 60])
def test_sizes_and_dtypes(num_classes, dtype):
    logits, labels = make_rows(30, num_classes, dtype)
    prior = np.full(num_classes, 1 / num_classes)
    rules = [selection.Candidate(rule) for rule in (fusion.Max(), fusion.Cascade(0.5))]
    for found in selection.measure(rules, logits, labels, prior, SUSPECTS):
        assert found.clean.dtype == np.float64
        assert set(found.faults) == set(selection.FAULTS)
        assert 0 <= found.figures["frozen"].accuracy <= 1


def test_scores_of_one_rule_are_those_of_softmax():
    """A check of the oracle itself: K = 2 and two modalities, in closed form."""
    logits = {"image": np.array([[3.0, 0.0], [0.0, 1.0]]), "audio": np.array([[0.0, 1.0]] * 2)}
    labels = np.array([0, 1])
    (found,) = selection.measure(
        [selection.Candidate(fusion.Statistical())], logits, labels, np.array([0.5, 0.5]), SUSPECTS
    )
    np.testing.assert_array_equal(found.clean, [1, 1])
    np.testing.assert_array_equal(found.faults["silent"], [0, 1])
    np.testing.assert_array_equal(found.faults["random"], [0, 0])
    np.testing.assert_array_equal(found.faults["frozen"], [0.5, 0.5])
    np.testing.assert_array_equal(found.faults["saturated"], [0, 0])
    expected = -np.log(scipy.special.expit([2.0, 2.0])).mean()
    assert found.figures["clean"].nll == pytest.approx(expected)


def test_weights_tell_which_case_is_the_worst():
    logits, labels = make_rows(names=("image", "audio"))
    weights = np.where(np.arange(NUM_ROWS) < 6, 1000.0, 1.0)
    logits["audio"][:6] += 9 * np.eye(K)[labels[:6]]  # on which fusion rests in what counts
    suspects = selection.Suspects.any_of(logits)
    rules = [selection.Candidate(fusion.Contaminated(0.5))]
    (found,) = selection.measure(rules, logits, labels, PRIOR, suspects, weights=weights)
    (of_audio,) = selection.measure(
        rules, logits, labels, PRIOR, suspects._replace(cases=(("audio",),)), weights=weights
    )
    np.testing.assert_array_equal(found.faults["silent"], of_audio.faults["silent"])
    mean = np.average(found.faults["silent"], weights=weights)
    assert found.figures["silent"].accuracy == pytest.approx(mean)


def test_no_prediction_is_not_confident():
    logits, labels = make_rows()
    logits["audio"][3] = np.nan
    rules = [selection.Candidate(fusion.Statistical())]
    (found,) = selection.measure(rules, logits, labels, PRIOR, SUSPECTS)
    assert found.confidence[3] == 0
    assert found.clean[3] == 0
    assert (np.delete(found.confidence, 3) > 0).all()


def test_bad_arguments_are_refused():
    logits, labels = make_rows()
    rules = [selection.Candidate(fusion.Mean())]
    with pytest.raises(ValueError, match="smell"):
        selection.measure(rules, logits, labels, PRIOR, selection.Suspects.of("smell"))
    with pytest.raises(ValueError, match=r"number must lie in 1 \.\.\. 2, got 3"):
        selection.Suspects.any_of(logits, 3)
    with pytest.raises(ValueError, match="class_prior must sum to one, got a sum of 2"):
        selection.measure(rules, logits, labels, 2 * PRIOR, SUSPECTS)
    with pytest.raises(ValueError, match="present names 'smell'"):
        selection.measure(rules, logits, labels, PRIOR, SUSPECTS, present={"smell": labels > 0})
    too_large = [selection.Candidate(fusion.Scaled(1.5))]
    with pytest.raises(ValueError, match=r"scale must lie in \[0, 1\], got 1.5"):
        selection.measure(too_large, logits, labels, PRIOR, SUSPECTS)
    with pytest.raises(ValueError, match=r"groups must have shape"):
        selection.measure(rules, logits, labels, PRIOR, SUSPECTS, groups=GROUPS[:3])
