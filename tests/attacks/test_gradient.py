import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax import attacks, fusion
from jacfuse_jax.linalg import spectrum_from_kernel
from tests.attacks.classifiers import (
    BATCH,
    SOUND,
    TRACES,
    Classifiers,
    attack_classifiers,
    fused_log_probs,
    perturbation_norms,
    run,
    vertices,
)


@pytest.mark.parametrize("attack", [attacks.fgm, attacks.pgd])
@pytest.mark.parametrize("norm", ["linf", "l2"])
class TestEveryAttack:
    def test_respects_the_budget_of_each_modality(self, attack, norm, dtype):
        model = Classifiers(dtype)
        budgets = {"image": 0.3, "audio": 0.05}
        adversarial = run(attack, model, budgets, norm=norm)
        for name, radius in budgets.items():
            norms = perturbation_norms(model.inputs[name], adversarial[name], norm)
            assert (norms <= radius * (1 + 20 * np.finfo(dtype).eps) + np.finfo(dtype).eps).all()
            assert (norms > radius / 3).all()
            assert norms.max() > 0.9 * radius
            assert adversarial[name].dtype == dtype

    def test_respects_the_valid_range(self, attack, norm, dtype):
        model = Classifiers(dtype)
        ranges = {"image": (np.zeros((2, 4)), 1.0)}  # arrays or scalars
        image = run(attack, model, {"image": 5.0}, ranges, norm=norm)["image"]
        assert image.dtype == dtype
        assert image.min() == 0
        assert image.max() == 1

    def test_raises_the_loss(self, attack, norm):
        model = Classifiers()
        adversarial = run(attack, model, {"image": 0.2}, norm=norm)
        assert (model.loss(adversarial) > model.loss(model.inputs)).all()

    def test_zero_budget_changes_nothing(self, attack, norm):
        model = Classifiers()
        adversarial = run(attack, model, {}, norm=norm)
        for name in ("image", "audio"):
            np.testing.assert_array_equal(adversarial[name], model.inputs[name])

    def test_one_compilation_serves_every_budget_and_agrees_with_an_eager_call(self, attack, norm):
        model = Classifiers()
        numbers = {"epsilon": {"audio": 0.2}}  # no other modality, and no range
        arguments = (model.kernels, model.inputs, model.labels, 0, SOUND, numbers)
        eager = attack_classifiers(attack, *arguments, (("norm", norm),))
        run(attack, model, {"audio": 0.1}, norm=norm)
        num_traces = len(TRACES)
        found = run(attack, model, {"audio": 0.2}, norm=norm)
        assert len(TRACES) == num_traces
        np.testing.assert_allclose(found["audio"], eager["audio"], atol=1e-12)
        for name in ("image", "text"):
            assert eager[name] is model.inputs[name]

    def test_useless_gradients_leave_the_sample(self, attack, norm):
        model = Classifiers()
        sample = np.arange(BATCH)
        factor = np.where(sample == 0, np.nan, np.where(sample == 1, 0, 1))  # NaN, and constant
        found = run(attack, model, {"image": 0.2}, spoil={**SOUND, "factor": factor}, norm=norm)
        np.testing.assert_array_equal(found["image"][:2], model.inputs["image"][:2])
        expected = run(attack, model, {"image": 0.2}, norm=norm)
        np.testing.assert_allclose(found["image"][2:], expected["image"][2:], atol=1e-12)


class TestStrength:
    @pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
    def test_fgm_is_optimal_for_two_linear_classes(self, norm, dual):
        model = Classifiers(num_classes=2)
        adversarial = run(attacks.fgm, model, {"image": 0.2}, norm=norm)
        difference = model.kernels["image"][:, 0] - model.kernels["image"][:, 1]
        log_probs = model.log_probs(model.inputs)
        margin = (log_probs[:, 0] - log_probs[:, 1]) * np.where(model.labels == 0, 1, -1)
        worst = margin - 0.2 * np.linalg.norm(difference, ord=dual)
        np.testing.assert_allclose(model.loss(adversarial), np.log1p(np.exp(-worst)), rtol=1e-9)

    def test_pgd_finds_the_vertex_of_highest_loss(self):
        model = Classifiers()
        adversarial = run(attacks.pgd, model, {"audio": 0.2}, norm="linf")
        audios = vertices(model.inputs["audio"], 0.2)
        best = np.max([model.loss({**model.inputs, "audio": audio}) for audio in audios], axis=0)
        np.testing.assert_allclose(model.loss(adversarial), best, rtol=1e-6)

    def test_l2_pgd_ends_where_the_gradient_points_out_of_the_ball(self):
        model = Classifiers()
        options: Any = {"norm": "l2", "num_steps": 200, "relative_step_size": 0.1}
        adversarial = run(attacks.pgd, model, {"audio": 0.5}, **options)
        delta = adversarial["audio"] - model.inputs["audio"]
        np.testing.assert_allclose(np.linalg.norm(delta, axis=1), 0.5, rtol=1e-9)
        # Of -log p_y, with the logits W^T h: (p - e_y) W^T.
        residual = np.exp(model.log_probs(adversarial)) - np.eye(3)[model.labels]
        ascent = residual @ model.kernels["audio"].T
        cosine = (ascent * delta).sum(axis=1) / (np.linalg.norm(ascent, axis=1) * 0.5)
        np.testing.assert_allclose(cosine, 1, atol=1e-3)

    def test_more_steps_are_not_weaker(self):
        model = Classifiers()
        losses = [
            model.loss(run(attacks.pgd, model, {"image": 0.3}, norm="linf", **options)).mean()
            for options in ({"num_steps": 1}, {"num_steps": 5}, {})
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
        prior = np.full(3, 1 / 3)

        def defended(inputs):
            logits = {
                name: inputs[name].reshape(BATCH, -1) @ kernel
                for name, kernel in model.kernels.items()
            }
            return fusion.robust_fusion(
                logits, spectra, prior, perturbed="image", gamma=0.1
            ).log_probs

        @jax.jit
        def loss(image):
            log_probs = defended({**model.inputs, "image": image})
            return -log_probs[np.arange(BATCH), model.labels]

        direction = np.random.default_rng(1).normal(size=(BATCH, 2, 4))
        image = model.inputs["image"]
        slope = jax.jit(jax.grad(lambda t: loss(image + t * direction).sum()))(0.0)
        ahead, behind = (loss(image + t * direction).sum() for t in (1e-6, -1e-6))
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-7)

        @jax.jit
        def perturb(key):
            return attacks.pgd(defended, model.inputs, model.labels, key, epsilon={"image": 0.3})

        assert (loss(perturb(jax.random.key(0))["image"]) > loss(image)).all()


def test_permuted_samples_give_permuted_steps():
    model = Classifiers()
    order = np.random.default_rng(1).permutation(BATCH)
    expected = run(attacks.fgm, model, {"image": 0.3}, norm="l2")["image"][order]
    model.inputs = {name: x[order] for name, x in model.inputs.items()}
    model.labels = model.labels[order]
    found = run(attacks.fgm, model, {"image": 0.3}, norm="l2")["image"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


def test_same_key_gives_the_same_attack_and_another_key_another():
    model = Classifiers()

    def attack(seed):
        options: Any = {"norm": "linf", "num_steps": 1, "seed": seed}
        return run(attacks.pgd, model, {"image": 0.3}, **options)["image"]

    np.testing.assert_array_equal(attack(0), attack(0))
    assert not np.array_equal(attack(0), attack(1))


def test_misuse():
    model = Classifiers()

    log_prob_fn = functools.partial(fused_log_probs, model.kernels)

    def attack(attack_fn, **kwargs):
        key = (jax.random.key(0),) if attack_fn is attacks.pgd else ()
        return attack_fn(log_prob_fn, model.inputs, model.labels, *key, **kwargs)

    with pytest.raises(ValueError, match="norm must be one of linf, l2, got 'l7'"):
        attack(attacks.fgm, epsilon={"image": 0.1}, norm="l7")
    with pytest.raises(ValueError, match="epsilon names 'smell', but the modalities are"):
        attack(attacks.fgm, epsilon={"smell": 0.1})
    with pytest.raises(ValueError, match=r"epsilon\['image'\] must lie in \[0, inf\), got -0.1"):
        attack(attacks.pgd, epsilon={"image": -0.1})
    with pytest.raises(ValueError, match=r"epsilon\['image'\] must lie in \[0, inf\), got inf"):
        attack(attacks.fgm, epsilon={"image": np.inf})
    with pytest.raises(TypeError, match=r"inputs\['text'\] must be float32 or float64, got int64"):
        attack(attacks.fgm, epsilon={"text": 0.1})
    with pytest.raises(ValueError, match="valid_range names 'smell'"):
        attack(attacks.fgm, epsilon={"image": 0.1}, valid_range={"smell": (0, 1)})
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        attack(attacks.pgd, epsilon={"image": 0.1}, num_steps=0)
    with pytest.raises(ValueError, match="num_restarts must be at least 1, got 0"):
        attack(attacks.pgd, epsilon={"image": 0.1}, num_restarts=0)
    with pytest.raises(ValueError, match="loss must be one of cross_entropy, margin, dlr, got 'l'"):
        attack(attacks.pgd, epsilon={"image": 0.1}, loss="l")
    with pytest.raises(ValueError, match="step_schedule must be one of constant, cosine, got 'l'"):
        attack(attacks.pgd, epsilon={"image": 0.1}, step_schedule="l")
    with pytest.raises(ValueError, match=r"loss must return shape \(6,\), one number a sample"):
        attack(attacks.pgd, epsilon={"image": 0.1}, loss=lambda z, _: z.sum())
