"""How far a modality must be moved, at least, before the fused class can change.

Let the logits z of one modality move by at most rho in the 2-norm; an L-Lipschitz classifier moves
them by rho = L r where its input moves by r. All other modalities stay as they are.

**Contaminated likelihoods.** The log-odds that the modality contributes to class k over y,

    t F(z),   F = log((1 - e) q_k / prior_k + e) - log((1 - e) q_y / prior_y + e),   q = softmax(z),

have the gradient a_k (e_k - q) - a_y (e_y - q) with a_i = (1 - e) q_i / p~_i in [0, 1]. For
a_k >= a_y that is a_y (e_k - e_y) + (a_k - a_y) (e_k - q), of norm at most sqrt(2) a_k: F is
sqrt(2)-Lipschitz. Besides, no difference of logits moves by more than sqrt(2) rho, so that log-odds
of q_k against all other classes do not either; with the largest q_k and the smallest q_y that this
allows, F is bounded once more, for large rho by its supremum. The smaller bound counts.

**Robust fusion**, F(z) = R(p(z)) z with c J^2 R G + R = I and p the statistical fusion. A move dz
changes J by dJ with v^T dJ v = E_p[(v - E v)^2 (dz - E dz)], hence

    |v^T dJ v| <= max |dz - E dz| v^T J v <= sqrt(2) ||dz|| v^T J v:

||dJ|| <= sqrt(2) ||dz|| ||J||, and within a radius rho, ||J|| <= exp(sqrt(2) rho) ||J(p)||, where
||J(p)|| <= max_i 2 p_i (1 - p_i) <= 1/2 by Gershgorin. With the operator L(X) = X + c J^2 X G,
whose inverse is a contraction in the Frobenius norm,

    dR = -L^-1[c J dJ R G] - L^-1[c dJ J R G].

In the eigenbases of J and G, c j_i sqrt(g_j) / (1 + c j_i^2 g_j) <= sqrt(c) / 2: with
||R G^1/2||_F <= ||G^1/2||_F, either term is at most sqrt(c) / 2 ||dJ|| ||G^1/2||_F. Nor does a
large c matter: dJ = J^1/2 E J^1/2 with ||E|| <= sqrt(2) ||dz||, so that with x = j sqrt(c g) the
terms are, column by column of R V, E with its rows times x^(3/2) / (1 + x^2) and its columns times
x^(1/2) / (1 + x^2), or the other way round. Either factor is at most 0.57, and columns with g = 0
do not move. Therefore, within the radius,

    ||R' - R||_F <= Lambda rho,
    Lambda = min(sqrt(2 c tr G) min(1/2, exp(sqrt(2) rho) ||J(p)||), 0.92 sqrt(rank G)),
    ||R' z' - R z|| <= ||R' (z' - z)|| + ||(R' - R) z||
                    <= (||R|| + Lambda rho) rho + Lambda rho ||z||.

No log-odds of two classes move by more than sqrt(2) times that. The bound is worth most where the
fused prediction is confident, since J and Lambda vanish there.

**Rounding.** Radii hold in the dtype that they are computed in: all terms are rounded to the safe
side. What rounding does to p are relative errors, |d log p| <= d, which R magnifies by no more than
above, ||dR||_F <= 1.3 sqrt(K) d. Derived here.
"""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacfuse_jax._checks import (
    check_mapping,
    check_modalities,
    check_scalar,
    check_with_prior,
)
from jacfuse_jax._likelihoods import rounding_of_probs
from jacfuse_jax._presence import Present, any_of, check_present, silence
from jacfuse_jax._simplex import (
    log_complement,
    log_jacobian_norm,
    mark_class,
    mark_likeliest,
    rounding_of_sum,
)
from jacfuse_jax.certificates._arbitrary import certify_modality
from jacfuse_jax.certificates._bounded import Bounded, check_numbers_of, check_perturbed
from jacfuse_jax.fusion import Contaminated, Robust, Scaled, Statistical, fuse, statistical_fusion
from jacfuse_jax.fusion._supported import check_supported
from jacfuse_jax.linalg import GramSpectrum, recalibration_matrix
from jacfuse_jax.linalg._arguments import check_spectrum

_SQRT2 = 2**0.5
_LOG_RADII = (-60.0, 14.0)  # of logits; softmax is one-hot in either dtype beyond the larger one
_NUM_HALVINGS = 48
_WITH_RADIUS = (Statistical, Scaled, Contaminated, Robust)


def certified_radius(
    rule: Statistical | Scaled | Contaminated | Robust,
    logits: Mapping[str, ArrayLike],
    class_prior: ArrayLike,
    *,
    corrupted: str,
    grams: Mapping[str, GramSpectrum] | None = None,
    lipschitz: ArrayLike = 1.0,
    perturbed: str | tuple[str, ...] | None = None,
    present: Present | None = None,
) -> jax.Array:
    """Radius within which the class that a rule fuses provably does not change.

    Infinite where `certify_modality` certifies the sample. Sound, not tight: see the module's text.
    That of robust fusion is for one perturbed modality, which is the one that moves, for one
    iteration, and for the closed form, whose rounding errors are known; it costs O(K^3) a sample.

    Args:
      rule: `fusion.Statistical`, `Scaled`, `Contaminated` or `Robust`; its numbers are scalars,
        traced or not.
      logits: z, {modality: (B, K)}, floating, at least one modality.
      class_prior: (K,), positive, sums to one; class frequencies of the training labels.
      corrupted: name of the modality that moves; static.
      grams: {modality: spectrum of G, shared by all samples} for robust fusion, see
        `linalg.spectrum_from_kernel`.
      lipschitz: L > 0, in the 2-norm, of its logits in its input; 1 gives radii of the logits. See
        `bounds.spectral_norm`.
      perturbed: name or names of the modalities that the rule believes perturbed; static. None: all
        of them.
      present: see `fusion.statistical_fusion`; the radius of what a row lacks is infinite.

    Returns:
      (B,), radii in the 2-norm of the input; zero where nothing can be said, as for NaN or, in
      robust fusion, a class that the modality excludes.

    Raises:
      TypeError: logits are not floating.
      ValueError: the rule is another one, shapes disagree, a modality is unknown, a prior is not
        positive or does not sum to one, or a parameter lies outside its interval; of robust fusion,
        other modalities are perturbed, or a Gram spectrum is missing or per sample.

    References:
      Derived here; of the log-odds' Lipschitz constant cf. Tsuzuku, Sato, Sugiyama,
      "Lipschitz-Margin Training", 2018.
    """
    rule = check_supported(rule, _WITH_RADIUS, "that have a radius")
    arrays, prior = check_with_prior(logits, class_prior)
    checked = check_present(present, arrays)
    arrays = silence(arrays, jnp.log(prior), checked)
    dtype = prior.dtype
    check_modalities("corrupted", (corrupted,), arrays)
    names = check_perturbed(perturbed, arrays)
    lipschitz = check_scalar("lipschitz", lipschitz, dtype, positive=True)
    if not isinstance(rule, Robust):
        rule = check_numbers_of(rule, dtype)
        return _bounded_radius(rule, arrays, prior, lipschitz, checked, corrupted, names)
    if names != (corrupted,):
        raise ValueError(
            f"robust fusion has radii where perturbed is the modality that moves, {corrupted!r}, "
            f"got {names}"
        )
    if rule.num_iterations != 1 or rule.solver != "closed_form":
        raise ValueError(f"robust fusion has radii for one iteration, in closed form, got {rule}")
    if grams is None:
        raise ValueError("the rule robust needs grams; see linalg.spectrum_from_kernel")
    check_mapping("grams", grams, "spectrum")
    check_modalities("corrupted", (corrupted,), grams)
    if jnp.ndim(grams[corrupted].eigenvalues) != 1:
        raise ValueError(f"grams[{corrupted!r}] must be shared by all samples")
    rule = Robust(check_scalar("gamma", rule.gamma, dtype, high=1, positive=True))
    spectrum = check_spectrum(
        f"grams[{corrupted!r}]", grams[corrupted], arrays[corrupted].shape, dtype
    )
    return _robust_radius(rule, arrays, prior, spectrum, lipschitz, checked, corrupted)


# Compiled once for all calls outside of `jax.jit`, too, which would compile the loop every time.
@functools.partial(jax.jit, static_argnums=(5, 6))
def _bounded_radius(
    rule: Statistical | Scaled | Contaminated,
    arrays: dict[str, jax.Array],
    class_prior: jax.Array,
    lipschitz: jax.Array,
    present: dict[str, jax.Array],
    corrupted: str,
    names: tuple[str, ...],
) -> jax.Array:
    """`certified_radius` of a rule that bounds what modalities say, of arguments checked."""
    certificate = certify_modality(
        rule,
        arrays,
        class_prior,
        corrupted=corrupted,
        perturbed=names,
        present={name: mask[:, 0] for name, mask in present.items()},
    )
    log_prior = jnp.log(class_prior)
    bounded = Bounded.of(rule, names, log_prior.dtype)
    ratios = bounded.log_ratios(arrays, log_prior)
    e, t = bounded.e, bounded.t
    if corrupted not in bounded.perturbed:
        e, t = jnp.zeros_like(e), jnp.ones_like(t)
    log_prior = log_prior[None]
    scores = sum(ratios.values(), start=log_prior)
    log_odds = _against_label(scores, rounding_of_sum(log_prior, *ratios.values()))
    log_probs = jax.nn.log_softmax(arrays[corrupted])
    logit = log_probs - log_complement(log_probs)
    is_label = mark_class(certificate.label, logit)
    eps = 8 * jnp.finfo(logit.dtype).eps

    def ratio(log_q: jax.Array) -> jax.Array:
        """F's terms, log((1 - e) q / prior + e)."""
        return jnp.logaddexp(jnp.log1p(-e) + log_q - log_prior, jnp.log(e))

    now = ratio(log_probs)

    def change(logit: jax.Array, sign: int) -> jax.Array:
        """By how much a term rises or falls at most, rounding errors included."""
        changed = sign * (ratio(jax.nn.log_sigmoid(logit)) - now)
        # A class that is excluded stays so.
        return jnp.where(log_probs == -jnp.inf, 0, changed + eps * (1 + jnp.abs(now) + changed))

    def gain(rho: jax.Array) -> jax.Array:
        shift = _SQRT2 * rho[:, None]
        wide = shift + eps * (1 + jnp.abs(logit) + shift)
        lowered = jnp.where(is_label, change(logit - wide, -1), 0).sum(axis=-1, keepdims=True)
        return t * jnp.minimum(shift, change(logit + wide, 1) + lowered)

    radius = _largest_radius(lambda rho: (log_odds + gain(rho)).max(axis=-1) < 0, log_odds)
    # What the rule leaves NaN has no margin.
    radius = jnp.where(jnp.isnan(certificate.margin), 0, radius / lipschitz)
    return jnp.where(certificate.certified, jnp.inf, radius)


@functools.partial(jax.jit, static_argnums=6)
def _robust_radius(
    rule: Robust,
    arrays: dict[str, jax.Array],
    class_prior: jax.Array,
    spectrum: GramSpectrum,
    lipschitz: jax.Array,
    present: dict[str, jax.Array],
    perturbed: str,
) -> jax.Array:
    """`certified_radius` of robust fusion, of arguments that are checked."""
    gamma = jnp.asarray(rule.gamma)
    strength = (1 - gamma) / gamma
    fused = fuse(rule, arrays, class_prior, perturbed=perturbed, grams={perturbed: spectrum})
    log_probs = statistical_fusion(arrays, class_prior)
    R = recalibration_matrix(jnp.exp(log_probs), spectrum, strength)
    eps = jnp.finfo(fused.dtype).eps
    # The norm of a matrix that is known to rounding only.
    norm_R = jnp.linalg.norm(R, ord=2, axis=(-2, -1)) * (1 + 4 * R.shape[-1] * eps)
    norm_z = jnp.linalg.norm(arrays[perturbed], axis=-1)
    log_norm_J = log_jacobian_norm(log_probs)
    factor = jnp.sqrt(2 * strength * spectrum.eigenvalues.sum())
    largest = 0.92 * jnp.sqrt((spectrum.eigenvalues > 0).sum().astype(factor.dtype))
    # Rounding errors: of p, relative ones that R turns into as large ones, and of R z.
    of_probs = rounding_of_probs(arrays, jnp.log(class_prior))
    log_norm_J += of_probs
    # Either class of a pair takes half of sqrt(2) ||dR||; d is two eps a term, as measured.
    of_R = 0.92 * R.shape[-1] ** 0.5 * of_probs / 4
    rounding = 2 * of_probs + (32 * eps * (1 + norm_R) + of_R) * norm_z
    log_odds = _against_label(fused, rounding[:, None])

    def is_safe(rho: jax.Array) -> jax.Array:
        slope = factor * jnp.exp(jnp.minimum(-math.log(2), _SQRT2 * rho + log_norm_J))
        slope = jnp.minimum(slope, largest)
        moved = (norm_R + slope * rho) * rho + slope * rho * norm_z
        return log_odds.max(axis=-1) + _SQRT2 * (1 + 8 * eps) * moved < 0

    radius = _largest_radius(is_safe, log_odds) / lipschitz
    is_fixed = ~any_of([perturbed], present).reshape(-1) & ~jnp.isnan(fused).any(axis=-1)
    return jnp.where(is_fixed, jnp.inf, radius)


def _against_label(scores: jax.Array, rounding: jax.Array) -> jax.Array:
    """Log-odds of every class against the largest, -inf for that class itself; (B, K).

    Rounded up by what either score may be wrong.
    """
    is_label = mark_likeliest(scores)
    raised = scores + rounding
    of_label = jnp.where(is_label, scores - rounding, -jnp.inf).max(axis=-1, keepdims=True)
    return jnp.where(is_label, -jnp.inf, raised - of_label)


def _largest_radius(is_safe: Callable[[jax.Array], jax.Array], log_odds: jax.Array) -> jax.Array:
    """Bisects log rho for the largest safe radius, below which all are; zero where none is."""
    low, high = (jnp.full_like(log_odds[:, 0], end) for end in _LOG_RADII)

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        safe = is_safe(jnp.exp(middle))
        return jnp.where(safe, middle, low), jnp.where(safe, high, middle)

    found, _ = jax.lax.fori_loop(0, _NUM_HALVINGS, halve, (low, high))
    return jnp.where(found > low, 0.999 * jnp.exp(found), 0)  # less than what rounding may add
