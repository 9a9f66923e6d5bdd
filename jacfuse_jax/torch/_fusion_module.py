"""Fusion as a module of PyTorch."""

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.autograd.function import once_differentiable

from jacfuse_jax._arrays import AnyArray, as_array
from jacfuse_jax._checks import check_class_prior
from jacfuse_jax.fusion import Rule, fuse
from jacfuse_jax.fusion._supported import check_parameters
from jacfuse_jax.linalg import GramSpectrum, gram_spectrum


class FusionModule(torch.nn.Module):
    """Fuses tensors of logits by a rule, `fusion.fuse` with gradients for torch.autograd.

        fuse = FusionModule(fusion.Robust(0.1), prior, perturbed="image", grams={"image": spectrum})
        log_probs = fuse({"image": image_net(x), "audio": audio_net(y)})

    The rule is compiled by JAX for the device that the logits are on, once for every shape, and
    called through DLPack: memory is shared where `fusion` shares it, and results are not copied.
    Gradients are those in the logits, of first order: a second derivative raises. There are no
    parameters; the prior and the spectra are buffers, which `state_dict` has, while the rule and
    the names of modalities are up to whoever makes the module.

    Args:
      rule: with its parameters.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      perturbed: name or names of the modalities believed perturbed.
      grams: {modality: spectrum or matrix (K, K)} for the rules that need them; take
        `linalg.spectrum_from_kernel` of the transposed `weight` of an `nn.Linear`.

    Raises:
      ValueError: the prior is not positive or does not sum to one, or there is a Gram matrix for
        every sample.
    """

    def __init__(
        self,
        rule: Rule,
        class_prior: AnyArray,
        *,
        perturbed: str | tuple[str, ...],
        grams: Mapping[str, GramSpectrum | AnyArray] | None = None,
    ) -> None:
        super().__init__()
        self.rule = rule
        self.perturbed = perturbed
        prior = _as_tensor(class_prior)
        check_class_prior(prior.numpy(force=True), len(prior), np.float32)
        names = (perturbed,) if isinstance(perturbed, str) else tuple(perturbed)
        # The names of the others are not known yet, but no rule needs more than three.
        check_parameters(rule, len(prior), (*names, "", " ", "  "))
        for name in grams or {}:
            if "." in name:
                raise ValueError(f"grams[{name!r}]: buffers of PyTorch have no dots in their names")
        self.register_buffer("class_prior", prior)
        self._with_grams = tuple(grams or ())
        for name, gram in (grams or {}).items():
            spectrum = gram if isinstance(gram, GramSpectrum) else gram_spectrum(as_array(gram))
            if spectrum.eigenvalues.ndim != 1:
                raise ValueError(
                    f"grams[{name!r}] must be one matrix (K, K) for all samples, or its spectrum, "
                    f"got eigenvalues {spectrum.eigenvalues.shape}"
                )
            self.register_buffer(f"eigenvalues_{name}", _as_tensor(spectrum.eigenvalues))
            self.register_buffer(f"eigenvectors_{name}", _as_tensor(spectrum.eigenvectors))

    def forward(
        self,
        logits: Mapping[str, torch.Tensor],
        present: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Fuses logits.

        Args:
          logits: {modality: (B, K)}, floating, at least one modality, all on one device.
          present: {modality: (B,), bool}, which rows have it, see `fusion.fuse`.

        Returns:
          (B, K) log-probabilities, in the dtype of the logits and on their device.

        Raises:
          TypeError: logits are float64, and JAX's x64 is off; or as in `fusion.fuse`.
          ValueError: as in `fusion.fuse`.
        """
        buffers: dict[str, Any] = dict(self.named_buffers())
        grams = {
            name: GramSpectrum(buffers[f"eigenvalues_{name}"], buffers[f"eigenvectors_{name}"])
            for name in self._with_grams
        }
        has_float64 = jnp.result_type(float) == np.float64
        for name, tensor in logits.items():
            if tensor.dtype == torch.float64 and not has_float64:
                raise TypeError(
                    f"logits[{name!r}] are float64, which JAX rounds to float32: call "
                    'jax.config.update("jax_enable_x64", True) first, or pass logits.float()'
                )
        operands = (dict(logits), buffers["class_prior"], grams or None, present and dict(present))
        tensors, structure = jax.tree.flatten(operands)
        return _Fuse.apply(self.rule, self.perturbed, structure, *tensors)


class _Fuse(torch.autograd.Function):
    """The rule, of tensors as they are flattened; the logits come first."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, perturbed: Any, structure: Any, *tensors: Any) -> Any:
        ctx.save_for_backward(*tensors)
        ctx.call = rule, perturbed, structure
        return _through_jax(_log_probs, *ctx.call, tensors)[0]

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] as decorated it has no names
        ctx: Any, *grad_outputs: Any
    ) -> Any:
        tensors = ctx.saved_tensors
        gradients = _through_jax(_gradients, *ctx.call, tensors, *grad_outputs)
        others = len(tensors) - len(gradients)
        return None, None, None, *gradients, *[None] * others


def _through_jax(
    fn: Any, rule: Rule, perturbed: Any, structure: Any, tensors: Any, *more: Any
) -> Any:
    """Tensors of what a function of JAX makes of tensors, computed where they are."""
    is_on_host = tensors[0].device.type == "cpu"
    with jax.default_device("cpu") if is_on_host else contextlib.nullcontext():
        # JAX takes no tensors with other strides.
        arrays = [as_array(x.detach().contiguous()) for x in (*tensors, *more)]
        operands = structure.unflatten(arrays[: len(tensors)])
        results = fn(rule, *operands, *arrays[len(tensors) :], perturbed=perturbed)
    # Until then JAX may read the memory of the tensors, which others may write to.
    results = jax.block_until_ready(results)
    return [torch.from_dlpack(x) for x in jax.tree.leaves(results)]


@functools.partial(jax.jit, static_argnames="perturbed")
def _log_probs(
    rule: Rule, logits: Any, class_prior: Any, grams: Any, present: Any, *, perturbed: Any
) -> jax.Array:
    return fuse(rule, logits, class_prior, perturbed=perturbed, grams=grams, present=present)


@functools.partial(jax.jit, static_argnames="perturbed")
def _gradients(
    rule: Rule,
    logits: Any,
    class_prior: Any,
    grams: Any,
    present: Any,
    cotangent: jax.Array,
    *,
    perturbed: Any,
) -> Any:
    """Of all logits, {modality: (B, K)}."""

    def fused(logits: Any) -> jax.Array:
        return _log_probs(rule, logits, class_prior, grams, present, perturbed=perturbed)

    return jax.vjp(fused, logits)[1](cotangent)[0]


def _as_tensor(array: Any) -> torch.Tensor:
    """A copy of an array of any framework."""
    if isinstance(array, torch.Tensor):
        return array.detach().clone()
    return torch.tensor(np.ascontiguousarray(array))
