import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax import export, lax

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
EQUATIONS = {
    name: [jax.ShapeDtypeStruct((4, *shape), jnp.float32) for shape in ((m, m), (n, n), (m, n))]
    for name, m, n in (("one block", 10, 6), ("several blocks", 70, 5))
}
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# Parts of what jaxlib names the routines of LAPACK, cuSOLVER, cuBLAS, cuSPARSE, hipSOLVER, MAGMA
# (hybrid) and of the TPU's compiler (Eigh, Qr, LuDecomposition, ...). Other custom calls are none:
# AllocateBuffer is memory.
LIBRARIES = re.compile(
    "lapack|blas|solve|sparse|hybrid|cholesky|eig|qr|lu_?(decomposition|pivots)|householder", re.I
)


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


def lower(fn, *args, platforms=PLATFORMS):
    """The program for these platforms as text."""
    exported = export.export(jax.jit(fn), platforms=platforms)(*args)
    assert exported.platforms == platforms
    return exported.mlir_module()


def custom_calls(program):
    """Names of what the program calls."""
    names = re.findall(r'stablehlo\.custom_call @"?([\w.$]+)', program)
    assert len(names) == program.count("stablehlo.custom_call")
    return set(names)


def library_calls(program):
    return {name for name in custom_calls(program) if LIBRARIES.search(name)}


@pytest.mark.parametrize("fn", [recalibrate, fuse, gradient])
def test_compiles_for_every_platform_without_library_calls(fn):
    assert not library_calls(lower(fn, LOGITS, LOGITS, SPECTRUM, SCALAR))


def test_many_classes_need_no_library_calls_either():
    program = lower(recalibrate, MANY_LOGITS, MANY_LOGITS, spectrum_of(309), SCALAR)
    assert not library_calls(program)


@pytest.mark.parametrize("shape", EQUATIONS)
def test_schur_forms_need_no_library_calls(shape):
    assert not library_calls(lower(schur, EQUATIONS[shape][0]))


@pytest.mark.parametrize("solve", [solve_sylvester, solve_generalized])
@pytest.mark.parametrize("shape", EQUATIONS)
def test_equations_and_their_derivatives_need_no_library_calls(solve, shape):
    solve = functools.partial(solve, method="bartels_stewart", full_output=True)

    def gradients(*arrays):
        return jax.grad(lambda *abc: solve(*abc)[0].sum(), argnums=(0, 1, 2))(*arrays)

    for fn in (solve, jax.vmap(gradients)):
        assert not library_calls(lower(fn, *EQUATIONS[shape]))


@pytest.mark.parametrize("solve", [solve_sylvester, solve_generalized])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_eigendecompositions_are_library_calls(solve, platform):
    # So that the checks above can fail, on each platform.
    solve = functools.partial(solve, method="eigh")
    assert library_calls(lower(solve, *EQUATIONS["one block"], platforms=(platform,)))


@pytest.mark.parametrize("decompose", [jnp.linalg.eigh, jnp.linalg.qr, lax.linalg.lu])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_call_of_a_decomposition_is_known_as_one(decompose, platform):
    program = lower(decompose, EQUATIONS["one block"][0], platforms=(platform,))
    assert library_calls(program) == custom_calls(program) != set()


def test_memory_is_no_library_call():
    program = lower(lambda: lax.empty((3,), jnp.float32), platforms=("tpu",))
    assert custom_calls(program) == {"AllocateBuffer"}
    assert not library_calls(program)


@pytest.mark.parametrize(
    ("platform", "chunk", "block", "chunk_of_block"),
    [("cpu", 10000, 212, 10), ("cuda", 20000, 50000, 625), ("tpu", 20000, 50000, 625)],
)
def test_chunks_fit_the_platform(platform, chunk, block, chunk_of_block):
    few, many = (jax.ShapeDtypeStruct((B, K), jnp.float32) for B, K in ((20000, 10), (100000, 309)))
    for fn in (recalibrate, fuse):
        module = lower(fn, few, few, SPECTRUM, SCALAR, platforms=(platform,))
        assert f"tensor<{chunk}x10x10xf32>" in module
        assert ("tensor<20000x10x10xf32>" in module) == (platform != "cpu")
    module = lower(recalibrate, many, many, spectrum_of(309), SCALAR, platforms=(platform,))
    assert f"tensor<{block}x309xf32>" in module
    assert f"tensor<{chunk_of_block}x309x309xf32>" in module
    assert f"tensor<{block}x309x309xf32>" not in module
