import functools

import jax
import jax.numpy as jnp
import pytest
from jax import export

from jacfuse_jax import fusion
from jacfuse_jax.linalg import (
    GramSpectrum,
    recalibrate,
    schur,
    solve_generalized,
    solve_sylvester,
)

LOGITS = jax.ShapeDtypeStruct((32, 10), jnp.float32)


def spectrum_of(num_classes):
    return jax.eval_shape(
        lambda: GramSpectrum(*(jnp.ones((num_classes,) * n, jnp.float32) for n in (1, 2)))
    )


SPECTRUM = spectrum_of(10)
MANY_LOGITS = jax.ShapeDtypeStruct((32, 309), jnp.float32)  # solved by matrix products
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)
# A, B and C of equations, in one block and in several.
EQUATIONS = [
    [jax.ShapeDtypeStruct((4, *shape), jnp.float32) for shape in ((m, m), (n, n), (m, n))]
    for m, n in ((10, 6), (70, 5))
]
PLATFORMS = ("cpu", "cuda", "tpu")


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
@pytest.mark.parametrize("platform", PLATFORMS)
def test_compiles_for_every_platform_without_library_calls(fn, platform):
    module = lower(fn, platform, LOGITS, LOGITS, SPECTRUM, SCALAR)
    assert "custom_call" not in module


@pytest.mark.parametrize("platform", PLATFORMS)
def test_many_classes_need_no_library_calls_either(platform):
    module = lower(recalibrate, platform, MANY_LOGITS, MANY_LOGITS, spectrum_of(309), SCALAR)
    assert "custom_call" not in module


@pytest.mark.parametrize(
    ("platform", "chunk", "block", "chunk_of_block"),
    [("cpu", 10000, 212, 10), ("cuda", 20000, 50000, 625), ("tpu", 20000, 50000, 625)],
)
def test_chunks_fit_the_platform(platform, chunk, block, chunk_of_block):
    few, many = (jax.ShapeDtypeStruct((B, K), jnp.float32) for B, K in ((20000, 10), (100000, 309)))
    for fn in (recalibrate, fuse):
        module = lower(fn, platform, few, few, SPECTRUM, SCALAR)
        assert f"tensor<{chunk}x10x10xf32>" in module
        assert ("tensor<20000x10x10xf32>" in module) == (platform != "cpu")
    module = lower(recalibrate, platform, many, many, spectrum_of(309), SCALAR)
    assert f"tensor<{block}x309xf32>" in module
    assert f"tensor<{chunk_of_block}x309x309xf32>" in module
    assert f"tensor<{block}x309x309xf32>" not in module


def lower(fn, platform, *args):
    """The program as text."""
    exported = export.export(jax.jit(fn), platforms=[platform])(*args)
    assert exported.platforms == (platform,)
    return exported.mlir_module()


@pytest.mark.parametrize("solve", [solve_sylvester, solve_generalized])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_schur_forms_and_equations_need_no_library_calls(solve, platform):
    solve = functools.partial(solve, method="bartels_stewart", full_output=True)

    def gradients(*arrays):
        return jax.grad(lambda *abc: solve(*abc)[0].sum(), argnums=(0, 1, 2))(*arrays)

    for arrays in EQUATIONS:
        assert "custom_call" not in lower(schur, platform, arrays[0])
        for fn in (solve, jax.vmap(gradients)):
            assert "custom_call" not in lower(fn, platform, *arrays)


@pytest.mark.parametrize("solve", [solve_sylvester, solve_generalized])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_eigendecompositions_are_library_calls(solve, platform):
    # So that the checks above can fail.
    solve = functools.partial(solve, method="eigh")
    assert "custom_call" in lower(solve, platform, *EQUATIONS[0])
