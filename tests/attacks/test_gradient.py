import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax import attacks, fusion
from jacfuse_jax.linalg import spectrum_from_kernel
from tests.attacks.classifiers import BATCH, Classifiers, perturbation_norms, run


@pytest.mark.parametrize("attack", [attacks.fgm, attacks.pgd])
@pytest.mark.parametrize("norm", ["linf", "l2"])
class TestEveryAttack:
    def test_respects_the_budget_and_leaves_other_modalities_alone(self, attack, norm, dtype):
        model = Classifiers(dtype)
        adversarial = run(attack, model, epsilon={"image": 0.3}, norm=norm)
        norms = perturbation_norms(model.inputs["image"], adversarial["image"], norm)
        assert (norms <= 0.3 * (1 + 20 * np.finfo(dtype).eps)).all()
        assert (norms > 0.1).all()
        assert adversarial["image"].dtype == dtype
        assert adversarial["audio"] is model.inputs["audio"]

    def test_budgets_are_per_modality(self, attack, norm):
        model = Classifiers()
        budgets = {"image": 0.3, "audio": 0.05}
        adversarial = run(attack, model, epsilon=budgets, norm=norm)
        for name, radius in budgets.items():
            norms = perturbation_norms(model.inputs[name], adversarial[name], norm)
            np.testing.assert_array_less(norms, radius * (1 + 1e-12))
            assert norms.max() > 0.9 * radius

    @pytest.mark.parametrize("bounds", [(0.0, 1.0), (np.zeros((2, 4)), np.ones((2, 4)))])
    def test_respects_the_valid_range(self, attack, norm, bounds, dtype):
        model = Classifiers(dtype)
        ranges = {"image": bounds}
        adversarial = run(attack, model, epsilon={"image": 5.0}, norm=norm, valid_range=ranges)
        assert adversarial["image"].dtype == dtype
        assert adversarial["image"].min() >= 0
        assert adversarial["image"].max() <= 1

    def test_raises_the_loss(self, attack, norm):
        model = Classifiers()
        adversarial = run(attack, model, epsilon={"image": 0.2}, norm=norm)
        assert (model.loss(adversarial) > model.loss(model.inputs)).all()

    def test_zero_budget_changes_nothing(self, attack, norm):
        model = Classifiers()
        adversarial = run(attack, model, epsilon={"image": 0.0}, norm=norm)
        np.testing.assert_array_equal(adversarial["image"], model.inputs["image"])

    def test_one_compilation_serves_every_budget(self, attack, norm):
        model = Classifiers()
        traces = []

        @jax.jit
        def perturb(radius):
            traces.append(radius)
            return run(attack, model, epsilon={"image": radius}, norm=norm)["image"]

        for radius in (0.1, 0.2):
            eager = run(attack, model, epsilon={"image": radius}, norm=norm)["image"]
            np.testing.assert_allclose(perturb(radius), eager, atol=1e-12)
        assert len(traces) == 1

    def test_useless_gradients_leave_the_sample_or_stay_within_budget(self, attack, norm):
        model = Classifiers()

        def log_probs(inputs):
            flat = model.log_probs(inputs)
            broken = jnp.where(jnp.arange(BATCH)[:, None] == 0, jnp.nan, 1)
            constant = jnp.where(jnp.arange(BATCH)[:, None] == 1, 0, 1)
            return flat * broken * constant

        kwargs = {"key": jax.random.key(0)} if attack is attacks.pgd else {}
        adversarial = attack(
            log_probs, model.inputs, model.labels, epsilon={"image": 0.2}, norm=norm, **kwargs
        )["image"]
        assert np.isfinite(adversarial).all()
        np.testing.assert_array_equal(adversarial[:2], model.inputs["image"][:2])
        expected = run(attack, model, epsilon={"image": 0.2}, norm=norm)["image"]
        np.testing.assert_allclose(adversarial[2:], expected[2:], atol=1e-12)


class TestStrength:
    def test_fgm_is_optimal_for_two_linear_classes(self):
        model = Classifiers(num_classes=2)
        for norm, dual in (("linf", 1), ("l2", 2)):
            adversarial = run(attacks.fgm, model, epsilon={"image": 0.2}, norm=norm)
            difference = model.kernels["image"][:, 0] - model.kernels["image"][:, 1]
            z = np.sum(list(model.logits(model.inputs).values()), axis=0)
            margin = (z[:, 0] - z[:, 1]) * np.where(model.labels == 0, 1, -1)
            worst = margin - 0.2 * np.linalg.norm(difference, ord=dual)
            np.testing.assert_allclose(model.loss(adversarial), np.log1p(np.exp(-worst)), rtol=1e-9)

    def test_pgd_finds_the_vertex_of_highest_loss(self):
        model = Classifiers()
        adversarial = run(attacks.pgd, model, epsilon={"audio": 0.2}, num_steps=50)
        signs = np.array(np.meshgrid(*[(-1, 1)] * 5)).reshape(5, -1).T
        best = np.max(
            [
                model.loss({**model.inputs, "audio": model.inputs["audio"] + 0.2 * sign})
                for sign in signs
            ],
            axis=0,
        )
        np.testing.assert_allclose(model.loss(adversarial), best, rtol=1e-6)

    def test_l2_pgd_ends_where_the_gradient_points_out_of_the_ball(self):
        model = Classifiers()
        adversarial = run(
            attacks.pgd,
            model,
            epsilon={"audio": 0.5},
            norm="l2",
            num_steps=200,
            relative_step_size=0.1,
        )
        delta = adversarial["audio"] - model.inputs["audio"]
        np.testing.assert_allclose(np.linalg.norm(delta, axis=1), 0.5, rtol=1e-9)

        def total_log_prob(audio):
            log_probs = model.log_probs({**model.inputs, "audio": audio})
            return jnp.take_along_axis(log_probs, model.labels[:, None], axis=1).sum()

        ascent = -jax.grad(total_log_prob)(adversarial["audio"])
        cosine = (ascent * delta).sum(axis=1) / (np.linalg.norm(ascent, axis=1) * 0.5)
        np.testing.assert_allclose(cosine, 1, atol=1e-3)

    def test_more_steps_are_not_weaker(self):
        model = Classifiers()
        losses = [
            model.loss(run(attacks.pgd, model, epsilon={"image": 0.3}, num_steps=steps)).mean()
            for steps in (1, 5, 40)
        ]
        assert losses[0] <= losses[1] <= losses[2]

    def test_pgd_never_returns_an_input_weaker_than_the_clean_one(self):
        model = Classifiers()

        def already_worst(inputs):  # the clean input is the maximum of the loss
            distance = jnp.sum((inputs["image"] - model.inputs["image"]) ** 2, axis=(1, 2))
            return jnp.stack([distance] * 3, axis=1)

        adversarial = attacks.pgd(
            already_worst, model.inputs, model.labels, jax.random.key(0), epsilon={"image": 0.3}
        )
        np.testing.assert_array_equal(adversarial["image"], model.inputs["image"])

    def test_attack_goes_through_the_solve_of_the_defence(self):
        model = Classifiers()
        spectra = {"image": spectrum_from_kernel(model.kernels["image"])}

        def defended(inputs):
            return fusion.robust_fusion(
                model.logits(inputs), spectra, model.prior, perturbed="image", gamma=0.1
            ).log_probs

        def loss(inputs):
            return -np.take_along_axis(np.asarray(defended(inputs)), model.labels[:, None], 1)

        direction = np.random.default_rng(1).normal(size=(BATCH, 2, 4))

        def along(t):
            moved = {**model.inputs, "image": model.inputs["image"] + t * direction}
            picked = jnp.take_along_axis(defended(moved), model.labels[:, None], axis=1)
            return picked.sum()

        finite_difference = (along(1e-6) - along(-1e-6)) / 2e-6
        np.testing.assert_allclose(jax.grad(along)(0.0), finite_difference, rtol=1e-7)
        adversarial = attacks.pgd(
            defended, model.inputs, model.labels, jax.random.key(0), epsilon={"image": 0.3}
        )
        assert (loss(adversarial) > loss(model.inputs)).all()


def test_permuted_samples_give_permuted_steps():
    model = Classifiers()
    order = np.random.default_rng(1).permutation(BATCH)
    expected = run(attacks.fgm, model, epsilon={"image": 0.3}, norm="l2")["image"][order]
    model.inputs = {name: x[order] for name, x in model.inputs.items()}
    model.labels = model.labels[order]
    found = run(attacks.fgm, model, epsilon={"image": 0.3}, norm="l2")["image"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


def test_same_key_gives_the_same_attack_and_another_key_another():
    model = Classifiers()

    def attack(seed):
        key = jax.random.key(seed)
        return run(attacks.pgd, model, epsilon={"image": 0.3}, num_steps=1, key=key)["image"]

    np.testing.assert_array_equal(attack(0), attack(0))
    assert not np.array_equal(attack(0), attack(1))


def test_misuse():
    model = Classifiers()
    with pytest.raises(ValueError, match="norm must be 'linf' or 'l2', got 'l7'"):
        run(attacks.fgm, model, epsilon={"image": 0.1}, norm="l7")
    with pytest.raises(ValueError, match="epsilon names 'smell', but the modalities are"):
        run(attacks.fgm, model, epsilon={"smell": 0.1})
    with pytest.raises(ValueError, match=r"epsilon\['image'\] must lie in \[0, inf\), got -0.1"):
        run(attacks.pgd, model, epsilon={"image": -0.1})
    with pytest.raises(ValueError, match=r"epsilon\['image'\] must lie in \[0, inf\), got inf"):
        run(attacks.fgm, model, epsilon={"image": np.inf})
    with pytest.raises(ValueError, match=r"epsilon\['image'\] must be a scalar, got shape \(6,\)"):
        run(attacks.fgm, model, epsilon={"image": np.ones(6)})
    model.inputs["image"] = (255 * model.inputs["image"]).astype(np.uint8)
    with pytest.raises(TypeError, match=r"inputs\['image'\] must be float32 or float64, got uint8"):
        run(attacks.fgm, model, epsilon={"image": 0.1})
    model = Classifiers()
    with pytest.raises(ValueError, match="valid_range names 'smell'"):
        run(attacks.fgm, model, epsilon={"image": 0.1}, valid_range={"smell": (0, 1)})
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        run(attacks.pgd, model, epsilon={"image": 0.1}, num_steps=0)
    with pytest.raises(ValueError, match="num_restarts must be at least 1, got 0"):
        run(attacks.pgd, model, epsilon={"image": 0.1}, num_restarts=0)
    with pytest.raises(ValueError, match="loss must be one of cross_entropy, margin, dlr, got 'l'"):
        run(attacks.pgd, model, epsilon={"image": 0.1}, loss="l")
    with pytest.raises(ValueError, match="step_schedule must be one of constant, cosine, got 'l'"):
        run(attacks.pgd, model, epsilon={"image": 0.1}, step_schedule="l")
    with pytest.raises(ValueError, match=r"loss must return shape \(6,\), one number a sample"):
        run(attacks.pgd, model, epsilon={"image": 0.1}, loss=lambda z, _: z.sum())
