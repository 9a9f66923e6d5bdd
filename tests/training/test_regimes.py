from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from flax import nnx
from jax.test_util import check_grads

from jacfuse_jax import attacks, training
from jacfuse_jax.models import ResNet, UnimodalOutput
from jacfuse_jax.training import _regimes as regimes
from jacfuse_jax.training import iterate_batches

rng = np.random.default_rng(0)
INPUTS = rng.uniform(size=(6, 5, 4, 1))
LABELS = np.array([0, 1, 2, 0, 1, 2])
VALID_RANGE = (0.0, 1.0)


def make_batch(epoch=0, inputs=INPUTS, **options):
    batches = [{"inputs": inputs, "label": LABELS, "mask": np.ones(6)}]
    return next(regimes.add_randomness(batches, (0, 1, epoch), VALID_RANGE, **options))


class Linear(nnx.Module):
    def __init__(self, num_classes=3):
        kernel = np.random.default_rng(1).normal(size=(20, num_classes))
        self.kernel = nnx.Param(jnp.asarray(kernel))

    def __call__(self, x):
        x = x.reshape(len(x), -1)
        return UnimodalOutput(x @ self.kernel[...], x)


class Smooth(Linear):
    def __call__(self, x):
        return super().__call__(jnp.tanh(super().__call__(x).logits @ self.kernel[...].T))


class Recorder:
    """Remembers what it was given."""

    inputs = np.empty(0)

    def __call__(self, x):
        self.inputs = np.asarray(x)
        return UnimodalOutput(jnp.zeros((len(x), 3)), x)


@partial(nnx.jit, static_argnums=0)
def losses_and_gradient(loss_fn, model, batch):
    """Losses (B,), and the derivative of their sum in the parameters."""

    def total(model):
        losses = loss_fn(model, batch)
        return losses.sum(), losses

    gradient, losses = nnx.grad(total, has_aux=True)(model)
    return losses, gradient


def test_an_unknown_regime_is_named():
    with pytest.raises(ValueError, match="one of standard, noise, pgd, jacobian, got 'pdg'"):
        regimes.choose_loss_fn("pdg")


@pytest.mark.parametrize("regime", regimes.REGIMES)
def test_samples_do_not_depend_on_the_others_of_their_batch(regime):
    model = Smooth()
    loss_fn = jax.jit(partial(regimes.choose_loss_fn(regime), model))
    changed = INPUTS.copy()
    changed[4:] = 0.5
    losses, others = loss_fn(make_batch()), loss_fn(make_batch(inputs=changed))
    assert losses.shape == (6,)
    np.testing.assert_allclose(losses[:4], others[:4], rtol=1e-6)
    assert not np.allclose(losses[4:], others[4:])


@pytest.mark.parametrize("regime", regimes.REGIMES[1:])
def test_a_killed_training_ends_where_an_uninterrupted_one_does(regime, tmp_path):
    optimizer = optax.sgd(0.1)

    def fit(folder, killed_in=None):
        def make_batches(epoch):
            arrays = {"inputs": INPUTS, "label": LABELS}
            batches = iterate_batches(arrays, 4, shuffle_seed=epoch)
            batches = regimes.add_randomness(batches, (0, 0, epoch), VALID_RANGE)
            for index, batch in enumerate(batches):
                if epoch == killed_in and index == 1:
                    raise KeyboardInterrupt
                yield batch

        model = Smooth()
        training.fit(
            model,
            optimizer,
            make_batches,
            num_epochs=3,
            checkpoint_dir=tmp_path / folder,
            loss_fn=regimes.choose_loss_fn(regime),
        )
        return model.kernel[...]

    whole = fit("whole")
    with pytest.raises(KeyboardInterrupt):
        fit("killed", killed_in=2)
    np.testing.assert_array_equal(fit("killed"), whole)
    assert not np.array_equal(whole, Smooth().kernel[...])


class TestRandomness:
    def draw(self, seed):
        batches = [{"label": LABELS}] * 3
        return [
            jax.random.key_data(batch["key"]).tolist()
            for batch in regimes.add_randomness(batches, seed, VALID_RANGE)
        ]

    def test_repeats_for_the_same_epoch(self):
        assert self.draw((0, 1, 2)) == self.draw((0, 1, 2))

    def test_differs_by_batch_epoch_modality_and_seed(self):
        seeds = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
        keys = [tuple(key) for seed in seeds for key in self.draw(seed)]
        assert len(set(keys)) == 12

    def test_leaves_the_rest_of_a_batch(self):
        batch = make_batch()
        assert batch["inputs"] is INPUTS
        assert batch["label"] is LABELS
        assert batch["valid_range"] == VALID_RANGE


class TestNoise:
    def noisy(self, epoch, inputs):
        model = Recorder()
        regimes.noise_loss(model, make_batch(epoch, inputs))
        return model.inputs

    def test_is_drawn_anew_each_epoch_and_repeats_on_resume(self):
        first = self.noisy(0, INPUTS)
        np.testing.assert_array_equal(self.noisy(0, INPUTS), first)
        assert not np.isclose(self.noisy(1, INPUTS), first).all(axis=(1, 2, 3)).any()

    def test_has_its_standard_deviation_and_stays_in_range(self):
        inputs = np.full((6, 50, 50, 1), 0.5)
        noise = self.noisy(0, inputs) - 0.5
        low, high = noise.min(), noise.max()
        assert (low, high) == (-0.5, 0.5)  # clipped at 2.5 standard deviations
        inside = noise[np.abs(noise) < 0.5]
        assert np.std(noise) == pytest.approx(0.2, rel=0.05)
        assert inside.mean() == pytest.approx(0, abs=0.01)
        share = scipy.special.ndtr(-0.5 / regimes.NOISE_STDDEV) * 2
        assert 1 - inside.size / noise.size == pytest.approx(share, rel=0.2)


class TestPgd:
    @pytest.mark.parametrize("share", [1, 0.25, 0])
    def test_finds_the_worst_input_of_a_linear_model(self, share):
        # With two classes the gradient keeps its sign, so the best vertex of the ball is known.
        model, labels = Linear(num_classes=2), LABELS % 2
        batch = {**make_batch(radius_share=share), "label": labels}
        kernel = np.asarray(model.kernel[...])
        uphill = np.sign(kernel[:, 1] - kernel[:, 0]).reshape(5, 4, 1)
        direction = np.where(labels[:, None, None, None] == 0, uphill, -uphill)
        worst = np.clip(INPUTS + share * regimes.PGD_EPSILON * direction, *VALID_RANGE)
        log_probs = scipy.special.log_softmax(worst.reshape(6, -1) @ kernel, axis=1)
        losses, gradient = losses_and_gradient(regimes.pgd_loss, model, batch)
        np.testing.assert_allclose(losses, -log_probs[np.arange(6), labels], rtol=1e-9)
        # The derivative in the parameters is that at the fixed worst input.
        errors = np.exp(log_probs) - np.eye(2)[labels]
        np.testing.assert_allclose(
            gradient["kernel"][...], worst.reshape(6, -1).T @ errors, rtol=1e-9, atol=1e-12
        )

    def test_loss_is_at_least_the_clean_one(self):
        model = Smooth()
        batch = make_batch()
        clean = training.cross_entropy(model, batch)
        adversarial, _ = losses_and_gradient(regimes.pgd_loss, model, batch)
        assert (adversarial >= clean).all()
        assert (adversarial > clean + 1e-3).any()

    def test_start_depends_on_the_key_of_the_batch(self):
        model = Smooth()
        first, again, other = (
            losses_and_gradient(regimes.pgd_loss, model, make_batch(epoch))[0]
            for epoch in (0, 0, 1)
        )
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


class TestJacobian:
    def test_expectation_of_the_estimate_is_the_frobenius_norm(self):
        model = Smooth()
        jac = jax.vmap(jax.jacrev(lambda x: model(x[None]).logits[0]))(jnp.asarray(INPUTS))
        exact = (np.asarray(jac) ** 2).sum(axis=(1, 2, 3, 4))
        keys = jax.random.split(jax.random.key(0), 4000)
        estimates = jax.jit(
            jax.vmap(lambda key: regimes.squared_jacobian_norm(model, jnp.asarray(INPUTS), key))
        )(keys)
        standard_error = np.std(estimates, axis=0) / np.sqrt(len(keys))
        assert (standard_error < 0.05 * exact).all()
        assert (np.abs(np.mean(estimates, axis=0) - exact) < 5 * standard_error).all()

    def test_estimate_is_exact_for_a_single_logit(self):
        model = Linear(num_classes=1)
        norm = regimes.squared_jacobian_norm(model, jnp.asarray(INPUTS), jax.random.key(0))
        np.testing.assert_allclose(norm, (np.asarray(model.kernel[...]) ** 2).sum(), rtol=1e-12)

    def test_loss_is_cross_entropy_plus_half_the_weighted_norm(self):
        model, batch = Smooth(), make_batch()
        norm = regimes.squared_jacobian_norm(model, jnp.asarray(INPUTS), batch["key"])
        expected = training.cross_entropy(model, batch)
        expected += regimes.JACOBIAN_WEIGHT * norm / 2
        np.testing.assert_allclose(regimes.jacobian_loss(model, batch), expected, rtol=1e-12)

    def test_gradient_in_the_parameters_matches_finite_differences(self):
        graph, state = nnx.split(Smooth())
        batch = make_batch()

        def norm(state):
            model = nnx.merge(graph, state)
            return regimes.squared_jacobian_norm(model, jnp.asarray(INPUTS), batch["key"])

        check_grads(norm, (state,), order=1, modes=["rev"], rtol=1e-6)


@cache
def initial_resnet():
    model = ResNet(
        1,
        3,
        channels=(4,),
        num_blocks=(1,),
        stem="small",
        normalization="batch",
        rngs=nnx.Rngs(0),
    )
    nnx.update(model, jax.tree.map(lambda a: a.astype(jnp.float64), nnx.state(model)))
    model.train()
    return model


def make_resnet():
    """A residual network with batch normalisation, in training mode."""
    return nnx.clone(initial_resnet())


def evaluated(model):
    model = nnx.clone(model)
    model.eval()
    return model


@nnx.jit
def train_on(model, inputs):
    """Cross-entropy in training mode, which updates the running statistics."""
    return training.cross_entropy(model, {"inputs": inputs, "label": LABELS})


def perturbed(regime, model):
    """The inputs that a regime adds to the clean ones."""
    batch, x = make_batch(), jnp.asarray(INPUTS)
    if regime == "noise":
        noise = regimes.NOISE_STDDEV * jax.random.normal(batch["key"], x.shape)
        return jnp.clip(x + noise, *VALID_RANGE)
    model = evaluated(model)
    attack = partial(
        attacks.pgd,
        lambda inputs: jax.nn.log_softmax(model(inputs["inputs"]).logits),
        epsilon={"inputs": regimes.PGD_EPSILON},
        num_steps=regimes.PGD_STEPS,
        valid_range={"inputs": VALID_RANGE},
    )
    return jax.jit(attack)({"inputs": x}, LABELS, batch["key"])["inputs"]


class TestBatchNormalization:
    """What a regime does to running statistics, and which of them its derivatives see."""

    @staticmethod
    def losses_and_gradient(regime, model):
        return losses_and_gradient(regimes.choose_loss_fn(regime), model, make_batch())

    @staticmethod
    def assert_same_statistics(model, expected):
        statistics = nnx.state(model, nnx.BatchStat), nnx.state(expected, nnx.BatchStat)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), *statistics)

    @pytest.mark.parametrize("regime", ["noise", "pgd"])
    def test_statistics_follow_clean_and_perturbed_inputs(self, regime):
        model = make_resnet()
        train_on(model, INPUTS)  # so that evaluation differs from training and from the start
        expected = nnx.clone(model)
        clean = train_on(expected, INPUTS)
        others = train_on(expected, perturbed(regime, expected))
        losses, _ = self.losses_and_gradient(regime, model)
        np.testing.assert_allclose(losses, (clean + others) / 2, rtol=1e-9)
        self.assert_same_statistics(model, expected)

    @pytest.mark.parametrize("regime", ["standard", "jacobian"])
    def test_statistics_follow_clean_inputs_alone(self, regime):
        model, expected = make_resnet(), make_resnet()
        train_on(expected, INPUTS)
        self.losses_and_gradient(regime, model)
        self.assert_same_statistics(model, expected)

    def test_jacobian_is_that_of_evaluation_mode(self):
        model = make_resnet()
        train_on(model, INPUTS)
        norm_fn = partial(regimes.squared_jacobian_norm, evaluated(model))
        penalty = jax.jit(norm_fn)(jnp.asarray(INPUTS), make_batch()["key"])
        clean = train_on(nnx.clone(model), INPUTS)
        losses, gradient = self.losses_and_gradient("jacobian", nnx.clone(model))
        weight = regimes.JACOBIAN_WEIGHT
        np.testing.assert_allclose(losses, clean + weight / 2 * penalty, rtol=1e-9)
        assert (losses > clean + 1e-5).all()  # so that the tolerances tell

        # The penalty reaches the parameters: the slope along the gradient, by finite differences.
        def total(step):
            moved = nnx.clone(model)
            parameters = nnx.state(moved, nnx.Param)
            nnx.update(moved, jax.tree.map(lambda p, g: p + step * g, parameters, gradient))
            return self.losses_and_gradient("jacobian", moved)[0].sum()

        slope = (total(1e-6) - total(-1e-6)) / 2e-6
        squares = sum((g**2).sum() for g in jax.tree.leaves(gradient))
        np.testing.assert_allclose(slope, squares, rtol=1e-6)

    @pytest.mark.parametrize("regime", regimes.REGIMES)
    def test_trains(self, regime, tmp_path):
        model = make_resnet()
        training.fit(
            model,
            optax.sgd(0.1),
            lambda epoch: [make_batch(epoch)],
            num_epochs=2,
            checkpoint_dir=tmp_path,
            loss_fn=regimes.choose_loss_fn(regime),
        )
        for before, after in zip(
            jax.tree.leaves(nnx.state(make_resnet())),
            jax.tree.leaves(nnx.state(model)),
            strict=True,
        ):
            assert np.isfinite(after).all()
            assert not np.array_equal(after, before)
        statistics = nnx.clone(nnx.state(model, nnx.BatchStat))
        train_on(model, INPUTS)  # in evaluation mode
        jax.tree.map(np.testing.assert_array_equal, nnx.state(model, nnx.BatchStat), statistics)
