"""Baselines from the literature on fusion, as rules under test."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import register_dataclass
from jax.typing import ArrayLike

from jacfuse_jax import fusion
from jacfuse_jax._arrays import AnyArray, in_dtype_of, known_array
from jacfuse_jax._checks import in_full_precision
from jacfuse_jax._presence import any_of, check_available
from jacfuse_jax._simplex import log_add
from jacfuse_jax.fusion import FusionInputs, MajorityVote, Median, Rule, TrimmedMean

_ENERGY_SCALE = 0.1  # of the published weights
_ROUNDING = 1e-4  # of the logsumexp of what is normalised


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Calibrated(Rule):
    """Statistical fusion of z_m / T_m, with the temperatures of the evidence."""

    kind = "temperature"
    takes_missing = True

    temperatures: Any = None

    def apply(self, inputs: FusionInputs) -> jax.Array:
        calibrated = {name: z / self.temperatures[name] for name, z in inputs.logits.items()}
        return fusion.statistical_fusion(calibrated, inputs.class_prior, present=inputs.present)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ProbEn(Calibrated):
    """`Calibrated` by the name it is published under.

    p(k) ~ prod_m softmax(z_m / T_m)_k / prior_k^(M - 1).

    References:
      Chen, Shi, Ye, Mertz, Ramanan, Kong, "Multimodal Object Detection via Probabilistic
      Ensembling", 2022.
    """

    kind = "prob_en"


@register_dataclass
@dataclasses.dataclass(frozen=True)
class DropSuspect(Rule):
    """Statistical fusion of the trusted modalities alone: `fusion.Cascade` of confidence zero.

    Statistical fusion of everything where no modality is trusted. The gradient in what is believed
    perturbed is zero.

    Attributes:
      confidence: of the cascade. Searched over, as only such rules are told what to believe, though
        among one value.
    """

    kind = "drop_suspect"
    takes_missing = True
    searched: ClassVar[Mapping[str, str]] = {"confidence": "c"}

    confidence: ArrayLike = 0.0

    def apply(self, inputs: FusionInputs) -> jax.Array:
        return fusion.Cascade(self.confidence).apply(inputs)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class DempsterShafer(Rule):
    """Dempster's combination of discounted posteriors, as pignistic probabilities.

    With p_m = softmax(z_m / T_m) and e_m the error rate of modality m on validation rows,

        mass_m({k}) = (1 - e_m) p_m(k),    mass_m(all classes) = e_m,
        mass = combination of all mass_m by Dempster's rule,
        p(k) = mass({k}) + mass(all classes) / K.

    Influence is bounded unless e_m = 0: an excluded class keeps what is left to all classes. The
    prior, which every p_m holds, is counted M times, as in `fusion.Product`.

    Plausibilities, mass({k}) + mass(all classes) ~ prod_m ((1 - e_m) p_m(k) + e_m), order classes
    as p does. For a uniform prior they are, normalised, contaminated fusion of all modalities with
    the contaminations K e_m / (1 + (K - 1) e_m) and the logits z_m / T_m.

    Dempster's rule is 0 / 0 where modalities without errors exclude, together, all classes: there p
    is uniform.

    References:
      Shafer, "A Mathematical Theory of Evidence", 1976 (the combination, and discounting). Smets,
      Kennes, "The Transferable Belief Model", 1994 (pignistic probabilities).
    """

    kind = "dempster_shafer"
    takes_missing = True

    temperatures: Any = None
    error_rates: Any = None

    def apply(self, inputs: FusionInputs) -> jax.Array:
        arrays, log_prior, checked = check_available(*inputs[:2], inputs.present)
        first = next(iter(arrays.values()))
        # Sums of products of masses, as differences of plausibilities would cancel.
        log_mass = jnp.full_like(first, -jnp.inf)
        log_frame = jnp.zeros((), first.dtype)
        for name, z in arrays.items():
            temperature = known_array(self.temperatures[name], z.dtype)
            error_rate = known_array(self.error_rates[name], z.dtype)
            log_own = jnp.log1p(-error_rate) + jax.nn.log_softmax(z / temperature)
            log_error = jnp.log(error_rate)
            # What is missing leaves all mass to all classes.
            is_present = any_of([name], checked)
            log_own = jnp.where(is_present, log_own, -jnp.inf)
            log_error = jnp.where(is_present, log_error, 0)
            log_mass = log_add(log_mass + log_add(log_own, log_error), log_frame + log_own)
            log_frame = log_frame + log_error
        log_probs = log_add(log_mass, log_frame - math.log(first.shape[-1]))
        is_undefined = (log_probs == -jnp.inf).all(axis=-1, keepdims=True)
        log_probs = jax.nn.log_softmax(jnp.where(is_undefined, 0, log_probs))
        log_probs = jnp.where(any_of(arrays, checked), log_probs, log_prior[None])
        return in_dtype_of(inputs.logits, log_probs)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class EnergyWeighted(Rule):
    """p = softmax(sum_m w_m z_m), w_m = logsumexp(z_m) / 10: minus the energy of the logits.

    The fusion of QMF, with its temperature of one, of classifiers that were not trained for it. A
    modality of negative w_m speaks against what it says. Attacks differentiate through w_m. A class
    that one modality excludes is excluded.

    Adding a constant to logits changes w_m, so they must be what the classifier gives: of
    log-probabilities w_m = 0. They are refused unless they are traced, which cannot be checked.

    References:
      Zhang, Wu, Zhang, Hu, Fu, Zhou, Peng, "Provable Dynamic Fusion for Low-Quality Multimodal
      Data", 2023. Liu, Wang, Owens, Li, "Energy-based Out-of-distribution Detection", 2020.
    """

    kind = "energy_weighted"
    takes_missing = True

    def apply(self, inputs: FusionInputs) -> jax.Array:
        arrays, log_prior, checked = check_available(*inputs[:2], inputs.present)
        _check_unnormalised(inputs.logits)
        fused = jnp.zeros_like(next(iter(arrays.values())))
        # The energy of log-probabilities, such as the prior in the place of what is missing, is 0.
        weights = energy_weights(arrays)
        for name, z in arrays.items():
            weight = weights[name]
            is_excluded = z == -jnp.inf
            # The product would be NaN for w = 0, and infinite for w < 0.
            term = weight * jnp.where(is_excluded, 0, z)
            fused = fused + jnp.where(is_excluded, -jnp.inf, term)
        fused = jnp.where(any_of(arrays, checked), fused, log_prior[None])
        return in_dtype_of(inputs.logits, jax.nn.log_softmax(fused))


def energy_weights(logits: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """w_m = logsumexp(z_m) / 10, {modality: (B, 1)}, of `EnergyWeighted`.

    Args:
      logits: {modality: (B, K)}, as the classifiers give them.
    """
    return {
        name: _ENERGY_SCALE * jax.nn.logsumexp(z, axis=-1, keepdims=True)
        for name, z in logits.items()
    }


BASELINES: tuple[type[Rule], ...] = (
    *(ProbEn, DropSuspect, DempsterShafer, EnergyWeighted, MajorityVote, Median, TrimmedMean),
)
"""What is compared with under the names of the literature."""


def _check_unnormalised(logits: Mapping[str, AnyArray]) -> None:
    """Raises ValueError where all rows of a modality are log-probabilities, and known."""
    for name, array in logits.items():
        z = known_array(array)
        if isinstance(z, Tracer):
            continue
        with jax.ensure_compile_time_eval():
            full = in_full_precision(f"logits[{name!r}]", z)
            log_sums = np.asarray(jax.nn.logsumexp(full, axis=-1))
        log_sums = log_sums[np.isfinite(log_sums)]
        if log_sums.size and np.all(np.abs(log_sums) <= max(_ROUNDING, jnp.finfo(z.dtype).eps)):
            raise ValueError(
                f"{EnergyWeighted.kind} needs the logits that classifiers give, but logits"
                f"[{name!r}] are log-probabilities, whose energy is zero"
            )
