"""What the benchmark measures: operations, their inputs, and the methods of each.

Counts of operations and bytes are models, the same for all methods of an operation, so that rates
compare like times: a method that does more than it must shows a low rate.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
import scipy.linalg
import scipy.special

from jacfuse_jax import attacks, fusion, jacobians, linalg

_HIGHEST = jax.lax.Precision.HIGHEST
_GAMMA = 0.1
_STRENGTH = (1 - _GAMMA) / _GAMMA
MAX_MATRIX_BYTES = 2**30
# SciPy loops; GPUs take one matrix after the other in `jnp.linalg.eig`, or leave it to the host.
_MAX_SLOW_SAMPLES = 16
_NUM_INPUTS = _NUM_HIDDEN = 64
_EPSILON = 0.1


class Inputs(NamedTuple):
    """Arrays by name: per sample, with a leading axis of B, and shared by all samples."""

    samples: dict[str, Any]
    shared: dict[str, Any]

    def take(self, num_samples: int, *, as_numpy: bool = False) -> "Inputs":
        """The first samples; the arrays themselves where that is all of them."""
        taken = {
            name: x if len(x) == num_samples else x[:num_samples]
            for name, x in self.samples.items()
        }
        inputs = Inputs(taken, self.shared)
        return jax.tree.map(np.asarray, inputs) if as_numpy else inputs


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


def _matrix_inputs(key: jax.Array, batch_size: int, num_classes: int, dtype: str) -> Inputs:
    """Real A and B, eigenvalues in a disk of radius about 1 around 3: X is well defined."""
    shape = (batch_size, num_classes, num_classes)
    shift = 3 * jnp.eye(num_classes, dtype=dtype)[None]
    a, b, c = (jax.random.normal(k, shape, dtype) for k in jax.random.split(key, 3))
    return Inputs(
        {"a": a / num_classes**0.5 + shift, "b": b / num_classes**0.5 + shift, "c": c}, {}
    )


def _recalibration_inputs(key: jax.Array, batch_size: int, num_classes: int, dtype: str) -> Inputs:
    """Logits, their probabilities, and the Gram matrix of a linear head."""
    # One array at a time and no temporaries of its size: a million samples fill gigabytes.
    kernel_key, logits_key = jax.random.split(key)
    kernel = _kernel(kernel_key, num_classes, dtype)
    logits = 3 * jax.random.normal(logits_key, (batch_size, num_classes), dtype)
    return Inputs(
        {"logits": logits, "probs": jax.nn.softmax(logits)},
        {
            "gram": jacobians.gram_from_head(kernel),
            "spectrum": linalg.spectrum_from_kernel(kernel),
        },
    )


def _fusion_inputs(key: jax.Array, batch_size: int, num_classes: int, dtype: str) -> Inputs:
    """Logits of two modalities, the spectrum of one, and a class prior."""
    image_key, audio_key, prior_key = jax.random.split(key, 3)
    audio = _recalibration_inputs(audio_key, batch_size, num_classes, dtype)
    image = 3 * jax.random.normal(image_key, (batch_size, num_classes), dtype)
    prior = jax.nn.softmax(jax.random.normal(prior_key, (num_classes,), dtype))
    return Inputs(
        {"image": image, "audio": audio.samples["logits"]},
        {"spectrum": audio.shared["spectrum"], "class_prior": prior},
    )


def _feature_inputs(key: jax.Array, batch_size: int, num_classes: int, dtype: str) -> Inputs:
    """Features h, recalibration matrices R and the kernel W of p = softmax(R W^T h)."""
    sample_key, kernel_key = jax.random.split(key)
    kernel = _kernel(kernel_key, num_classes, dtype)
    features = jax.random.normal(sample_key, (batch_size, len(kernel)), dtype)
    probs = jax.nn.softmax(features @ kernel)
    recalibration = linalg.recalibration_matrix(
        probs, linalg.spectrum_from_kernel(kernel), _STRENGTH
    )
    return Inputs({"features": features, "recalibration": recalibration}, {"kernel": kernel})


def _classifier_inputs(key: jax.Array, batch_size: int, num_classes: int, dtype: str) -> Inputs:
    """Inputs and labels of two classifiers with one hidden layer, their kernels, and a prior."""
    keys = iter(jax.random.split(key, 7))
    shape = (batch_size, _NUM_INPUTS)
    samples = {m: jax.random.normal(next(keys), shape, dtype) for m in ("image", "audio")}
    kernels = {
        m: (
            jax.random.normal(next(keys), (_NUM_INPUTS, _NUM_HIDDEN), dtype) / _NUM_INPUTS**0.5,
            jax.random.normal(next(keys), (_NUM_HIDDEN, num_classes), dtype) / _NUM_HIDDEN**0.5,
        )
        for m in samples
    }
    labels = jax.random.randint(next(keys), (batch_size,), 0, num_classes, "int32")
    spectrum = linalg.spectrum_from_kernel(kernels["audio"][1])
    prior = jnp.full(num_classes, 1 / num_classes, dtype)
    return Inputs(
        {**samples, "labels": labels},
        {"kernels": kernels, "spectrum": spectrum, "class_prior": prior},
    )


def _kernel(key: jax.Array, num_classes: int, dtype: str) -> jax.Array:
    """W, (2 K, K), of a linear head; its Gram matrix is invertible, as SciPy's solver needs."""
    shape = (2 * num_classes, num_classes)
    return jax.random.normal(key, shape, dtype) / shape[0] ** 0.5


def _schur(inputs: Inputs) -> Any:
    return linalg.schur(inputs.samples["a"])


def _jax_schur(inputs: Inputs) -> Any:
    return jax.vmap(partial(jax.scipy.linalg.schur, output="complex"))(inputs.samples["a"])


def _scipy_schur(inputs: Inputs) -> Any:
    forms = [scipy.linalg.schur(a, output="complex") for a in inputs.samples["a"]]
    return tuple(map(np.stack, zip(*forms, strict=True)))


def _eigh(inputs: Inputs) -> Any:
    """Other matrices than the rest: the symmetric parts, whose Schur form is diagonal."""
    a = inputs.samples["a"]
    return jax.vmap(jnp.linalg.eigh)((a + jnp.swapaxes(a, -1, -2)) / 2)


def _eig(inputs: Inputs) -> Any:
    """Eigenvectors instead of a Schur form, which defective matrices do not have."""
    return jax.vmap(jnp.linalg.eig)(inputs.samples["a"])


def _sylvester(inputs: Inputs) -> Any:
    return linalg.solve_sylvester(**inputs.samples, method="bartels_stewart")


def _jax_sylvester(method: str, inputs: Inputs) -> Any:
    solve_fn = partial(jax.scipy.linalg.solve_sylvester, method=method)
    return jax.vmap(solve_fn)(*(inputs.samples[name] for name in "abc"))


def _scipy_sylvester(inputs: Inputs) -> Any:
    systems = zip(*(inputs.samples[name] for name in "abc"), strict=True)
    return np.stack([scipy.linalg.solve_sylvester(a, b, c) for a, b, c in systems])


def _spd_sylvester(inputs: Inputs) -> Any:
    """Other systems than the rest: of the symmetric parts of A and B, which are definite."""
    a, b = ((x + jnp.swapaxes(x, -1, -2)) / 2 for x in (inputs.samples["a"], inputs.samples["b"]))
    return linalg.solve_sylvester(a, b, inputs.samples["c"], method="eigh")


def _closed_form(inputs: Inputs) -> Any:
    return linalg.recalibrate(
        **inputs.samples, spectrum=inputs.shared["spectrum"], strength=_STRENGTH
    )


def _recalibrate_by_eigh(inputs: Inputs) -> Any:
    """R z from the general solver, A R G + R = I with A = c J^2: a decomposition a sample."""
    J = jacobians.softmax_jacobian(inputs.samples["probs"])
    a = _STRENGTH * jnp.matmul(J, J, precision=_HIGHEST)
    gram = inputs.shared["gram"]
    R = linalg.solve_generalized(a, gram, jnp.eye(len(gram), dtype=gram.dtype), method="eigh")
    return jnp.einsum("bij,bj->bi", R, inputs.samples["logits"], precision=_HIGHEST)


def _scipy_recalibrate(inputs: Inputs) -> Any:
    """R z from the Sylvester equation A R + R G^-1 = G^-1, A = c J^2."""
    inverse = np.linalg.inv(inputs.shared["gram"])
    results: list[Any] = []
    for p, z in zip(inputs.samples["probs"], inputs.samples["logits"], strict=True):
        J = np.diag(p) - np.outer(p, p)
        results.append(scipy.linalg.solve_sylvester(_STRENGTH * J @ J, inverse, inverse) @ z)
    return np.stack(results)


def _statistical_fusion(inputs: Inputs) -> Any:
    return fusion.statistical_fusion(inputs.samples, inputs.shared["class_prior"])


def _scipy_statistical_fusion(inputs: Inputs) -> Any:
    log_prior = np.log(inputs.shared["class_prior"])
    return np.stack(
        [
            scipy.special.log_softmax(
                scipy.special.log_softmax(image) + scipy.special.log_softmax(audio) - log_prior
            )
            for image, audio in zip(*(inputs.samples[m] for m in ("image", "audio")), strict=True)
        ]
    )


def _robust_fusion(solver: Any, inputs: Inputs) -> Any:
    return fusion.robust_fusion(
        inputs.samples,
        {"audio": inputs.shared["spectrum"]},
        inputs.shared["class_prior"],
        perturbed="audio",
        gamma=_GAMMA,
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
        _matrix_inputs,
        {
            "schur": Method(_schur, 18),
            "jax_schur": Method(_jax_schur, 8, ("cpu",)),
            "scipy_loop": Method(_scipy_schur, is_compiled=False),
            "eigh": Method(_eigh, 8),
            "eig": Method(_eig, 10, ("cpu", "gpu"), max_samples=_MAX_SLOW_SAMPLES),
        },
        lambda K: 25 * K**3,
        lambda K: 5 * K**2,
    ),
    # Two Schur decompositions, four products of 2 K^3, and 2 K^3 for the triangular system.
    "solve_sylvester": Operation(
        _matrix_inputs,
        {
            "bartels_stewart": Method(_sylvester, 56),
            "jax_schur": Method(partial(_jax_sylvester, "schur"), 24, ("cpu",)),
            "jax_eigen": Method(
                partial(_jax_sylvester, "eigen"), 20, ("cpu", "gpu"), max_samples=_MAX_SLOW_SAMPLES
            ),
            "scipy_loop": Method(_scipy_sylvester, is_compiled=False),
            "eigh_spd": Method(_spd_sylvester, 13),
        },
        lambda K: 60 * K**3,
        lambda K: 4 * K**2,
    ),
    # 10 K^2, about the multiply-adds of the closed form; reads z and p, writes R z.
    "recalibrate": Operation(
        _recalibration_inputs,
        {
            "closed_form": Method(_closed_form),
            "eigh": Method(_recalibrate_by_eigh, 8),
            "scipy_loop": Method(_scipy_recalibrate, is_compiled=False),
        },
        lambda K: 10 * K**2,
        lambda K: 3 * K,
    ),
    # One recalibration, and 6 K^2 for the norm of the fused Jacobian; two modalities in, one out.
    "robust_fusion": Operation(
        _fusion_inputs,
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
        _fusion_inputs,
        {
            "statistical_fusion": Method(_statistical_fusion),
            "scipy_loop": Method(_scipy_statistical_fusion, is_compiled=False),
        },
        lambda K: 18 * K,
        lambda K: 3 * K,
    ),
    # `attacks.pgd` with one step on the audio of two classifiers, 64 -> 64 -> K, and robust fusion:
    # of the classifiers three evaluations and one gradient in the audio; of the fusion, whose
    # gradient evaluates it again, five. Two modalities in, one out.
    "pgd_step": Operation(
        _classifier_inputs,
        {"closed_form": Method(_pgd_step)},
        lambda K: 14 * _NUM_HIDDEN * (_NUM_INPUTS + K) + 5 * 16 * K**2,
        lambda _: 3 * _NUM_INPUTS,
    ),
    # Two products of K x K and K x H matrices, H = 2 K; reads h and R, writes K x H.
    "jacobian": Operation(
        _feature_inputs,
        {
            "closed_form": Method(_fused_jacobian, 8),
            "forward": Method(partial(_autodiff_jacobian, "forward"), 8),
            "reverse": Method(partial(_autodiff_jacobian, "reverse"), 8),
        },
        lambda K: 8 * K**3,
        lambda K: 2 * K + 3 * K**2,
    ),
}
