"""Modules of torch in JAX give what networks of JAX with their weights give."""

import functools
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose, assert_array_equal

from jacfuse_jax import attacks, evaluation, fusion, jacobians
from jacfuse_jax.attacks import _compiled

LABELS = np.array([0, 1, 2, 0, 1, 2])
PRIOR = np.full(3, 1 / 3)
EPSILON = {"image": 0.2, "audio": 0.05}
KEY = jax.random.key(0)


def squares(logits_fn):
    return lambda x: (logits_fn(x) ** 2).sum()


@pytest.fixture(params=["image", "audio"])
def modality(request):
    return request.param


class TestLogitsAndGradients:
    def test_are_those_of_jax(self, modality, dtype, bridge, networks):
        network = networks.make_network(modality, dtype)
        logits_fn, native = bridge.as_logits_fn(network), networks.native(modality, network)
        x = networks.make_inputs(dtype)[modality]
        rtol, atol = (1e-5, 1e-5) if dtype == "float32" else (1e-12, 1e-14)
        for transform in (lambda fn: fn, lambda fn: jax.grad(squares(fn))):
            expected = jax.jit(transform(native))(x)
            for fn in (transform(logits_fn), jax.jit(transform(logits_fn))):
                assert fn(x).dtype == dtype
                assert_allclose(fn(x), expected, rtol=rtol, atol=atol)

    @pytest.mark.parametrize("batch_size", [0, 1])
    def test_of_few_samples(self, batch_size, modality, bridge, networks):
        network = networks.make_network(modality, "float32")
        logits_fn, native = bridge.as_logits_fn(network), networks.native(modality, network)
        x = networks.make_inputs("float32", batch_size)[modality]
        for fn in (jax.jit(logits_fn), logits_fn):
            assert fn(x).shape == (batch_size, 3)
            assert_allclose(fn(x), native(x), atol=1e-5)
        gradient = jax.jit(jax.grad(squares(logits_fn)))(x)
        assert_allclose(gradient, jax.grad(squares(native))(x), atol=1e-5)

    def test_do_not_change_the_module(self, torch, bridge, networks):
        network = networks.make_network("audio", "float32")
        network[0].weight.requires_grad_(requires_grad=False)
        before = {name: x.clone() for name, x in network.state_dict().items()}
        logits_fn = bridge.as_logits_fn(network)
        jax.grad(squares(logits_fn))(networks.make_inputs("float32")["audio"])
        assert [x.requires_grad for x in network.parameters()] == [False, True, True, True]
        assert all(x.grad is None for x in network.parameters())
        torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)

    def test_follow_the_module_where_it_is_trained_further(self, torch, bridge, networks):
        network = networks.make_network("audio", "float32")
        logits_fn = jax.jit(bridge.as_logits_fn(network))
        x = networks.make_inputs("float32")["audio"]
        before = np.asarray(logits_fn(x))
        with torch.no_grad():
            network[2].bias += 1
        assert_allclose(logits_fn(x), before + 1, rtol=1e-5)

    def test_are_the_same_where_the_caller_infers(self, torch, bridge, networks):
        x = networks.make_inputs("float32")["audio"]
        gradient = jax.grad(squares(bridge.as_logits_fn(networks.make_network("audio", "float32"))))
        expected = gradient(x)
        with torch.inference_mode():
            assert_array_equal(gradient(x), expected)

    def test_leave_the_inputs_as_they_are(self, bridge):
        def write(x):
            return x.mul_(2)

        x = jnp.ones((2, 3))
        doubled = jax.jit(lambda x: (bridge.as_logits_fn(write)(x), x))(x)
        assert_array_equal(doubled, [np.full((2, 3), 2.0), np.ones((2, 3))])


class TestTransformations:
    @pytest.fixture
    def logits_fn(self, bridge, networks):
        return bridge.as_logits_fn(networks.make_network("image", "float64"))

    @pytest.fixture
    def native(self, networks):
        return networks.native("image", networks.make_network("image", "float64"))

    @pytest.fixture
    def images(self, networks):
        return networks.make_inputs("float64")["image"]

    def test_vmap_calls_the_module_once(self, bridge, images, networks):
        network = networks.make_network("image", "float64")
        batches = []
        network.register_forward_hook(lambda _, args, __: batches.append(len(args[0])))
        logits_fn = jax.jit(jax.vmap(jax.vmap(bridge.as_logits_fn(network))))
        logits = logits_fn(images.reshape(1, 2, 3, *images.shape[1:]))
        assert batches == [3, 6]  # zeros first, for their shapes
        native = networks.native("image", network)
        assert_allclose(logits, native(images).reshape(1, 2, 3, 3), rtol=1e-12)

    def test_map_in_chunks(self, logits_fn, native, images):
        mapped = jax.lax.map(lambda x: logits_fn(x[None])[0], images, batch_size=4)
        assert_allclose(mapped, native(images), rtol=1e-12)

    def test_jacobians_of_every_sample(self, logits_fn, native, images):
        def jacobian(fn):
            return jacobians.per_sample_jacobian(lambda x: fn(x[None])[0], images, mode="reverse")

        assert_allclose(jacobian(logits_fn), jacobian(native), rtol=1e-10, atol=1e-14)

    def test_forward_mode_raises(self, logits_fn, images):
        with pytest.raises(TypeError, match=r"forward-mode.*custom_vjp"):
            jax.jvp(logits_fn, (images,), (images,))

    def test_second_derivatives_raise(self, logits_fn, images):
        with pytest.raises(ValueError, match="callbacks do not support JVP"):
            jax.grad(lambda x: jax.grad(squares(logits_fn))(x).sum())(images)


class TestArguments:
    """What a function of JAX is called with, its module is called with."""

    def test_may_be_nested(self, bridge):
        def module(inputs, *, scale):
            return {"logits": [inputs["a"] * scale[:, None]], "sum": (inputs["b"] + scale,)}

        inputs = {"a": np.ones((2, 3)), "b": np.arange(2.0)}
        outputs = bridge.as_logits_fn(module)(inputs, scale=np.array([2.0, 3.0]))
        assert jax.tree.structure(outputs) == jax.tree.structure({"logits": [0], "sum": (0,)})
        assert_array_equal(outputs["logits"][0], [[2.0] * 3, [3.0] * 3])
        assert_array_equal(outputs["sum"][0], [2.0, 4.0])

    def test_may_be_integer(self, bridge, networks):
        network = networks.OfTokens().eval()
        logits_fn = bridge.as_logits_fn(network)
        tokens, mask = np.array([1, 4]), np.array([True, False])
        x = np.full((2, 3), 2.0)
        expected = network.embedding.weight.numpy(force=True)[tokens] * mask[:, None]
        assert_array_equal(logits_fn(tokens, mask, x), 2 * expected)
        gradient = jax.jit(jax.grad(lambda x: logits_fn(tokens, mask, x).sum()))(x)
        assert_array_equal(gradient, expected)

    def test_that_nothing_depends_on_have_no_gradient(self, bridge):
        logits_fn = bridge.as_logits_fn(lambda a, b: {"a": 2 * a, "b": b.detach()})
        x = np.ones((2, 3))

        def loss(a, b):
            return sum(z.sum() for z in logits_fn(a, b).values())

        gradients = jax.grad(loss, argnums=(0, 1))(x, x)
        assert_array_equal(gradients, [np.full((2, 3), 2.0), np.zeros((2, 3))])


class TestAttacks:
    """With a budget for every modality."""

    @pytest.fixture
    def nets(self, dtype, torch, networks):
        return torch.nn.ModuleDict({m: networks.make_network(m, dtype) for m in EPSILON})

    def check(self, attack, log_prob_fn, fused, nets, networks, dtype):
        """Holds what is found through torch against what is found in JAX."""
        native = {m: networks.native(m, net) for m, net in nets.items()}
        inputs = networks.make_inputs(dtype)
        found, expected = (
            attack(fn, inputs, LABELS, KEY, epsilon=EPSILON) for fn in (log_prob_fn, fused(native))
        )
        for m, epsilon in EPSILON.items():
            assert_allclose(found[m], expected[m], rtol=1e-5, atol=1e-5)
            moved = np.abs(np.asarray(found[m]) - inputs[m]).max()
            assert epsilon / 4 < moved < epsilon + 1e-5

    def test_on_classifiers_that_are_fused_find_the_same(self, dtype, nets, bridge, networks):
        def fused(fns):
            return lambda inputs: fusion.fuse(
                fusion.Contaminated(0.2),
                {m: fn(inputs[m]) for m, fn in fns.items()},
                PRIOR,
                perturbed="image",
            )

        logits_fns = {m: bridge.as_logits_fn(net) for m, net in nets.items()}
        attack = functools.partial(attacks.apgd, num_steps=8)
        self.check(attack, fused(logits_fns), fused, nets, networks, dtype)

    def test_on_one_network_of_all_find_the_same(self, dtype, nets, bridge, networks):
        def fused(fns):
            return lambda inputs: jax.nn.log_softmax(sum(fns[m](inputs[m]) for m in fns))

        whole = bridge.as_logits_fn(networks.Summed(nets).eval())
        attack = functools.partial(attacks.pgd, num_steps=5, norm="l2", loss="margin")

        def log_prob_fn(inputs):
            return jax.nn.log_softmax(whole(**inputs))

        self.check(attack, log_prob_fn, fused, nets, networks, dtype)

    def test_are_compiled_once(self, bridge, networks):
        logits_fn = bridge.as_logits_fn(networks.make_network("audio", "float32"))

        def log_prob_fn(inputs):
            return jax.nn.log_softmax(logits_fn(inputs["audio"]))

        inputs = networks.make_inputs("float32")
        before = _compiled._program.cache_info().misses
        for _ in range(3):
            attacks.fgm(log_prob_fn, inputs, LABELS, epsilon={"audio": 0.1})
        assert _compiled._program.cache_info().misses == before + 1

    @pytest.mark.slow
    def test_of_a_worst_case(self, bridge, networks):
        rng = np.random.default_rng(0)
        labels = rng.integers(3, size=24)
        arrays = {m: rng.normal(size=(24, 4)).astype(np.float32) for m in ("audio", "other")}
        nets = {m: networks.make_network("audio", "float32") for m in arrays}

        def summary(output_fns):
            classifiers = {
                m: evaluation.Classifier(fn, (), nets[m][2].weight.numpy(force=True).T)
                for m, fn in output_fns.items()
            }
            models = evaluation.make_models(classifiers, arrays, labels)
            found = evaluation.worst_case(
                models,
                arrays,
                labels,
                [fusion.Statistical(), fusion.Scaled(0.2)],
                perturbed=["audio"],
                perturbations=["clean", "pgd"],
                attack_steps=3,
            )
            return found.summary()

        def native(m):
            logits_fn = networks.native("audio", nets[m])
            return lambda _, x: evaluation.UnimodalOutput(logits_fn(x), x)

        def through_torch(m):
            output_fn = bridge.as_logits_fn(networks.WithFeatures(nets[m]).eval())
            return lambda _, x: evaluation.UnimodalOutput(*output_fn(x))

        ours, expected = (summary({m: fn(m) for m in arrays}) for fn in (through_torch, native))
        assert [line.clean for line in ours] == [line.clean for line in expected]
        assert [line.worst for line in ours] == [line.worst for line in expected]
        assert any(line.worst != line.clean for line in ours)


class TestRefuses:
    def test_training_mode(self, bridge, networks):
        network = networks.make_network("image", "float32")
        logits_fn = jax.jit(bridge.as_logits_fn(network))
        x = networks.make_inputs("float32")["image"]
        network[1].train()
        with pytest.raises(ValueError, match=r"part '1' of the module is in training mode.*eval"):
            logits_fn(x)
        logits = bridge.as_logits_fn(network.eval())
        compiled = jax.jit(logits)
        compiled(x)
        network.train()  # when it is compiled already
        with pytest.raises(Exception, match=r"the module is in training mode.*module\.eval\(\)"):
            jax.block_until_ready(compiled(x))

    def test_other_dtypes(self, bridge, networks):
        inputs = networks.make_inputs("float32")["audio"]
        logits_fn = bridge.as_logits_fn(networks.make_network("audio", "float64"))
        message = r"0\.weight of the module is torch\.float64, its inputs are torch\.float32.*float"
        with pytest.raises(TypeError, match=message):
            logits_fn(inputs)
        logits_fn = bridge.as_logits_fn(networks.make_network("audio", "float32"))
        with pytest.raises(TypeError, match=r"float32, its inputs are torch\.float64.*double\(\)"):
            logits_fn(inputs.astype("float64"))
        with pytest.raises(TypeError, match="must be float32 or float64, got float16; cast"):
            logits_fn(inputs.astype("float16"))

    def test_float64_that_jax_has_not(self, bridge):
        logits_fn = bridge.as_logits_fn(lambda x: x.double())
        with jax.enable_x64(False), pytest.raises(TypeError, match="float64.*jax_enable_x64"):
            logits_fn(np.ones((2, 3), np.float32))

    @pytest.mark.parametrize(
        ("module", "message"),
        [
            (lambda x: x.argmax(1), r"must return tensors.*got torch\.int64"),
            (lambda x: x.half(), r"float32 or float64.*got torch\.float16"),
            (lambda x: x.numpy(), "must return tensors.*got ndarray"),
        ],
    )
    def test_other_results(self, module, message, bridge):
        with pytest.raises(TypeError, match=message):
            bridge.as_logits_fn(module)(np.ones((2, 3)))

    @pytest.mark.parametrize(
        ("module", "inputs"),
        [
            (lambda x: x.sum(), (np.ones((2, 3)),)),
            (lambda x: x[:1], (np.ones((2, 3)),)),
            (lambda x, y: x + y, (np.ones((2, 3)), np.ones((1, 3)))),
            (lambda x, y: x + y, (np.ones((2, 3)), 1.0)),
            (lambda x: x, (1.0,)),
            (lambda: None, ()),
        ],
    )
    def test_what_is_not_one_batch(self, module, inputs, bridge):
        with pytest.raises(ValueError, match=r"must (be arrays|return tensors) \(B, \.\.\.\)"):
            bridge.as_logits_fn(module)(*inputs)

    @pytest.mark.parametrize("how", ["no_grad", "detach"])
    def test_gradients_that_the_module_cuts_off(self, how, torch, bridge, networks):
        network = networks.make_network("audio", "float64")
        module = network  # whose parameters have gradients all the same
        if how == "no_grad":
            module = torch.no_grad()(lambda x: network(x))
        else:
            network.register_forward_pre_hook(lambda _, args: args[0].detach())
        logits_fn = bridge.as_logits_fn(module)
        x = networks.make_inputs("float64")["audio"]
        assert_allclose(logits_fn(x), networks.native("audio", network)(x), rtol=1e-12)
        with pytest.raises(Exception, match="nothing that the module returns has a gradient"):
            jax.block_until_ready(jax.jit(jax.grad(squares(logits_fn)))(x))

    def test_fusion_of_jax_inside(self, torch, bridge, networks):
        rule = bridge.FusionModule(fusion.Mean(), PRIOR, perturbed=())
        network = torch.nn.Sequential(networks.make_network("audio", "float32"), rule).eval()
        with pytest.raises(ValueError, match=r"part '1' of the module is a FusionModule.*fuse"):
            bridge.as_logits_fn(network)(networks.make_inputs("float32")["audio"])

    def test_nothing_that_the_module_says(self, bridge):
        def module(x):
            if (x > 5).any():
                raise RuntimeError("the sensor is saturated")
            return x

        logits_fn = jax.jit(bridge.as_logits_fn(module))
        logits_fn(np.ones((2, 3)))
        with pytest.raises(Exception, match="RuntimeError: the sensor is saturated"):
            jax.block_until_ready(logits_fn(np.full((2, 3), 6.0)))


class TestDevices:
    """Eight devices, and arrays of 2.5 MB, which `jax.pure_callback` hangs on."""

    @pytest.mark.timeout(60)
    @pytest.mark.parametrize("how", ["automatic", "explicit", "shard_map"])
    def test_sharded_batches(self, how, torch, bridge):
        axis_type = AxisType.Explicit if how == "explicit" else AxisType.Auto
        mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,), devices=jax.devices("cpu")[:8])
        logits_fn = bridge.as_logits_fn(lambda x: torch.sin(x)[:, :3])

        def step(logits_fn):
            return lambda x: x + 0.1 * jax.grad(squares(logits_fn))(x) + logits_fn(x)[:, :1]

        def steps(step):
            return jax.jit(lambda x: jax.lax.scan(lambda x, _: (step(x), None), x, length=3)[0])

        x = np.random.default_rng(0).normal(size=(64, 10_000)).astype(np.float32)
        placed = jax.device_put(x, NamedSharding(mesh, P("d")))
        of_devices = step(logits_fn)
        if how == "shard_map":
            of_devices = jax.shard_map(of_devices, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
        program = steps(of_devices)
        found = [program(placed) for _ in range(3)]
        expected = steps(step(lambda x: jnp.sin(x)[:, :3]))(x)
        for result in found:
            assert_allclose(result, expected, atol=1e-5)

    @pytest.mark.timeout(60)
    def test_several_threads(self, bridge, networks):
        network = networks.make_network("image", "float32")
        gradient = jax.jit(jax.grad(squares(bridge.as_logits_fn(network))))
        rng = np.random.default_rng(0)
        inputs = [rng.normal(size=(2000, 1, 6, 5)).astype(np.float32) for _ in range(4)]
        found = [np.empty(0)] * 4

        def run(i):
            found[i] = np.asarray(gradient(inputs[i]))

        threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = jax.jit(jax.grad(squares(networks.native("image", network))))
        for i in range(4):
            assert_allclose(found[i], expected(inputs[i]), atol=1e-5)

    def test_programs_on_cpu_copy_nothing_for_the_host(self, bridge):
        gradient = jax.jit(jax.vmap(jax.grad(squares(bridge.as_logits_fn(lambda x: x * x)))))
        program = gradient.lower(jnp.ones((2, 3, 4))).as_text()
        called = set(re.findall(r"custom_call @(\w+)", program))
        assert called == {"xla_buffer_python_cpu_callback"}

    def test_copies_give_the_same_as_memory_in_place(self, monkeypatch, bridge, networks):
        network = networks.make_network("image", "float32")
        x = networks.make_inputs("float32")["image"].reshape(2, 3, 1, 6, 5)
        results = []
        for platform in ("cpu", "default"):  # what accelerators run is the default

            def chosen(*operands, platform=platform, **branches):
                return branches[platform](*operands)

            monkeypatch.setattr(jax.lax, "platform_dependent", chosen)
            fn = jax.vmap(jax.value_and_grad(squares(bridge.as_logits_fn(network))))
            results.append(jax.jit(fn)(x))
        jax.tree.map(assert_array_equal, *results)
