"""Pools and learned cascades against all that corrupted modalities may say, by brute force."""

import functools
import itertools

import jax
import numpy as np
import pytest

from jacfuse_jax import certificates, fusion

K, NUM_ROWS = 4, 120
NAMES = ("image", "audio", "video", "text")
RULES = [
    fusion.Mean(),
    fusion.Max(),
    fusion.MajorityVote(),
    fusion.Median(),
    fusion.TrimmedMean(),
]
_certify = jax.jit(certificates.certify_modality, static_argnames=("corrupted", "perturbed"))
_fuse = jax.jit(fusion.fuse, static_argnames="perturbed")


def make_logits(num_modalities, dtype="float64", num_classes=K, scale=3.0):
    """Of modalities that mostly agree, so that something can be certified."""
    rng = np.random.default_rng(num_modalities)
    common = scale * rng.normal(size=(NUM_ROWS, num_classes))
    return {
        m: (common + rng.normal(size=common.shape)).astype(dtype) for m in NAMES[:num_modalities]
    }


def prior_of(num_classes=K):
    return np.random.default_rng(9).dirichlet(np.full(num_classes, 6.0))


def said(num_classes, dtype):
    """What a modality may say, corners of the simplex and all kinds of other things."""
    rng = np.random.default_rng(5)
    corners = [1e4 * np.eye(num_classes)[k] for k in range(num_classes)]
    pairs = [-1e4 * np.eye(num_classes)[k] for k in range(num_classes)]
    others = [size * rng.normal(size=num_classes) for size in (0.1, 1, 10)]
    return [np.asarray(z, dtype) for z in (*corners, *pairs, *others)]


def flips_of(rule, logits, prior, corrupted, label, **options):
    """Which rows some combination of sayings flips, (B,)."""
    num_classes, dtype = len(prior), logits["image"].dtype
    flips = np.zeros(len(label), bool)
    for combination in itertools.product(said(num_classes, dtype), repeat=len(corrupted)):
        changed = {
            m: np.broadcast_to(z, logits[m].shape)
            for m, z in zip(corrupted, combination, strict=True)
        }
        fused = _fuse(rule, logits | changed, prior, **options)
        flips |= np.asarray(fused).argmax(axis=1) != label
    return flips


@pytest.mark.parametrize("num_modalities", [2, 3, 4])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_pools_flip_just_where_they_are_not_certified(rule, num_modalities, dtype):
    if isinstance(rule, fusion.TrimmedMean) and num_modalities < 3:
        num_modalities = 3
    logits, prior = make_logits(num_modalities, dtype), prior_of().astype(dtype)
    for corrupted in (("image",), ("image", "audio"))[: num_modalities - 1]:
        found = _certify(rule, logits, prior, corrupted=corrupted)
        label = np.asarray(found.label)
        flips = flips_of(rule, logits, prior, corrupted, label, perturbed=())
        certified = np.asarray(found.certified)
        np.testing.assert_array_equal(certified, ~flips)
        # So that the equality above says something.
        can_withstand = {
            "mean": len(corrupted) * 2 < num_modalities,
            "max": False,
            "majority_vote": len(corrupted) * 2 < num_modalities,
            "median": len(corrupted) * 2 < num_modalities,
            "trimmed_mean": len(corrupted) == 1,
        }
        assert certified.any() == can_withstand[rule.name]
        margin = np.asarray(found.margin)
        assert (margin[certified] > 0).all()
        assert (margin[~certified] <= 1e-6).all()


@pytest.mark.parametrize("num_classes", [2, 309])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_any_number_of_modalities_is_the_worst_of_all_sets(rule, num_classes):
    logits, prior = make_logits(4, num_classes=num_classes), prior_of(num_classes)
    found = _certify(rule, logits, prior, corrupted=1)
    each = [_certify(rule, logits, prior, corrupted=(m,)) for m in NAMES]
    np.testing.assert_array_equal(
        found.certified, np.all([np.asarray(one.certified) for one in each], axis=0)
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_what_a_row_lacks_cannot_be_corrupted(rule):
    logits, prior = make_logits(4), prior_of()
    lacks = np.arange(NUM_ROWS) % 2 == 0
    present = {"image": ~lacks}
    found = _certify(rule, logits, prior, corrupted=("image",), present=present)
    assert np.asarray(found.certified)[lacks].all()
    whole = _certify(rule, logits, prior, corrupted=("image",))
    np.testing.assert_array_equal(
        np.asarray(found.certified)[~lacks], np.asarray(whole.certified)[~lacks]
    )
    nobody = dict.fromkeys(NAMES, np.zeros(NUM_ROWS, bool))
    found = _certify(rule, logits, prior, corrupted=("image",), present=nobody)
    assert np.asarray(found.certified).all()
    assert (np.asarray(found.label) == prior.argmax()).all()


def learned(log_trusted, share=0.3):
    """Trusted modalities decide in about half of the rows."""
    rng = np.random.default_rng(2)
    num_classes = log_trusted.shape[1]
    num_weights = min(5, num_classes) + (num_classes <= 20) * num_classes + 1
    weights = 0.02 * rng.normal(size=(3, num_weights))
    typical = float(np.median(log_trusted.max(axis=1)))
    weights[0, [0, -1]] = 3.0, -3 * typical
    weights[2, -1] = -1.0
    return fusion.LearnedCascade(share, *(tuple(float(x) for x in w) for w in weights))


@pytest.mark.parametrize("num_classes", [2, 4, 309])
def test_learned_cascades_are_certified_where_trusted_modalities_decide(num_classes, dtype):
    logits = make_logits(2, dtype, num_classes)
    prior, log_trusted = prior_of(num_classes).astype(dtype), jax.nn.log_softmax(logits["audio"])
    rule = learned(np.asarray(log_trusted))
    found = _certify(rule, logits, prior, corrupted=("image",), perturbed=("image",))
    label, certified = np.asarray(found.label), np.asarray(found.certified)
    fused = np.asarray(_fuse(rule, logits, prior, perturbed=("image",)))
    decides = np.isclose(fused, log_trusted, rtol=1e-5, atol=1e-6).all(axis=1)
    np.testing.assert_array_equal(certified, decides)
    assert 0 < certified.sum() < NUM_ROWS
    if num_classes < 10:
        flips = flips_of(rule, logits, prior, ("image",), label, perturbed=("image",))
        np.testing.assert_array_equal(certified, ~flips)
    # Where what decides is corrupted itself, nothing is.
    found = _certify(rule, logits, prior, corrupted=("audio",), perturbed=("image",))
    assert not np.asarray(found.certified).any()


def test_no_output_of_a_suspect_moves_the_gate():
    logits, prior = make_logits(3), prior_of()
    trusted = np.asarray(
        fusion.statistical_fusion({m: logits[m] for m in ("audio", "video")}, prior)
    )
    fuse = functools.partial(_fuse, learned(trusted), class_prior=prior, perturbed=("image",))
    decided = []
    for z in (*said(K, "float64"), np.full(K, np.nan), np.array([np.inf, 0, 0, 0])):
        fused = fuse(logits | {"image": np.broadcast_to(z, logits["image"].shape)})
        decided.append(np.isclose(fused, trusted, rtol=1e-9).all(axis=1))
    at_least = np.all(decided, axis=0)
    for of_saying in decided[: 2 * K]:  # what says the prior may agree with the trusted ones
        np.testing.assert_array_equal(of_saying, at_least)
    assert 0 < at_least.sum() < NUM_ROWS


def test_the_accuracy_of_shares_is_one_call():
    logits, prior = make_logits(2), prior_of()
    rule = learned(np.asarray(jax.nn.log_softmax(logits["audio"])))
    labels = np.asarray(fusion.statistical_fusion(logits, prior)).argmax(axis=1)
    shares = np.array([0.0, 0.3, 1.0])
    many = fusion.LearnedCascade(shares, *rule.gate)
    found = certificates.certified_accuracy(
        many, logits, labels, prior, corrupted="image", perturbed="image"
    )
    for i, share in enumerate(shares):
        one = certificates.certified_accuracy(
            fusion.LearnedCascade(float(share), *rule.gate),
            *(logits, labels, prior),
            corrupted="image",
            perturbed="image",
        )
        assert found.clean[i] == one.clean
        assert found.certified[i] == one.certified
    assert np.all(np.diff(found.certified) > 0)


@pytest.mark.parametrize("rule", [fusion.Cascade(0.8), "learned"], ids=str)
def test_who_says_what_the_trusted_say_decides_whatever_others_exclude(rule):
    """Of a class that only the suspect leaves the trusted modality, corrupted, may take over."""
    logits = {
        "image": np.array([[0.0, -np.inf, -np.inf]]),
        "audio": np.array([[0.1, 0.0, 0.0]]),
    }
    prior = np.full(3, 1 / 3)
    if rule == "learned":
        rule = fusion.LearnedCascade(0.5, (0.0,) * 7, (9.0, *[0.0] * 6), ())
    options = {"perturbed": ("image",)}
    found = _certify(rule, logits, prior, corrupted=("audio",), **options)
    assert not found.certified.any()
    if isinstance(rule, fusion.Cascade):
        taken_over = logits | {"audio": np.array([[0.0, 10.0, 0.0]])}
        assert np.asarray(_fuse(rule, taken_over, prior, **options)).argmax() == 1 != found.label


def test_votes_decide_where_modalities_exclude_all_classes_together():
    first, second = np.array([[0.0, -np.inf, -np.inf]]), np.array([[-np.inf, 0.0, -np.inf]])
    logits = {"image": first, "audio": first, "video": second}
    fused = np.asarray(_fuse(fusion.MajorityVote(), logits, np.full(3, 1 / 3), perturbed=()))
    assert fused.argmax() == 0
    assert np.isfinite(fused).all()
