import jax
import jax.numpy as jnp
import pytest
from jax import export

from jacfuse_jax import fusion
from jacfuse_jax.linalg import GramSpectrum, recalibrate

LOGITS = jax.ShapeDtypeStruct((32, 10), jnp.float32)
SPECTRUM = jax.eval_shape(
    lambda: GramSpectrum(jnp.ones(10, jnp.float32), jnp.eye(10, dtype=jnp.float32))
)
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)


def fuse(image, audio, spectrum, gamma):
    return fusion.robust_fusion(
        {"image": image, "audio": audio},
        {"image": spectrum},
        jnp.full(10, 0.1, jnp.float32),
        perturbed="image",
        gamma=gamma,
        num_iterations=2,
    )


def gradient(image, audio, spectrum, gamma):
    return jax.grad(lambda z: fuse(z, audio, spectrum, gamma).log_probs.sum())(image)


@pytest.mark.parametrize("fn", [recalibrate, fuse, gradient])
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_compiles_for_every_platform_without_library_calls(fn, platform):
    exported = export.export(jax.jit(fn), platforms=[platform])(LOGITS, LOGITS, SPECTRUM, SCALAR)
    assert exported.platforms == (platform,)
    assert "custom_call" not in exported.mlir_module()
