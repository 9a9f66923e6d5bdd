import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax import bounds, certificates, fusion, linalg

NAMES = ("image", "audio", "video")


def make_problem(dtype="float64", num_classes=5, num_rows=300, names=NAMES, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = {m: (scale * rng.normal(size=(num_rows, num_classes))).astype(dtype) for m in names}
    return logits, rng.dirichlet(np.full(num_classes, 3.0)).astype(dtype)


def one_hot_logits(dtype, shape, label):
    z = np.full(shape, -1e4, dtype)
    z[:, label] = 1e4
    return z


def labels_under_attack(logits, corrupted, rule, seed=0):
    """Fused classes (T, B) where the modalities say all kinds of things, one-hot ones included."""
    rng = np.random.default_rng(seed)
    dtype, shape = logits[corrupted[0]].dtype, logits[corrupted[0]].shape
    said = [one_hot_logits(dtype, shape, k) for k in range(shape[1])]
    said += [(size * rng.normal(size=shape)).astype(dtype) for size in (0.1, 1, 3, 10, 100, 1e30)]
    changed = ({**logits, **dict.fromkeys(corrupted, z)} for z in said)
    return np.stack([rule(z).argmax(axis=-1) for z in changed])


OPTIONS = [
    {"contamination": e, "tempering": t, "perturbed": perturbed}
    for e, t in ((0.9, 1.0), (0.5, 0.5), (0.8, 0.7))
    for perturbed in (None, ("image",), ("image", "video"))
]


class TestArbitraryCorruption:
    @pytest.mark.parametrize("corrupted", [("image",), ("image", "video")], ids="+".join)
    @pytest.mark.parametrize("options", OPTIONS)
    def test_certified_samples_never_flip_and_the_worst_case_flips_all_others(
        self, corrupted, options, dtype
    ):
        logits, prior = make_problem(dtype)
        found = certificates.certify_modality(logits, prior, corrupted=corrupted, **options)
        fused = fusion.contaminated_fusion(logits, prior, **options)
        np.testing.assert_array_equal(found.label, fused.argmax(axis=-1))
        attacked = labels_under_attack(
            logits, corrupted, lambda z: fusion.contaminated_fusion(z, prior, **options)
        )
        flips = (attacked != found.label).any(axis=0)
        is_close = np.abs(found.margin) < 1e-5
        assert not flips[found.certified].any()
        assert flips[~found.certified & ~is_close].all()
        # Of two corrupted modalities one is trusted, or there is only one bounded one against them.
        hopeless = len(corrupted) == 2 and options["perturbed"] != ("image", "video")
        assert found.certified.any() != hopeless
        assert not found.certified.all()

    def test_gradient_ascent_in_the_logits_does_not_flip_certified_samples(self):
        logits, prior = make_problem()
        options: Any = {"contamination": 0.8, "perturbed": ("image",)}
        found = certificates.certify_modality(logits, prior, corrupted="image", **options)

        def lead(z, rival):
            fused = fusion.contaminated_fusion({**logits, "image": z}, prior, **options)
            rows = jnp.arange(len(z))
            return (fused[rows, rival] - fused[rows, found.label]).sum()

        ascend = jax.jit(lambda z, rival: z + 3 * jnp.sign(jax.grad(lead)(z, rival)))
        for rival in range(5):
            z = jnp.asarray(logits["image"])
            for _ in range(30):
                z = ascend(z, jnp.full(len(z), rival))
                fused = fusion.contaminated_fusion({**logits, "image": z}, prior, **options)
                flips = np.asarray(fused.argmax(axis=-1) != found.label)
                assert not flips[found.certified].any()

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_any_of_them_is_the_worst_set_of_that_size(self, number):
        logits, prior = make_problem()
        options: Any = {"contamination": 0.97, "tempering": 0.3}
        found = certificates.certify_modality(logits, prior, corrupted=number, **options)
        each = [
            certificates.certify_modality(logits, prior, corrupted=names, **options)
            for names in itertools.combinations(NAMES, number)
        ]
        np.testing.assert_array_equal(found.certified, np.all([x.certified for x in each], axis=0))
        np.testing.assert_array_equal(found.margin, np.min([x.margin for x in each], axis=0))
        if number == 1:
            any_one = certificates.certify_modality(logits, prior, corrupted="any_one", **options)
            jax.tree.map(np.testing.assert_array_equal, any_one, found)

    def test_the_margin_is_what_the_worst_case_leaves(self):
        logits, prior = make_problem()
        options: Any = {"contamination": 0.6, "tempering": 0.7, "perturbed": "image"}
        found = certificates.certify_modality(logits, prior, corrupted="image", **options)
        rows = np.arange(len(found.label))
        leads = []
        for k in range(5):
            worst = {**logits, "image": one_hot_logits("float64", logits["image"].shape, k)}
            fused = np.asarray(fusion.contaminated_fusion(worst, prior, **options))
            lead = fused[rows, found.label] - fused[:, k]
            leads.append(np.where(found.label == k, np.inf, lead))
        np.testing.assert_allclose(found.margin, np.min(leads, axis=0), rtol=1e-9, atol=1e-9)

    def test_cascades_certify_what_the_trusted_modalities_decide(self, dtype):
        logits, prior = make_problem(dtype)
        options: Any = {"contamination": 0.3, "confidence": 0.9, "perturbed": ("image",)}
        found = certificates.certify_modality(logits, prior, corrupted="image", **options)
        attacked = labels_under_attack(
            logits, ("image",), lambda z: fusion.cascade_fusion(z, prior, **options)
        )
        flips = (attacked != found.label).any(axis=0)
        assert not flips[found.certified].any()
        assert flips[~found.certified & (np.abs(found.margin) > 1e-5)].all()
        bounded = certificates.certify_modality(
            logits, prior, contamination=0.3, perturbed="image", corrupted="image"
        )
        assert found.certified.sum() > bounded.certified.sum() + 10
        trusted = certificates.certify_modality(logits, prior, corrupted="audio", **options)
        assert not trusted.certified.any()

    def test_the_limits(self):
        logits, prior = make_problem()
        nothing = certificates.certify_modality(
            logits, prior, contamination=0.0, corrupted="image", perturbed="image"
        )
        assert not nothing.certified.any()
        for options in ({"contamination": 1.0}, {"contamination": 0.0, "tempering": 0.0}):
            dropped = certificates.certify_modality(
                logits, prior, corrupted="image", perturbed="image", **options
            )
            assert dropped.certified.all()

    def test_two_classes_one_row_and_jit_and_vmap(self, dtype):
        logits, prior = make_problem(dtype, num_classes=2, num_rows=1, names=("image", "audio"))

        def certify(contamination):
            return certificates.certify_modality(
                logits, prior, contamination=contamination, corrupted="any_one"
            )

        found = jax.jit(jax.vmap(certify))(jnp.asarray([0.3, 0.9], dtype))
        for index, contamination in enumerate((0.3, 0.9)):
            one = certify(contamination)
            assert one.margin.dtype == dtype
            np.testing.assert_allclose(found.margin[index], one.margin, rtol=1e-4)
            np.testing.assert_array_equal(found.certified[index], one.certified)

    def test_nan_is_not_certified_and_stays_in_its_sample(self):
        logits, prior = make_problem()
        intact = certificates.certify_modality(
            logits, prior, contamination=0.95, corrupted="image", perturbed="image"
        )
        row = int(np.flatnonzero(intact.certified)[0])
        for name in ("image", "audio"):
            broken = {**logits, name: logits[name].copy()}
            broken[name][row, 1] = np.nan
            found = certificates.certify_modality(
                broken, prior, contamination=0.95, corrupted="image", perturbed="image"
            )
            assert not found.certified[row]
            others = np.arange(300) != row
            np.testing.assert_array_equal(found.certified[others], intact.certified[others])

    def test_misuse(self):
        logits, prior = make_problem()
        with pytest.raises(ValueError, match="corrupted must lie in 1 ... 3, got 4"):
            certificates.certify_modality(logits, prior, contamination=0.5, corrupted=4)
        with pytest.raises(ValueError, match="corrupted names 'smell'"):
            certificates.certify_modality(logits, prior, contamination=0.5, corrupted="smell")


def test_certified_accuracy_counts_right_and_certified_samples():
    logits, prior = make_problem()
    labels = np.array(fusion.statistical_fusion(logits, prior).argmax(axis=-1))
    labels[::4] = 0
    contaminations = np.array([0.3, 0.8, 0.99])
    found = jax.jit(certificates.certified_accuracy, static_argnames=("corrupted", "perturbed"))(
        logits, labels, prior, contaminations=contaminations, corrupted="image", perturbed="image"
    )
    for index, e in enumerate(contaminations):
        one = certificates.certify_modality(
            logits, prior, contamination=e, corrupted="image", perturbed="image"
        )
        is_correct = np.asarray(one.label == labels)
        np.testing.assert_allclose(found.clean[index], is_correct.mean(), rtol=1e-12)
        expected = (is_correct & np.asarray(one.certified)).mean()
        np.testing.assert_allclose(found.certified[index], expected, rtol=1e-12)
    assert np.all(np.diff(found.certified) > 0)
    with pytest.raises(ValueError, match=r"labels must have shape \(300,\), got \(3,\)"):
        certificates.certified_accuracy(
            logits, labels[:3], prior, contaminations=contaminations, corrupted="image"
        )


def moved_logits(z, radius, num_draws, seed):
    """Points on the sphere and within."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(num_draws, *z.shape))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    lengths = rng.uniform(size=(num_draws, *radius.shape)) ** (1 / 4)
    lengths[: num_draws // 2] = 1
    return z + directions * (lengths * radius)[..., None]


def ascend(predict, z, labels, radius, num_steps=60):
    """Projected gradient ascent on the margin of every wrong class, from every sample."""

    def margin(z, rival):
        log_probs, rows = predict(z), jnp.arange(len(z))
        return (log_probs[rows, rival] - log_probs[rows, labels]).sum()

    @jax.jit
    def step(moved, rival):
        gradient = jax.grad(margin)(moved, rival)
        size = jnp.linalg.norm(gradient, axis=-1, keepdims=True)
        moved = moved + 0.25 * radius[:, None] * gradient / jnp.where(size > 0, size, 1)
        offset = moved - z
        length = jnp.linalg.norm(offset, axis=-1, keepdims=True)
        return z + offset * jnp.minimum(1, radius[:, None] / jnp.where(length > 0, length, 1))

    flips = np.zeros(len(z), bool)
    for rival in range(z.shape[1]):
        moved = z
        for _ in range(num_steps):
            moved = step(moved, jnp.full(len(z), rival))
            flips |= np.asarray(predict(moved).argmax(axis=-1) != labels)
    return flips


class TestRadii:
    @pytest.mark.parametrize("options", [(0.0, 1.0), (0.0, 0.3), (0.3, 1.0), (0.9, 0.5)])
    def test_contaminated_fusion_keeps_its_class_within(self, options):
        e, t = options
        logits, prior = make_problem(num_rows=200, names=("image", "audio"))
        radius = certificates.contaminated_radius(
            logits, prior, contamination=e, tempering=t, corrupted="image", perturbed="image"
        )
        self.check(
            logits,
            np.asarray(radius),
            lambda z: fusion.contaminated_fusion(
                {**logits, "image": z}, prior, contamination=e, tempering=t, perturbed="image"
            ),
        )
        assert np.isinf(radius).any() == (e > 0)

    def test_two_classes_without_contamination_are_exact(self):
        logits, prior = make_problem(num_classes=2, names=("image", "audio"))
        radius = certificates.contaminated_radius(
            logits, prior, contamination=0.0, corrupted="image", lipschitz=5.0
        )
        fused = np.asarray(fusion.statistical_fusion(logits, prior))
        expected = np.abs(fused[:, 0] - fused[:, 1]) / np.sqrt(2) / 5
        np.testing.assert_allclose(radius, expected, rtol=2e-3)

    @pytest.mark.parametrize("gamma", [0.5, 0.1, 0.01])
    def test_robust_fusion_keeps_its_class_within(self, gamma):
        rng = np.random.default_rng(1)
        logits, prior = make_problem(num_rows=200, names=("image", "audio"), scale=4.0)
        grams = {"image": linalg.spectrum_from_kernel(rng.normal(size=(7, 5)) / 3)}

        def predict(z):
            return fusion.robust_fusion(
                {**logits, "image": z}, grams, prior, perturbed="image", gamma=gamma
            ).log_probs

        radius = np.asarray(
            certificates.robust_radius(logits, grams, prior, perturbed="image", gamma=gamma)
        )
        self.check(logits, radius, predict)
        assert np.median(radius) > 0.02

    def check(self, logits, radius, predict):
        z = logits["image"]
        labels = np.asarray(predict(z).argmax(axis=-1))
        assert (radius > 0).mean() > 0.98
        finite = np.minimum(radius, 1e3)
        predict = jax.jit(predict)
        flips = ascend(predict, jnp.asarray(z), labels, finite)
        for moved in moved_logits(z, finite, 500, seed=2):
            flips |= np.asarray(predict(moved).argmax(axis=-1) != labels)
        assert not flips.any()
        # The test can fail: not much further out, classes do change.
        further = np.where(np.isinf(radius), 0, 20 * radius)
        assert ascend(predict, jnp.asarray(z), labels, further)[np.isfinite(radius)].mean() > 0.2

    def test_a_network_keeps_its_class_within_under_pgd(self):
        """Inputs move, through a network with a Lipschitz constant from power iteration."""
        rng = np.random.default_rng(3)
        first, second = rng.normal(size=(12, 16)) / 4, rng.normal(size=(16, 5)) / 2
        prior = np.full(5, 0.2)
        x = jnp.asarray(rng.normal(size=(150, 12)))
        audio = jnp.asarray(3 * rng.normal(size=(150, 5)))
        keys = jax.random.split(jax.random.key(0))
        lipschitz = bounds.spectral_norm(
            lambda x: x @ first, (12,), keys[0], dtype=jnp.float64
        ) * bounds.spectral_norm(lambda h: h @ second, (16,), keys[1], dtype=jnp.float64)
        grams = {"image": linalg.spectrum_from_kernel(second)}

        def logits_of(x):
            return {"image": jax.nn.relu(x @ first) @ second, "audio": audio}

        def predict(x):
            return fusion.robust_fusion(
                logits_of(x), grams, prior, perturbed="image", gamma=0.1
            ).log_probs

        radius = certificates.robust_radius(
            logits_of(x), grams, prior, perturbed="image", gamma=0.1, lipschitz=lipschitz
        )
        predict = jax.jit(predict)
        labels = predict(x).argmax(axis=-1)

        def margin(x, rival):
            log_probs, rows = predict(x), jnp.arange(len(x))
            return (log_probs[rows, rival] - log_probs[rows, labels]).sum()

        @jax.jit
        def step(moved, rival):
            gradient = jax.grad(margin)(moved, rival)
            size = jnp.linalg.norm(gradient, axis=-1, keepdims=True)
            offset = moved + radius[:, None] * gradient / jnp.where(size > 0, size, 1) / 4 - x
            length = jnp.linalg.norm(offset, axis=-1, keepdims=True)
            shrink = radius[:, None] / jnp.maximum(length, 1e-30)
            return x + offset * jnp.minimum(1, shrink)

        for rival in range(5):
            moved = x
            for _ in range(40):
                moved = step(moved, jnp.full(len(x), rival))
                assert (predict(moved).argmax(axis=-1) == labels).all()

    def test_nan_has_no_radius(self):
        logits, prior = make_problem(num_rows=3, names=("image", "audio"))
        logits["audio"][1, 2] = np.nan
        grams = {"image": linalg.gram_spectrum(jnp.eye(5))}
        for radius in (
            certificates.contaminated_radius(
                logits, prior, contamination=0.5, corrupted="image", perturbed="image"
            ),
            certificates.robust_radius(logits, grams, prior, perturbed="image", gamma=0.1),
        ):
            assert radius[1] == 0
            assert (radius[jnp.asarray([0, 2])] > 0).all()
