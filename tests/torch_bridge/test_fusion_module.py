"""Fusion as a module of torch gives what `fusion.fuse` gives, with its gradients."""

import copy
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jacfuse_jax import fusion, linalg
from jacfuse_jax.torch import _fusion_module

NUM_CLASSES = 4
PRIOR = np.array([0.1, 0.2, 0.3, 0.4])
RULES = [
    fusion.Mean(),
    fusion.Max(),
    fusion.Product(),
    fusion.Statistical(),
    fusion.Scaled(0.3),
    fusion.Robust(0.1),
    fusion.Contaminated(0.3, 0.5),
    fusion.ContaminatedRobust(0.2, 0.1),
    fusion.Robust(0.1, solver="eigh"),
    fusion.Cascade(0.4, tempering=0.5),
]


def grams_of(seed, num_classes=NUM_CLASSES):
    kernel = np.random.default_rng(seed).normal(size=(6, num_classes))
    return {"image": linalg.spectrum_from_kernel(kernel)}


def make_logits(dtype="float64", batch_size=5, num_classes=NUM_CLASSES):
    rng = np.random.default_rng(0)
    shape = (batch_size, num_classes)
    return {name: rng.normal(size=shape).astype(dtype) for name in ("image", "audio")}


def tensors_of(torch, logits, *, requires_grad=False):
    return {m: torch.tensor(z, requires_grad=requires_grad) for m, z in logits.items()}


def make_module(bridge, rule, prior=PRIOR, seed=0):
    grams = grams_of(seed, len(prior)) if rule.needs_grams else None
    return bridge.FusionModule(rule, prior, perturbed="image", grams=grams)


def expected_of(rule, logits, prior=PRIOR, present=None, seed=0):
    grams = grams_of(seed, len(prior))
    fuse = jax.jit(
        lambda logits, prior: fusion.fuse(
            rule, logits, prior, perturbed="image", grams=grams, present=present
        )
    )
    return np.asarray(fuse(logits, prior))


class TestLogProbs:
    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.label)
    def test_are_those_of_fuse(self, rule, dtype, torch, bridge):
        logits = make_logits(dtype)
        log_probs = make_module(bridge, rule)(tensors_of(torch, logits))
        assert log_probs.dtype == getattr(torch, dtype)
        expected = expected_of(rule, logits)
        assert_allclose(log_probs, expected, rtol=8 * np.finfo(dtype).eps, atol=np.finfo(dtype).eps)

    def test_take_a_gram_matrix_for_its_spectrum(self, torch, bridge):
        gram = np.random.default_rng(0).normal(size=(6, NUM_CLASSES))
        gram = gram.T @ gram
        rule, logits = fusion.Robust(0.1), make_logits()
        module = bridge.FusionModule(rule, PRIOR, perturbed="image", grams={"image": gram})
        log_probs = module(tensors_of(torch, logits))
        assert_allclose(log_probs, expected_of(rule, logits), rtol=1e-10)

    def test_of_rows_that_lack_modalities(self, torch, bridge):
        logits = make_logits()
        logits["audio"][0] = np.nan
        present = {"audio": np.array([False, True, True, False, True])}
        tensors = tensors_of(torch, logits, requires_grad=True)
        log_probs = make_module(bridge, fusion.Statistical())(tensors, tensors_of(torch, present))
        expected = expected_of(fusion.Statistical(), logits, present=present)
        assert_allclose(log_probs.detach(), expected, rtol=1e-14)
        log_probs[:, 0].sum().backward()
        is_zero = [(x.grad == 0).all(1).tolist() for x in tensors.values()]
        assert is_zero == [[False] * 5, (~present["audio"]).tolist()]

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_of_half_precision(self, dtype, torch, bridge):
        tensors = {
            m: z.to(getattr(torch, dtype)).requires_grad_()
            for m, z in tensors_of(torch, make_logits()).items()
        }
        logits = {m: jnp.asarray(z.float().numpy(force=True), dtype) for m, z in tensors.items()}
        log_probs = make_module(bridge, fusion.Robust(0.1))(tensors)
        assert str(log_probs.dtype) == f"torch.{dtype}"
        expected = expected_of(fusion.Robust(0.1), logits)
        assert_array_equal(log_probs.detach().float(), expected.astype("float32"))
        log_probs.sum().backward()
        assert {x.grad.dtype for x in tensors.values()} == {log_probs.dtype}

    @pytest.mark.parametrize(("batch_size", "num_classes"), [(0, 2), (1, 309)])
    def test_of_few_samples(self, batch_size, num_classes, torch, bridge):
        prior = np.full(num_classes, 1 / num_classes)
        logits = make_logits("float32", batch_size, num_classes)
        tensors = tensors_of(torch, logits, requires_grad=True)
        log_probs = make_module(bridge, fusion.Robust(0.1), prior)(tensors)
        assert log_probs.shape == (batch_size, num_classes)
        expected = expected_of(fusion.Robust(0.1), logits, prior)
        assert_allclose(log_probs.detach(), expected, rtol=1e-5, atol=1e-5)
        (log_probs**2).sum().backward()
        grams = grams_of(0, num_classes)

        @jax.jit
        @jax.grad
        def gradient(logits):
            fused = fusion.fuse(fusion.Robust(0.1), logits, prior, perturbed="image", grams=grams)
            return (fused**2).sum()

        for m, expected in gradient(logits).items():
            size = np.abs(expected).max(initial=0)
            assert_allclose(tensors[m].grad, expected, rtol=1e-4, atol=1e-5 * size)

    def test_of_tensors_that_are_views(self, torch, bridge):
        logits = make_logits()
        image = torch.zeros(NUM_CLASSES, 2, 5, dtype=torch.float64)
        image[:, 1] = torch.tensor(logits["image"].T)
        audio = torch.tensor(np.repeat(logits["audio"][:1], 5, 0))[:1].expand(5, -1)
        leaves = [x.requires_grad_() for x in (image, audio)]
        views = {"image": leaves[0].transpose(0, 2)[:, 1], "audio": leaves[1]}
        assert not any(x.is_contiguous() for x in views.values())
        log_probs = make_module(bridge, fusion.Statistical())(views)
        logits["audio"][:] = logits["audio"][0]
        expected = expected_of(fusion.Statistical(), logits)
        assert_allclose(log_probs.detach(), expected, rtol=1e-14)
        (gradient,) = torch.autograd.grad(log_probs[:, 0].sum(), leaves[0])
        one_hot = np.eye(NUM_CLASSES)[:, :1]
        assert_allclose(gradient[:, 1], one_hot - np.exp(expected).T, rtol=1e-12)
        assert_array_equal(gradient[:, 0], 0)

    def test_are_in_memory_that_is_shared(self, torch):
        tensor = torch.ones((64, 5))
        assert tensor.data_ptr() % 64 == 0

        def identity(rule, logits, *, perturbed):
            del rule, perturbed
            return logits

        structure = jax.tree.structure((0,))
        arguments = (fusion.Mean(), "image", structure, [tensor])
        (shared,) = _fusion_module._through_jax(identity, *arguments)
        assert shared.data_ptr() == tensor.data_ptr()


class TestGradients:
    @pytest.mark.parametrize("rule", RULES[1::2], ids=lambda rule: rule.label)
    def test_are_finite_differences(self, rule, torch, bridge):
        module = make_module(bridge, rule)
        tensors = tensors_of(torch, make_logits(batch_size=3), requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda image, audio: module({"audio": audio, "image": image}), tuple(tensors.values())
        )

    def test_are_not_taken_where_none_are_asked_for(self, torch, bridge):
        module = make_module(bridge, fusion.Statistical())
        tensors = tensors_of(torch, make_logits(), requires_grad=True)
        with torch.no_grad():
            assert not module(tensors).requires_grad
        assert not module(tensors_of(torch, make_logits())).requires_grad
        tensors["audio"].requires_grad_(requires_grad=False)
        module(tensors).sum().backward()
        assert tensors["image"].grad is not None
        assert tensors["audio"].grad is None

    def test_train_a_network(self, torch, bridge):
        torch.manual_seed(0)
        net = torch.nn.Linear(6, NUM_CLASSES)
        fuse = make_module(bridge, fusion.Scaled(0.5))
        x, labels = torch.randn(40, 6), torch.randint(NUM_CLASSES, (40,))
        losses = []
        for _ in range(20):
            log_probs = fuse({"image": net(x), "audio": torch.zeros(40, NUM_CLASSES)})
            loss = torch.nn.functional.nll_loss(log_probs, labels)
            losses.append(loss.item())
            for parameter, gradient in zip(
                net.parameters(), torch.autograd.grad(loss, [*net.parameters()]), strict=True
            ):
                parameter.data -= 0.5 * gradient
        assert losses[-1] < losses[0] - 0.1
        assert not [*fuse.parameters()]

    def test_of_gradients_raise(self, torch, bridge):
        tensors = tensors_of(torch, make_logits(), requires_grad=True)
        log_probs = make_module(bridge, fusion.Statistical())(tensors)
        (gradient,) = torch.autograd.grad(
            log_probs.square().sum(), tensors["image"], create_graph=True
        )
        with pytest.raises(RuntimeError, match="differentiate twice"):
            gradient.sum().backward()

    def test_of_logits_that_were_written_to_since_raise(self, torch, bridge):
        tensors = tensors_of(torch, make_logits(), requires_grad=True)
        log_probs = make_module(bridge, fusion.Statistical())(tensors)
        with torch.no_grad():
            tensors["image"].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            log_probs.sum().backward()


class TestState:
    def test_is_the_prior_and_the_spectra(self, bridge):
        state = make_module(bridge, fusion.Robust(0.1)).state_dict()
        assert {name: tuple(x.shape) for name, x in state.items()} == {
            "class_prior": (NUM_CLASSES,),
            "eigenvalues_image": (NUM_CLASSES,),
            "eigenvectors_image": (NUM_CLASSES, NUM_CLASSES),
        }

    def test_is_that_of_the_module_it_is_loaded_into(self, torch, bridge):
        rule, logits = fusion.Robust(0.1), make_logits()
        tensors = tensors_of(torch, logits)
        saved = io.BytesIO()
        torch.save(make_module(bridge, rule).state_dict(), saved)
        saved.seek(0)
        other = make_module(bridge, rule, prior=PRIOR[::-1], seed=1)
        expected = expected_of(rule, logits)
        assert not np.allclose(other(tensors), expected)
        other.load_state_dict(torch.load(saved, weights_only=True))
        for module in (other, copy.deepcopy(other)):
            assert_allclose(module(tensors), expected, rtol=1e-12)

    def test_is_a_copy(self, torch, bridge):
        prior = torch.tensor(PRIOR)
        module = bridge.FusionModule(fusion.Statistical(), prior, perturbed="image")
        prior[:] = 1 / NUM_CLASSES
        assert_array_equal(module.class_prior, PRIOR)

    def test_may_be_cast(self, torch, bridge):
        module = make_module(bridge, fusion.Robust(0.1)).float()
        assert {x.dtype for x in module.state_dict().values()} == {torch.float32}
        logits = make_logits("float32")
        log_probs = module(tensors_of(torch, logits))
        assert_allclose(log_probs, expected_of(fusion.Robust(0.1), logits), rtol=1e-5, atol=1e-6)


class TestRefuses:
    def test_float64_that_jax_has_not(self, torch, bridge):
        module = make_module(bridge, fusion.Statistical())
        with jax.enable_x64(False):
            with pytest.raises(TypeError, match=r"logits\['image'\] are float64.*jax_enable_x64"):
                module(tensors_of(torch, make_logits("float64")))
            log_probs = module(tensors_of(torch, make_logits("float32")))
        assert log_probs.dtype == torch.float32

    def test_what_fuse_refuses(self, torch, bridge):
        module = make_module(bridge, fusion.Statistical())
        with pytest.raises(ValueError, match=r"must share one shape \(B, K\)"):
            module({"image": torch.zeros(2, 4), "audio": torch.zeros(3, 4)})
        with pytest.raises(TypeError, match="must be float32 or float64, got int"):
            module({"image": torch.zeros((2, 4), dtype=torch.int32)})
        module = bridge.FusionModule(fusion.Robust(0.1), PRIOR, perturbed="image")
        with pytest.raises(ValueError, match="needs grams; see linalg.spectrum_from_kernel"):
            module(tensors_of(torch, make_logits()))

    @pytest.mark.parametrize(
        ("prior", "message"),
        [
            ([0.5, 0.2], "must sum to one, got a sum of 0.7"),
            ([1.5, -0.5], "must be positive and finite"),
            ([[0.5, 0.5]], r"must have shape \(1,\), one entry a class, got \(1, 2\)"),
        ],
    )
    def test_no_prior(self, prior, message, bridge):
        with pytest.raises(ValueError, match=message):
            bridge.FusionModule(fusion.Mean(), np.array(prior), perturbed="image")

    def test_a_matrix_for_every_sample(self, bridge):
        with pytest.raises(
            ValueError, match=r"grams\['image'\] must be one .* got eigenvalues \(5, 4\)"
        ):
            bridge.FusionModule(
                fusion.Robust(0.1),
                PRIOR,
                perturbed="image",
                grams={"image": np.stack([np.eye(4)] * 5)},
            )
