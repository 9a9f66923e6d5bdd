import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax import bounds, certificates, fusion
from tests.fusion import rules

NAMES = ("image", "audio", "video")

# Contaminations and gammas are traced: one program serves all of them.
_certify = jax.jit(certificates.certify_modality, static_argnames=("corrupted", "perturbed"))
certified_radius = jax.jit(
    certificates.certified_radius, static_argnames=("corrupted", "perturbed")
)
fuse = jax.jit(fusion.fuse, static_argnames="perturbed")


def certify(rule, logits, prior, **options):
    """As NumPy arrays."""
    return jax.device_get(_certify(rule, logits, prior, **options))


def make_problem(dtype="float64", num_classes=5, num_rows=300, names=NAMES, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = {m: (scale * rng.normal(size=(num_rows, num_classes))).astype(dtype) for m in names}
    return logits, rng.dirichlet(np.full(num_classes, 3.0)).astype(dtype)


def one_hot_logits(dtype, shape, label):
    z = np.full(shape, -1e4, dtype)
    z[:, label] = 1e4
    return z


def labels_under_attack(logits, corrupted, fuse_fn, seed=0):
    """Fused classes (T, B) where the modalities say all kinds of things, one-hot ones included."""
    rng = np.random.default_rng(seed)
    dtype, shape = logits[corrupted[0]].dtype, logits[corrupted[0]].shape
    said = [one_hot_logits(dtype, shape, k) for k in range(shape[1])]
    said += [(size * rng.normal(size=shape)).astype(dtype) for size in (0.1, 1, 3, 10, 100, 1e30)]
    changed = ({**logits, **dict.fromkeys(corrupted, z)} for z in said)
    return np.stack([np.argmax(fuse_fn(z), axis=-1) for z in changed])


class TestArbitraryCorruption:
    @pytest.mark.parametrize("corrupted", [("image",), ("image", "video")], ids="+".join)
    @pytest.mark.parametrize("perturbed", [("image",), ("image", "video"), None])
    def test_certified_samples_never_flip_and_the_worst_case_flips_all_others(
        self, corrupted, perturbed, dtype
    ):
        logits, prior = make_problem(dtype)
        # Of two corrupted modalities one is trusted, or there is only one bounded one against them.
        hopeless = len(corrupted) == 2 and perturbed != ("image", "video")
        for e, t in ((0.9, 1.0), (0.5, 0.5), (0.8, 0.7)):
            options: Any = {"contamination": e, "tempering": t, "perturbed": perturbed}
            rule = fusion.Contaminated(e, t)
            found = certify(rule, logits, prior, corrupted=corrupted, perturbed=perturbed)
            fuse_fn = functools.partial(rules.contaminated_fusion, class_prior=prior, **options)
            np.testing.assert_array_equal(found.label, np.argmax(fuse_fn(logits), axis=-1))
            flips = (labels_under_attack(logits, corrupted, fuse_fn) != found.label).any(axis=0)
            is_close = np.abs(found.margin) < 1e-5
            assert not flips[found.certified].any()
            assert flips[~found.certified & ~is_close].all()
            assert found.certified.any() != hopeless
            assert not found.certified.all()

    def test_gradient_ascent_in_the_logits_does_not_flip_certified_samples(self):
        logits, prior = make_problem()
        options: Any = {"contamination": 0.8, "perturbed": ("image",)}
        rule = fusion.Contaminated(0.8)
        found = certify(rule, logits, prior, corrupted="image", perturbed=("image",))

        @jax.jit
        def ascend(z, rival):
            def lead(z):
                fused = fusion.contaminated_fusion({**logits, "image": z}, prior, **options)
                rows = jnp.arange(len(z))
                of_rival = fused[rows, rival] - fused[rows, found.label]
                return of_rival.sum(), fused.argmax(axis=-1)

            gradient, label = jax.grad(lead, has_aux=True)(z)
            return z + 3 * jnp.sign(gradient), label

        for rival in range(5):
            z = logits["image"]
            for _ in range(31):
                z, label = ascend(z, rival)
                assert not (np.asarray(label) != found.label)[found.certified].any()

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_any_of_them_is_the_worst_set_of_that_size(self, number):
        logits, prior = make_problem()
        arguments = (fusion.Contaminated(0.97, tempering=0.3), logits, prior)
        # Outside of jit, where the same operations have the same rounding errors.
        found = certificates.certify_modality(*arguments, corrupted=number)
        each = [
            certificates.certify_modality(*arguments, corrupted=names)
            for names in itertools.combinations(NAMES, number)
        ]
        np.testing.assert_array_equal(found.certified, np.all([x.certified for x in each], axis=0))
        np.testing.assert_array_equal(found.margin, np.min([x.margin for x in each], axis=0))
        if number == 1:
            any_one = certificates.certify_modality(*arguments, corrupted="any_one")
            jax.tree.map(np.testing.assert_array_equal, any_one, found)

    def test_the_margin_is_what_the_worst_case_leaves(self):
        logits, prior = make_problem()
        options: Any = {"contamination": 0.6, "tempering": 0.7, "perturbed": ("image",)}
        rule = fusion.Contaminated(0.6, 0.7)
        found = certify(rule, logits, prior, corrupted=("image",), perturbed=("image",))
        rows = np.arange(len(found.label))
        leads = []
        for k in range(5):
            worst = {**logits, "image": one_hot_logits("float64", logits["image"].shape, k)}
            fused = np.asarray(rules.contaminated_fusion(worst, prior, **options))
            lead = fused[rows, found.label] - fused[:, k]
            leads.append(np.where(found.label == k, np.inf, lead))
        np.testing.assert_allclose(found.margin, np.min(leads, axis=0), rtol=1e-9, atol=1e-9)

    def test_cascades_certify_what_the_trusted_modalities_decide(self, dtype):
        logits, prior = make_problem(dtype)
        options: Any = {"contamination": 0.3, "confidence": 0.9, "perturbed": ("image",)}
        rule = fusion.Cascade(0.9, contamination=0.3)
        found = certify(rule, logits, prior, corrupted="image", perturbed=("image",))
        attacked = labels_under_attack(
            logits, ("image",), lambda z: rules.cascade_fusion(z, prior, **options)
        )
        flips = (attacked != found.label).any(axis=0)
        assert not flips[found.certified].any()
        assert flips[~found.certified & (np.abs(found.margin) > 1e-5)].all()
        bounded = certify(
            fusion.Cascade(1.0, contamination=0.3),
            *(logits, prior),
            corrupted="image",
            perturbed=("image",),
        )
        assert found.certified.sum() > bounded.certified.sum() + 10
        trusted = certify(rule, logits, prior, corrupted="audio", perturbed=("image",))
        assert not trusted.certified.any()

    def test_the_limits(self):
        logits, prior = make_problem()

        def certify_image(rule):
            return certify(rule, logits, prior, corrupted=("image",), perturbed=("image",))

        assert not certify_image(fusion.Contaminated(0.0)).certified.any()
        assert certify_image(fusion.Contaminated(1.0)).certified.all()
        assert certify_image(fusion.Contaminated(0.0, tempering=0.0)).certified.all()

    def test_scaled_and_statistical_fusion_are_contaminated_by_nothing(self, dtype):
        logits, prior = make_problem(dtype)
        options: Any = {"corrupted": "image", "perturbed": ("image", "video")}
        for rule, same in (
            (fusion.Statistical(), fusion.Contaminated(0.0)),
            (fusion.Scaled(0.4), fusion.Contaminated(0.0, 0.4)),
            (fusion.Scaled(0.0), fusion.Contaminated(0.0, 0.0)),
        ):
            found = certify(rule, logits, prior, **options)
            expected = certify(same, logits, prior, **options)
            np.testing.assert_array_equal(
                found.label,
                np.argmax(fuse(rule, logits, prior, perturbed=("image", "video")), axis=-1),
            )
            np.testing.assert_array_equal(found.label, expected.label)
            np.testing.assert_array_equal(found.certified, expected.certified)
            np.testing.assert_allclose(found.margin, expected.margin, rtol=1e-4, atol=1e-4)
            assert found.certified.all() == (rule == fusion.Scaled(0.0))

    @pytest.mark.parametrize("scale", [0.0, 0.4])
    def test_what_scaled_fusion_leaves_nan_is_not_certified(self, scale):
        logits, prior = make_problem()
        logits["image"][3] = np.nan
        rule = fusion.Scaled(scale)
        found = certify(rule, logits, prior, corrupted="video", perturbed=("image", "video"))
        is_nan = np.isnan(fuse(rule, logits, prior, perturbed=("image", "video"))).any(axis=-1)
        assert is_nan[3] == (scale > 0)
        np.testing.assert_array_equal(np.isnan(found.margin), is_nan)
        assert found.certified[3] == (scale == 0)

    def test_two_classes_one_row_and_vmap(self, dtype):
        logits, prior = make_problem(dtype, num_classes=2, num_rows=1, names=("image", "audio"))

        def certify_any(contamination):
            return certificates.certify_modality(
                fusion.Contaminated(contamination), logits, prior, corrupted="any_one"
            )

        contaminations = np.asarray([0.3, 0.9], dtype)
        found = jax.jit(jax.vmap(certify_any))(contaminations)
        one_by_one = jax.jit(certify_any)
        for index, contamination in enumerate(contaminations):
            one = one_by_one(contamination)
            assert one.margin.dtype == dtype
            np.testing.assert_allclose(np.asarray(found.margin)[index], one.margin, rtol=1e-4)
            np.testing.assert_array_equal(np.asarray(found.certified)[index], one.certified)

    @pytest.mark.parametrize("said", [np.nan, np.inf, -np.inf])
    def test_nothing_is_too_strange_for_the_corrupted_modality_to_say(self, said, dtype):
        logits, prior = make_problem(dtype)
        options: Any = {"perturbed": ("image",), "contamination": 0.95, "tempering": 1.0}

        def certify_image(logits):
            rule = fusion.Contaminated(0.95)
            return certify(rule, logits, prior, corrupted=("image",), perturbed=("image",))

        intact = certify_image(logits)
        row = int(np.flatnonzero(intact.certified)[0])
        others = np.arange(300) != row
        for entries in (1, slice(None)):
            broken = {**logits, "image": logits["image"].copy()}
            broken["image"][row, entries] = said
            fused = np.asarray(rules.contaminated_fusion(broken, prior, **options))
            assert np.argmax(fused[row]) == intact.label[row]
            found = certify_image(broken)
            jax.tree.map(np.testing.assert_array_equal, found, intact)
        broken = {**logits, "audio": logits["audio"].copy()}
        broken["audio"][row, 1] = np.nan
        found = certify_image(broken)
        assert not found.certified[row]
        np.testing.assert_array_equal(found.certified[others], intact.certified[others])

    def test_misuse(self):
        logits, prior = make_problem()
        rule = fusion.Contaminated(0.5)
        with pytest.raises(ValueError, match="corrupted must lie in 1 ... 3, got 4"):
            certificates.certify_modality(rule, logits, prior, corrupted=4)
        with pytest.raises(ValueError, match="corrupted names 'smell'"):
            certificates.certify_modality(rule, logits, prior, corrupted="smell")
        with pytest.raises(ValueError, match=r"scale must lie in \[0, 1\], got 2.0"):
            certificates.certify_modality(fusion.Scaled(2.0), logits, prior, corrupted="image")
        with pytest.raises(ValueError, match=r"tempering must be a scalar, got shape \(2,\)"):
            certificates.certify_modality(
                fusion.Contaminated(0.5, np.ones(2)), logits, prior, corrupted="image"
            )

    def test_other_rules_are_refused(self):
        logits, prior = make_problem()

        class Mine(fusion.Contaminated):
            pass

        options: Any = {"corrupted": "image"}
        for rule in (fusion.Robust(0.1), fusion.ContaminatedRobust(0.5, 0.1), Mine(0.5)):
            message = (
                "rules that can be certified are Statistical, Scaled, Contaminated, Cascade, "
                "LearnedCascade, Mean, Max, MajorityVote, Median, TrimmedMean, "
                f"got {type(rule).__name__}"
            )
            with pytest.raises(ValueError, match=message):
                certificates.certify_modality(rule, logits, prior, **options)  # pyright: ignore
            with pytest.raises(ValueError, match=message):
                certificates.certified_accuracy(
                    rule,  # pyright: ignore
                    *(logits, np.zeros(300, int), prior),
                    **options,
                )
        with pytest.raises(TypeError, match="rule must be a rule of jacfuse_jax.fusion, got dict"):
            certificates.certify_modality(logits, logits, prior, **options)  # pyright: ignore


certified_accuracy = jax.jit(
    certificates.certified_accuracy, static_argnames=("corrupted", "perturbed")
)


IMAGE: Any = {"corrupted": ("image",), "perturbed": ("image",)}


class TestCertifiedAccuracy:
    def make_labelled(self):
        logits, prior = make_problem()
        labels = np.array(rules.statistical_fusion(logits, prior)).argmax(axis=-1)
        labels[::4] = 0
        return logits, labels, prior

    @pytest.mark.parametrize(
        "batch",
        [
            fusion.Contaminated(np.array([0.3, 0.8, 0.99])),
            fusion.Contaminated(np.array([0.3, 0.8, 0.99]), 0.7),
            fusion.Contaminated(0.6, np.array([1.0, 0.6, 0.2])),
            fusion.Cascade(
                np.array([0.9, 0.8, 0.5]), contamination=np.array([0.3, 0.5, 0.9]), tempering=0.8
            ),
        ],
    )
    def test_counts_right_and_certified_samples(self, batch):
        logits, labels, prior = self.make_labelled()
        found = certified_accuracy(batch, logits, labels, prior, **IMAGE)
        assert found.clean.shape == found.certified.shape == (3,)
        for index in range(3):
            rule = jax.tree.map(lambda x, i=index: float(x[i]) if np.ndim(x) else x, batch)
            one = certify(rule, logits, prior, **IMAGE)
            is_correct = one.label == labels
            of_one = certified_accuracy(rule, logits, labels, prior, **IMAGE)
            for clean, certified in (of_one, (found.clean[index], found.certified[index])):
                np.testing.assert_allclose(clean, is_correct.mean(), rtol=1e-12)
                expected = (is_correct & one.certified).mean()
                np.testing.assert_allclose(certified, expected, rtol=1e-12)
        assert np.all(np.diff(found.certified) > 0)

    def test_a_rule_without_numbers_has_scalars(self):
        logits, labels, prior = self.make_labelled()
        found = certified_accuracy(fusion.Statistical(), logits, labels, prior, **IMAGE)
        fused = np.asarray(rules.statistical_fusion(logits, prior)).argmax(axis=-1)
        np.testing.assert_allclose(found.clean, (fused == labels).mean(), rtol=1e-12)
        assert found.certified == 0

    def test_traced_numbers_out_of_range_are_nan(self):
        logits, labels, prior = self.make_labelled()
        for batch in (
            fusion.Contaminated(np.array([0.5, 1.5])),
            fusion.Contaminated(0.5, np.array([0.5, 1.5])),
            fusion.Cascade(np.array([0.5, 1.5])),
            fusion.Scaled(np.array([0.5, 1.5])),
        ):
            found = certified_accuracy(batch, logits, labels, prior, **IMAGE)
            for accuracies in found:
                np.testing.assert_array_equal(np.isnan(accuracies), [False, True])

    def test_misuse(self):
        logits, labels, prior = self.make_labelled()
        fractions = np.array([0.3, 0.8, 0.99])

        def call(rule, labels=labels):
            certificates.certified_accuracy(rule, logits, labels, prior, corrupted="image")

        with pytest.raises(ValueError, match=r"labels must have shape \(300,\), .* got \(3,\)"):
            call(fusion.Contaminated(fractions), labels[:3])
        with pytest.raises(ValueError, match=r"contamination must lie in \[0, 1\], got \[0.3 1.8"):
            call(fusion.Contaminated(np.array([0.3, 1.8])))
        with pytest.raises(ValueError, match=r"all \(C,\), .*\(3,\), 'tempering': \(2,\)"):
            call(fusion.Contaminated(fractions, fractions[:2]))
        with pytest.raises(ValueError, match=r"scalars or all \(C,\), .*'scale': \(3, 1\)"):
            call(fusion.Scaled(fractions[:, None]))


def moved_logits(z, radius, num_draws, seed):
    """Points on the sphere and within."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(num_draws, *z.shape))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    lengths = rng.uniform(size=(num_draws, *radius.shape)) ** (1 / 4)
    lengths[: num_draws // 2] = 1
    return z + directions * (lengths * radius)[..., None]


NUM_STEPS = 60


@functools.partial(jax.jit, static_argnums=0)
def ascend(predict, z, labels, radius, *args):
    """Which samples flip in projected gradient ascent on the margin of every wrong class; (B,).

    predict(z, *args) gives log-probabilities (B, K).
    """
    rows = jnp.arange(len(z))

    def margin(moved, rival):
        log_probs = predict(moved, *args)
        of_rival = log_probs[rows, rival] - log_probs[rows, labels]
        return of_rival.sum(), log_probs.argmax(axis=-1) != labels

    def flips_towards(rival):
        def step(moved, _):
            gradient, flips = jax.grad(margin, has_aux=True)(moved, rival)
            size = jnp.linalg.norm(gradient, axis=-1, keepdims=True)
            moved = moved + 0.25 * radius[:, None] * gradient / jnp.where(size > 0, size, 1)
            offset = moved - z
            length = jnp.linalg.norm(offset, axis=-1, keepdims=True)
            shrink = jnp.minimum(1, radius[:, None] / jnp.where(length > 0, length, 1))
            return z + offset * shrink, flips

        return jax.lax.scan(step, z, length=NUM_STEPS + 1)[1].any(axis=0)

    return jax.lax.map(flips_towards, jnp.arange(5)).any(axis=0)


@jax.jit
def fuse_contaminated(z, audio, prior, contamination, tempering):
    return fusion.contaminated_fusion(
        {"image": z, "audio": audio},
        prior,
        contamination=contamination,
        tempering=tempering,
        perturbed="image",
    )


@jax.jit
def fuse_robustly(z, audio, grams, prior, gamma):
    return fusion.robust_fusion(
        {"image": z, "audio": audio}, grams, prior, perturbed="image", gamma=gamma
    ).log_probs


class TestRadii:
    @pytest.mark.parametrize("options", [(0.3, 1.0), (0.9, 0.5), (0.0, 0.3), (0.0, 1.0)])
    def test_contaminated_fusion_keeps_its_class_within(self, options):
        e, t = options
        logits, prior = make_problem(num_rows=200, names=("image", "audio"))
        radius = certified_radius(
            fusion.Contaminated(e, t), logits, prior, corrupted="image", perturbed="image"
        )
        args = (logits["audio"], prior, e, t)
        self.check(fuse_contaminated, logits["image"], np.asarray(radius), *args)
        assert np.isinf(radius).any() == (e > 0)

    def test_two_classes_without_contamination_are_exact(self):
        logits, prior = make_problem(num_classes=2, names=("image", "audio"))
        fused = np.asarray(rules.statistical_fusion(logits, prior))
        expected = np.abs(fused[:, 0] - fused[:, 1]) / np.sqrt(2) / 5
        for rule in (fusion.Contaminated(0.0), fusion.Scaled(1.0), fusion.Statistical()):
            radius = certified_radius(rule, logits, prior, corrupted="image", lipschitz=5.0)
            np.testing.assert_allclose(radius, expected, rtol=2e-3)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_scaled_and_statistical_fusion_are_contaminated_by_nothing(self, dtype):
        logits, prior = make_problem(dtype)
        options: Any = {"corrupted": "image", "perturbed": ("image", "audio")}
        for rule, same in (
            (fusion.Statistical(), fusion.Contaminated(0.0)),
            (fusion.Scaled(0.3), fusion.Contaminated(0.0, 0.3)),
        ):
            found, expected = (certified_radius(r, logits, prior, **options) for r in (rule, same))
            np.testing.assert_allclose(found, expected, rtol=1e-3 if dtype == "float32" else 1e-9)
        of_trusted = certified_radius(
            fusion.Scaled(0.3), logits, prior, corrupted="image", perturbed="audio"
        )
        assert (np.asarray(of_trusted) > 0).all()

    @pytest.mark.parametrize("gamma", [0.1, 0.5, 0.01])
    def test_robust_fusion_keeps_its_class_within(self, gamma):
        rng = np.random.default_rng(1)
        logits, prior = make_problem(num_rows=200, names=("image", "audio"), scale=4.0)
        grams = {"image": rules.kernel_spectrum(rng.normal(size=(7, 5)) / 3)}
        options: Any = {"corrupted": "image", "perturbed": "image", "grams": grams}
        radius = np.asarray(certified_radius(fusion.Robust(gamma), logits, prior, **options))
        args = (logits["audio"], grams, prior, gamma)
        self.check(fuse_robustly, logits["image"], radius, *args)
        assert np.median(radius) > 0.02

    def check(self, predict, z, radius, *args):
        labels = np.argmax(predict(z, *args), axis=-1)
        assert (radius > 0).mean() > 0.98
        finite = np.minimum(radius, 1e3)
        flips = np.array(ascend(predict, z, labels, finite, *args))
        for moved in moved_logits(z, finite, 100, seed=2):
            flips |= np.argmax(predict(moved, *args), axis=-1) != labels
        assert not flips.any()
        # The test can fail: not much further out, classes do change.
        further = np.where(np.isinf(radius), 0, 20 * radius)
        found = np.asarray(ascend(predict, z, labels, further, *args))
        assert found[np.isfinite(radius)].mean() > 0.2

    def test_a_network_keeps_its_class_within_under_pgd(self):
        """Inputs move, through a network with a Lipschitz constant from power iteration."""
        rng = np.random.default_rng(3)
        first, second = rng.normal(size=(12, 16)) / 4, rng.normal(size=(16, 5)) / 2
        prior = np.full(5, 0.2)
        x, audio = rng.normal(size=(150, 12)), 3 * rng.normal(size=(150, 5))

        @jax.jit
        def lipschitz_constant(key):
            keys = jax.random.split(key)
            return bounds.spectral_norm(
                lambda x: x @ first, (12,), keys[0], dtype=jnp.float64
            ) * bounds.spectral_norm(lambda h: h @ second, (16,), keys[1], dtype=jnp.float64)

        grams = {"image": rules.kernel_spectrum(second)}

        def logits_of(x):
            return {"image": jax.nn.relu(x @ first) @ second, "audio": audio}

        @jax.jit
        def predict(x):
            return fusion.robust_fusion(
                logits_of(x), grams, prior, perturbed="image", gamma=0.1
            ).log_probs

        radius = certified_radius(
            fusion.Robust(0.1),
            logits_of(x),
            prior,
            corrupted="image",
            perturbed="image",
            grams=grams,
            lipschitz=lipschitz_constant(jax.random.key(0)),
        )
        labels = np.argmax(predict(x), axis=-1)
        assert not np.any(ascend(predict, x, labels, radius))

    def test_nan_has_no_radius(self):
        logits, prior = make_problem(num_rows=3, names=("image", "audio"))
        logits["audio"][1, 2] = np.nan
        grams = {"image": rules.kernel_spectrum(np.eye(5))}
        for rule in (
            fusion.Contaminated(0.5),
            fusion.Scaled(0.5),
            fusion.Statistical(),
            fusion.Robust(0.1),
        ):
            radius = certificates.certified_radius(  # outside of jit
                rule, logits, prior, corrupted="image", perturbed="image", grams=grams
            )
            np.testing.assert_array_equal(np.asarray(radius) > 0, [True, False, True])
            assert radius[1] == 0

    def test_what_a_rule_leaves_nan_has_no_radius(self):
        """A perturbed modality that says nothing is the prior of contaminated fusion alone."""
        logits, prior = make_problem(num_rows=3)
        logits["audio"][1] = np.nan
        for rule, has_radius in (
            (fusion.Contaminated(0.5), True),
            (fusion.Scaled(0.5), False),
            (fusion.Statistical(), False),
        ):
            radius = certified_radius(
                rule, logits, prior, corrupted="image", perturbed=("image", "audio")
            )
            np.testing.assert_array_equal(np.asarray(radius) > 0, [True, has_radius, True])

    def test_misuse(self):
        logits, prior = make_problem(num_rows=3)
        grams = {"image": rules.kernel_spectrum(np.eye(5))}

        def call(rule, corrupted="image", perturbed: Any = "image", grams: Any = grams):
            certificates.certified_radius(
                rule, logits, prior, corrupted=corrupted, perturbed=perturbed, grams=grams
            )

        message = "rules that have a radius are Statistical, Scaled, Contaminated, Robust, got"
        for rule in (fusion.Cascade(0.9), fusion.Mean(), fusion.ContaminatedRobust(0.1, 0.1)):
            with pytest.raises(ValueError, match=message):
                call(rule)
        robust = fusion.Robust(0.1)
        with pytest.raises(ValueError, match="the rule robust needs grams"):
            call(robust, grams=None)
        with pytest.raises(ValueError, match="must be shared by all samples"):
            call(robust, grams=jax.tree.map(lambda x: x[None], grams))
        for perturbed in (None, "audio", ("image", "audio"), ()):
            with pytest.raises(ValueError, match="perturbed is the modality that moves, 'image'"):
                call(robust, perturbed=perturbed)
        for rule in (fusion.Robust(0.1, num_iterations=2), fusion.Robust(0.1, solver="eigh")):
            with pytest.raises(ValueError, match="one iteration, in closed form, got Robust"):
                call(rule)
        with pytest.raises(ValueError, match=r"gamma must lie in \(0, 1\], got 0.0"):
            call(fusion.Robust(0.0))
        with pytest.raises(ValueError, match="corrupted names 'smell'"):
            call(fusion.Statistical(), corrupted="smell")
