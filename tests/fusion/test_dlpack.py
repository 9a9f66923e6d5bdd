"""Logits of other frameworks: torch tensors give what NumPy arrays give, from the same memory."""

import gc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from jacfuse_jax import calibration, detection, fusion, linalg
from jacfuse_jax._arrays import as_array

RNG = np.random.default_rng(0)
NUM_CLASSES = 5
LOGITS = {name: 3 * RNG.normal(size=(32, NUM_CLASSES)) for name in ("audio", "video")}
LABELS = RNG.integers(NUM_CLASSES, size=32)
PRIOR = np.full(NUM_CLASSES, 1 / NUM_CLASSES)
KERNEL = RNG.normal(size=(8, NUM_CLASSES))


class Exported:
    """An array that has nothing but the protocol."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def as_exported(array):
    return Exported(np.array(array))


def as_read_only(array):
    array.setflags(write=False)
    return array


@pytest.fixture(params=["torch", "exported", "read_only", "list"])
def convert(request):
    if request.param == "torch":
        return request.getfixturevalue("torch").tensor
    return {"exported": as_exported, "read_only": as_read_only, "list": np.ndarray.tolist}[
        request.param
    ]


@pytest.mark.parametrize(
    "rule",
    [
        lambda z, prior: fusion.statistical_fusion(z, prior),
        lambda z, _: fusion.mean_fusion(z),
        lambda z, _: fusion.max_fusion(z),
        lambda z, _: fusion.product_fusion(z),
        lambda z, prior: fusion.scaled_fusion(z, prior, perturbed="audio", scale=0.2),
        lambda z, prior: fusion.contaminated_fusion(z, prior, contamination=0.3),
        lambda z, prior: fusion.cascade_fusion(z, prior, perturbed="audio", confidence=0.8),
        lambda z, prior: fusion.contaminated_log_probs(z["audio"], prior, contamination=0.3),
        lambda z, prior: (
            fusion.robust_fusion(
                z,
                {"audio": KERNEL.T @ KERNEL},
                prior,
                perturbed="audio",
                gamma=0.1,
            ).log_probs
        ),
    ],
)
def test_every_rule_gives_the_same(rule, convert):
    expected = rule(LOGITS, PRIOR)
    converted = {name: convert(z.copy()) for name, z in LOGITS.items()}
    assert_array_equal(rule(converted, convert(PRIOR.copy())), expected)


def test_frameworks_may_be_mixed(torch):
    mixed = {"audio": torch.tensor(LOGITS["audio"]), "video": jnp.asarray(LOGITS["video"])}
    assert_array_equal(
        fusion.statistical_fusion(mixed, PRIOR), fusion.statistical_fusion(LOGITS, PRIOR)
    )


def test_calibration_and_detection_take_tensors(torch):
    def choose_and_detect(logits: Any, labels: Any):
        detector = detection.fit_detector(logits, labels, PRIOR)
        choice = calibration.choose_contamination(
            fusion.Contaminated(0.0),
            *(logits, labels, PRIOR),
            perturbed="audio",
            contaminations=(0.1, 0.5),
        )
        return detector, detection.detect(logits, detector, PRIOR), choice

    tensors = {name: torch.tensor(z) for name, z in LOGITS.items()}
    ours = jax.jit(lambda: choose_and_detect(tensors, torch.tensor(LABELS)))()
    jax.tree.map(
        assert_array_equal, ours, jax.jit(lambda: choose_and_detect(LOGITS, jnp.asarray(LABELS)))()
    )


def test_kernels_of_torch_are_transposed_weights(torch):
    weight: Any = torch.tensor(KERNEL.T.copy())  # (K, H)
    jax.tree.map(
        assert_array_equal,
        linalg.spectrum_from_kernel(weight.T),
        linalg.spectrum_from_kernel(KERNEL),
    )


class TestMemory:
    def test_of_an_aligned_tensor_is_shared(self, dtype, torch):
        tensor = torch.ones((64, NUM_CLASSES), dtype=getattr(torch, dtype))
        assert tensor.data_ptr() % 64 == 0
        assert as_array(tensor).unsafe_buffer_pointer() == tensor.data_ptr()

    def test_of_an_aligned_numpy_array_is_shared(self, torch):
        array = torch.ones((64, NUM_CLASSES)).numpy()
        assert as_array(array).unsafe_buffer_pointer() == array.ctypes.data

    def test_lives_as_long_as_the_array_that_shares_it(self, torch):
        array = as_array(torch.full((1000, NUM_CLASSES), 7.0))
        gc.collect()
        [torch.zeros((1000, NUM_CLASSES)) for _ in range(10)]
        assert_array_equal(array, np.full((1000, NUM_CLASSES), 7.0))

    @pytest.mark.parametrize(
        ("shape", "view"),
        [
            ((4, 3), lambda tensor: tensor[1:]),  # 12 bytes into its memory
            ((3, 4), lambda tensor: tensor.T),
            ((4, 6), lambda tensor: tensor[:, ::2]),
            ((1, 3), lambda tensor: tensor.expand(4, 3)),
        ],
        ids=["misaligned", "transposed", "strided", "broadcast"],
    )
    def test_that_cannot_be_shared_is_copied(self, shape, view, torch):
        tensor = view(torch.arange(float(np.prod(shape))).reshape(shape))
        array = as_array(tensor)
        assert array.unsafe_buffer_pointer() != tensor.data_ptr()
        assert_array_equal(array, tensor.numpy())


class TestRefuses:
    @pytest.mark.parametrize("dtype", ["int64", "bool"])
    def test_other_dtypes(self, dtype, torch):
        message = rf"logits\['audio'\] must be float32 or float64, got {dtype}; cast it first"
        with pytest.raises(TypeError, match=message):
            fusion.mean_fusion({"audio": torch.ones((2, 3), dtype=getattr(torch, dtype))})

    def test_a_scalar(self):
        with pytest.raises(ValueError, match=r"must have shape \(B, K\), got \(\)"):
            fusion.mean_fusion({"audio": np.float32(1)})

    def test_gradients_of_torch(self, torch):
        tensor = torch.ones((2, 3), requires_grad=True)
        with pytest.raises(BufferError, match=r"require gradient, use tensor.detach\(\)"):
            fusion.mean_fusion({"audio": tensor})

    def test_a_tensor_that_is_not_there(self, torch):
        with pytest.raises(ValueError, match="Unknown device type meta"):
            fusion.mean_fusion({"audio": torch.ones((2, 3), device="meta")})
