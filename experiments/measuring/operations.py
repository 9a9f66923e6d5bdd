"""What the benchmark measures: operations, and the methods of each.

Counts of operations and bytes are models, the same for all methods of an operation, so that rates
compare like times: a method that does more than it must shows a low rate.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.measuring import peers
from experiments.measuring.operation_inputs import (
    GAMMA,
    NUM_HIDDEN,
    NUM_INPUTS,
    STRENGTH,
    Inputs,
    classifier_inputs,
    feature_inputs,
    fusion_inputs,
    matrix_inputs,
    recalibration_inputs,
)
from jacfuse_jax import attacks, fusion, jacobians, linalg

_HIGHEST = jax.lax.Precision.HIGHEST
MAX_MATRIX_BYTES = 2**30
# SciPy loops; GPUs take one matrix after the other in `jnp.linalg.eig`, or leave it to the host.
_MAX_SLOW_SAMPLES = 16
_EPSILON = 0.1


class Method(NamedTuple):
    """One way to compute an operation.

    Attributes:
      fn: maps `Inputs` to the result, an array or a tuple of arrays.
      num_matrices: K x K arrays that the program holds per sample, as `program_bytes` counts them;
        0 where memory grows with B K only, since the method takes the batch in chunks.
      backends: of JAX that run it.
      is_compiled: False for a loop over SciPy's routine.
      max_samples: beyond which samples are not run, since they are as slow as the first ones.
    """

    fn: Callable[[Inputs], Any]
    num_matrices: int = 0
    backends: tuple[str, ...] = ("cpu", "gpu", "tpu")
    is_compiled: bool = True
    max_samples: int | None = None

    def num_measured(self, batch_size: int, num_classes: int, dtype: str) -> int:
        """Samples of a batch to run: all, or what fits into about 1 GiB, or a few."""
        if not self.is_compiled:
            return min(batch_size, _MAX_SLOW_SAMPLES)
        batch_size = min(batch_size, self.max_samples or batch_size)
        sample_bytes = self.num_matrices * num_classes**2 * np.dtype(dtype).itemsize
        return min(batch_size, max(1, MAX_MATRIX_BYTES // max(1, sample_bytes)))


class Operation(NamedTuple):
    """What is computed.

    Attributes:
      make_inputs: (key, batch_size, num_classes, dtype) -> `Inputs`, random.
      methods: by name, the library's own first.
      num_flops: K -> nominal floating-point operations a sample.
      num_entries: K -> entries that a sample reads and writes, without shared arrays.
    """

    make_inputs: Callable[[jax.Array, int, int, str], Inputs]
    methods: dict[str, Method]
    num_flops: Callable[[int], int]
    num_entries: Callable[[int], int]


def _schur(inputs: Inputs) -> Any:
    return linalg.schur(inputs.samples["a"])


def _sylvester(inputs: Inputs) -> Any:
    return linalg.solve_sylvester(**inputs.samples, method="bartels_stewart")


def _spd_sylvester(inputs: Inputs) -> Any:
    """Other systems than the rest: of the symmetric parts of A and B, which are definite."""
    a, b = ((x + jnp.swapaxes(x, -1, -2)) / 2 for x in (inputs.samples["a"], inputs.samples["b"]))
    return linalg.solve_sylvester(a, b, inputs.samples["c"], method="eigh")


def _closed_form(inputs: Inputs) -> Any:
    return linalg.recalibrate(
        **inputs.samples, spectrum=inputs.shared["spectrum"], strength=STRENGTH
    )


def _recalibrate_by_eigh(inputs: Inputs) -> Any:
    """R z from the general solver, A R G + R = I with A = c J^2: a decomposition a sample."""
    J = jacobians.softmax_jacobian(inputs.samples["probs"])
    a = STRENGTH * jnp.matmul(J, J, precision=_HIGHEST)
    gram = inputs.shared["gram"]
    R = linalg.solve_generalized(a, gram, jnp.eye(len(gram), dtype=gram.dtype), method="eigh")
    return jnp.einsum("bij,bj->bi", R, inputs.samples["logits"], precision=_HIGHEST)


def _statistical_fusion(inputs: Inputs) -> Any:
    return fusion.statistical_fusion(inputs.samples, inputs.shared["class_prior"])


def _robust_fusion(solver: Any, inputs: Inputs) -> Any:
    return fusion.robust_fusion(
        inputs.samples,
        {"audio": inputs.shared["spectrum"]},
        inputs.shared["class_prior"],
        perturbed="audio",
        gamma=GAMMA,
        solver=solver,
    )


def _pgd_step(inputs: Inputs) -> Any:
    """The adversarial audio: one step from a random start, attacking robust fusion."""

    def log_prob_fn(x: Any) -> jax.Array:
        logits = {name: _classify(x[name], *inputs.shared["kernels"][name]) for name in x}
        shared = {name: inputs.shared[name] for name in ("spectrum", "class_prior")}
        return _robust_fusion("closed_form", Inputs(logits, shared)).log_probs

    x = {name: inputs.samples[name] for name in ("image", "audio")}
    adversarial = attacks.pgd(
        log_prob_fn,
        x,
        inputs.samples["labels"],
        jax.random.key(0),
        epsilon={"audio": _EPSILON},
        num_steps=1,
    )
    return adversarial["audio"]


def _classify(x: jax.Array, hidden_kernel: jax.Array, kernel: jax.Array) -> jax.Array:
    """Logits 3 tanh(x U) W of a classifier with one hidden layer."""
    hidden = jnp.tanh(jnp.matmul(x, hidden_kernel, precision=_HIGHEST))
    return 3 * jnp.matmul(hidden, kernel, precision=_HIGHEST)


def _fused_jacobian(inputs: Inputs) -> Any:
    features, R = inputs.samples["features"], inputs.samples["recalibration"]
    kernel = inputs.shared["kernel"]
    probs = jax.vmap(partial(_predict, kernel))(features, R)
    return jacobians.fused_jacobian(probs, R, kernel)


def _autodiff_jacobian(mode: Any, inputs: Inputs) -> Any:
    def jacobian_of_sample(features: jax.Array, R: jax.Array) -> jax.Array:
        predict_fn = partial(_predict, inputs.shared["kernel"], recalibration=R)
        return jacobians.per_sample_jacobian(predict_fn, features[None], mode=mode)[0]

    return jax.vmap(jacobian_of_sample)(*inputs.samples.values())


def _predict(kernel: jax.Array, features: jax.Array, recalibration: jax.Array) -> jax.Array:
    """The fused prediction p = softmax(R W^T h) of one sample."""
    logits = jnp.matmul(features, kernel, precision=_HIGHEST)
    return jax.nn.softmax(jnp.matmul(recalibration, logits, precision=_HIGHEST))


OPERATIONS = {
    # 25 K^3, the usual estimate for the QR algorithm on a real matrix with its vectors; reads a
    # real matrix and writes two complex ones.
    "schur": Operation(
        matrix_inputs,
        {
            "schur": Method(_schur, 18),
            "jax_schur": Method(peers.jax_schur, 8, ("cpu",)),
            "scipy_loop": Method(peers.scipy_schur, is_compiled=False),
            "eigh": Method(peers.eigh, 8),
            "eig": Method(peers.eig, 10, ("cpu", "gpu"), max_samples=_MAX_SLOW_SAMPLES),
        },
        lambda K: 25 * K**3,
        lambda K: 5 * K**2,
    ),
    # Two Schur decompositions, four products of 2 K^3, and 2 K^3 for the triangular system.
    "solve_sylvester": Operation(
        matrix_inputs,
        {
            "bartels_stewart": Method(_sylvester, 56),
            "jax_schur": Method(partial(peers.jax_sylvester, "schur"), 24, ("cpu",)),
            "jax_eigen": Method(
                partial(peers.jax_sylvester, "eigen"),
                20,
                ("cpu", "gpu"),
                max_samples=_MAX_SLOW_SAMPLES,
            ),
            "scipy_loop": Method(peers.scipy_sylvester, is_compiled=False),
            "eigh_spd": Method(_spd_sylvester, 13),
        },
        lambda K: 60 * K**3,
        lambda K: 4 * K**2,
    ),
    # 10 K^2, about the multiply-adds of the closed form; reads z and p, writes R z.
    "recalibrate": Operation(
        recalibration_inputs,
        {
            "closed_form": Method(_closed_form),
            "eigh": Method(_recalibrate_by_eigh, 8),
            "scipy_loop": Method(peers.scipy_recalibrate, is_compiled=False),
        },
        lambda K: 10 * K**2,
        lambda K: 3 * K,
    ),
    # One recalibration, and 6 K^2 for the norm of the fused Jacobian; two modalities in, one out.
    "robust_fusion": Operation(
        fusion_inputs,
        {
            "closed_form": Method(partial(_robust_fusion, "closed_form")),
            "eigh": Method(partial(_robust_fusion, "eigh")),
            "bartels_stewart": Method(partial(_robust_fusion, "bartels_stewart")),
        },
        lambda K: 16 * K**2,
        lambda K: 3 * K,
    ),
    # 18 K for three log-softmaxes and their sum, an exponential counted as one; two modalities in,
    # one out.
    "statistical_fusion": Operation(
        fusion_inputs,
        {
            "statistical_fusion": Method(_statistical_fusion),
            "scipy_loop": Method(peers.scipy_statistical_fusion, is_compiled=False),
        },
        lambda K: 18 * K,
        lambda K: 3 * K,
    ),
    # `attacks.pgd` with one step on the audio of two classifiers, 64 -> 64 -> K, and robust fusion:
    # of the classifiers three evaluations and one gradient in the audio; of the fusion, whose
    # gradient evaluates it again, five. Two modalities in, one out.
    "pgd_step": Operation(
        classifier_inputs,
        {"closed_form": Method(_pgd_step)},
        lambda K: 14 * NUM_HIDDEN * (NUM_INPUTS + K) + 5 * 16 * K**2,
        lambda _: 3 * NUM_INPUTS,
    ),
    # Two products of K x K and K x H matrices, H = 2 K; reads h and R, writes K x H.
    "jacobian": Operation(
        feature_inputs,
        {
            "closed_form": Method(_fused_jacobian, 8),
            "forward": Method(partial(_autodiff_jacobian, "forward"), 8),
            "reverse": Method(partial(_autodiff_jacobian, "reverse"), 8),
        },
        lambda K: 8 * K**3,
        lambda K: 2 * K + 3 * K**2,
    ),
}
