"""The Square Attack: a local random search that sees log-probabilities but no gradients."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jacfuse_jax._devices import beside
from jacfuse_jax.attacks._budget import Budget, check_counts, clip, make_budget
from jacfuse_jax.attacks._compiled import run_compiled
from jacfuse_jax.attacks._goal import LogProbFn
from jacfuse_jax.attacks._images import as_images, shaped_like
from jacfuse_jax.attacks._search import keep_larger


def square(
    log_prob_fn: LogProbFn,
    inputs: Mapping[str, Any],
    labels: ArrayLike,
    key: jax.Array,
    *,
    epsilon: Mapping[str, ArrayLike],
    norm: Literal["linf", "l2"] = "linf",
    num_queries: int = 1000,
    initial_share: float = 0.8,
    valid_range: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    targets: ArrayLike | None = None,
) -> dict[str, Any]:
    """Square Attack: keeps changes of one window at a time that raise `losses.margin`.

    linf: from vertical stripes of +-epsilon, a window is set to x + epsilon s, s one random sign a
    channel. l2: from a grid of peaks, the budget of a second window and what clipping has left
    unused move into the first, whose perturbation gains a pair of peaks of opposite sign. Windows
    cover a share p of the positions, halved nine times on the schedule of the paper, scaled from
    its 10000 queries to num_queries. Every sample has its own windows and keeps its own changes; it
    stops at the first misclassification, and a misclassified input is not touched. Named modalities
    take turns, one a query.

    (B, H, W, C) is an image of C channels, with square windows unless p H W exceeds the square of
    the shorter side. A video (B, T, H, W, C) is an image of T C channels: a window has its place in
    all frames. A sequence (B, T, C) is read as an image of height 1, so that windows are intervals
    of time; anything else as B feature vectors of height 1 with a single channel.

    Departs from the paper in this: windows also reach the last row and column; a colour that would
    leave the signs of a window as they are is inverted, not drawn anew; windows of the l2 attack
    are drawn for every sample, not once a batch; a start that is weaker than the input is improved
    upon but returned only once it is stronger.

    Args:
      log_prob_fn: maps inputs to (B, K) log-probabilities; sample b may depend on sample b only.
      inputs: {modality: (B, ...)}; modalities without a budget may be any pytree.
      labels: (B,), integer; true classes, or predicted ones.
      key: PRNG key of the start and of the windows.
      epsilon: {modality: radius} in units of the input, traced or not, each a scalar or (B,), a
        radius a sample; modalities not named are left untouched.
      norm: "linf" or "l2", per modality over all entries of a sample.
      num_queries: evaluations of log_prob_fn besides that of the clean input, at least 1; static.
      initial_share: p of the first window, in (0, 1]; static.
      valid_range: {modality: (low, high)} of valid entries, scalars or arrays; None: unbounded.
      targets: (B,), integer; classes that the samples are driven to, one that is the label
        included: the margin is then log p(target) - max_{k != target} log p_k, and a sample stops
        once it is classified as its target; None: any but the label.

    Returns:
      The inputs with the named modalities perturbed; a sample whose margin never rises, or is NaN,
      is returned as it is.

    Raises:
      TypeError: a perturbed modality is not float32 or float64, or labels or targets are not
        integer.
      ValueError: unknown norm or modality, an epsilon that is not finite and >= 0 or of another
        shape, a label or target that is no class, num_queries < 1, fewer than 2 classes, or
        initial_share outside (0, 1].

    References:
      Andriushchenko, Croce, Flammarion, Hein, "Square Attack: a query-efficient black-box
      adversarial attack via random search", 2020.
    """
    check_counts(num_queries=num_queries)
    if not 0 < initial_share <= 1:
        raise ValueError(f"initial_share must lie in (0, 1], got {initial_share}")
    budget = make_budget(log_prob_fn, inputs, labels, epsilon, norm, valid_range, targets)
    perturbed = run_compiled(
        _square,
        log_prob_fn,
        inputs,
        budget,
        key,
        norm=norm,
        num_queries=num_queries,
        initial_share=initial_share,
    )
    return {**inputs, **perturbed}


def _square(
    log_prob_fn: LogProbFn,
    inputs: Mapping[str, Any],
    budget: Budget,
    key: jax.Array,
    *,
    norm: str,
    num_queries: int,
    initial_share: float,
) -> dict[str, jax.Array]:
    """The modalities that `square` perturbs."""
    budget = as_images(budget)
    start_fn, change_fn = (_stripes, _recolour) if norm == "linf" else (_peaks, _move_budget)
    names = sorted(budget.clean)

    def loss_fn(images: dict[str, jax.Array]) -> jax.Array:
        return budget.goal.margin(log_prob_fn({**inputs, **shaped_like(inputs, images)}))

    def query(carry: tuple[Any, jax.Array], step: tuple[jax.Array, jax.Array]) -> Any:
        (x, loss), (index, share) = carry, step
        query_key = jax.random.fold_in(key, index)
        changed = dict(x)
        for turn, name in enumerate(names):
            moved = change_fn(query_key, x[name], budget.clean[name], budget.epsilon[name], share)
            changed[name] = jnp.where(index % len(names) == turn, moved, x[name])
        changed = clip(changed, budget)
        changed_loss = jnp.where(loss > 0, -jnp.inf, loss_fn(changed))
        return keep_larger(x, loss, changed, changed_loss), None

    keys = jax.random.split(jax.random.fold_in(key, 0), len(names))
    start = {
        name: start_fn(start_key, budget.clean[name], budget.epsilon[name])
        for name, start_key in zip(names, keys, strict=True)
    }
    start = clip(start, budget)
    carry = (start, jnp.nan_to_num(loss_fn(start), nan=-jnp.inf, posinf=jnp.inf, neginf=-jnp.inf))
    steps = (jnp.arange(1, num_queries), jnp.asarray(_shares(initial_share, num_queries)))
    (x, loss), _ = jax.lax.scan(query, carry, steps)
    clean_loss = loss_fn(budget.clean)
    clean_loss = jnp.where(clean_loss > 0, jnp.inf, clean_loss)
    best, _ = keep_larger(budget.clean, clean_loss, x, loss)
    return shaped_like(inputs, best)


class _Window(NamedTuple):
    """A window a sample, as a mask, not a slice: its size changes under one compilation."""

    rows: jax.Array  # (B, H, 1, 1), relative to the first row of the window
    cols: jax.Array  # (B, 1, W, 1), relative to the first column
    height: jax.Array
    width: jax.Array
    inside: jax.Array  # (B, H, W, 1), boolean


def _shares(initial_share: float, num_queries: int) -> np.ndarray:
    """The share p of every query after the start, (num_queries - 1,)."""
    iterations = np.arange(num_queries - 1) * 10000 // num_queries
    halvings = np.searchsorted([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000], iterations)
    return initial_share / 2.0**halvings


def _draw_windows(key: jax.Array, like: jax.Array, share: jax.Array, smallest: int) -> _Window:
    """Windows of a share of the positions, with sides >= smallest, odd unless that is 1."""
    batch, height, width, _ = like.shape
    area = share * height * width

    def fit(length: jax.Array, limit: int) -> jax.Array:
        whole = jnp.maximum(jnp.round(length).astype(int), smallest)
        return jnp.minimum(whole + (1 - whole % 2 if smallest > 1 else 0), limit)

    # The longer side makes up for what does not fit into the shorter.
    window_height = fit(jnp.maximum(jnp.sqrt(area), area / width), height)
    window_width = fit(jnp.maximum(jnp.sqrt(area), area / height), width)
    key_top, key_left = jax.random.split(key)
    top = jax.random.randint(key_top, (batch, 1, 1, 1), 0, height - window_height + 1)
    left = jax.random.randint(key_left, (batch, 1, 1, 1), 0, width - window_width + 1)
    top, left = beside(top, like), beside(left, like)
    rows = jnp.arange(height)[None, :, None, None] - top
    cols = jnp.arange(width)[None, None, :, None] - left
    inside = (rows >= 0) & (rows < window_height) & (cols >= 0) & (cols < window_width)
    return _Window(rows, cols, window_height, window_width, inside)


def _stripes(key: jax.Array, clean: jax.Array, radius: jax.Array) -> jax.Array:
    """Vertical stripes one entry wide, a random sign for every column and channel."""
    batch, _, width, channels = clean.shape
    return clean + radius * jax.random.rademacher(key, (batch, 1, width, channels), clean.dtype)


def _recolour(
    key: jax.Array, x: jax.Array, clean: jax.Array, radius: jax.Array, share: jax.Array
) -> jax.Array:
    """Sets a window to the clean input + radius times a random sign for every channel."""
    key_window, key_signs = jax.random.split(key)
    inside = _draw_windows(key_window, x, share, 1).inside
    signs = beside(jax.random.rademacher(key_signs, (len(x), 1, 1, x.shape[-1]), x.dtype), x)
    same = (~inside | (jnp.sign(x - clean) == signs)).all((1, 2, 3), keepdims=True)
    return jnp.where(inside, clean + radius * jnp.where(same, -signs, signs), x)


def _peaks(key: jax.Array, clean: jax.Array, radius: jax.Array) -> jax.Array:
    """About 5 x 5 tiles, a pair of peaks each, a random sign for every tile and channel."""
    batch, height, width, channels = clean.shape
    tile = (max(height // 5, 1), max(width // 5, 1))
    grid = (height // tile[0], width // tile[1])
    rows, cols = jnp.arange(tile[0])[:, None, None], jnp.arange(tile[1])[None, :, None]
    pair = _pair_of_peaks(rows, cols, *tile, jnp.ones((*tile, 1), bool))[..., 0]
    signs = jax.random.rademacher(key, (batch, *grid, channels), clean.dtype)
    tiles = jnp.einsum("bhwc,ij->bhiwjc", signs, pair.astype(clean.dtype))
    delta = tiles.reshape(batch, grid[0] * tile[0], grid[1] * tile[1], channels)
    borders = [(n // 2, n - n // 2) for n in (height - delta.shape[1], width - delta.shape[2])]
    return clean + radius * _unit(jnp.pad(delta, [(0, 0), *borders, (0, 0)]), (1, 2, 3))


def _move_budget(
    key: jax.Array, x: jax.Array, clean: jax.Array, radius: jax.Array, share: jax.Array
) -> jax.Array:
    """Adds a pair of peaks to a first window, at the expense of a second."""
    _, height, width, channels = x.shape
    key_first, key_second, key_signs, key_turn = jax.random.split(key, 4)
    first = _draw_windows(key_first, x, share, 3)
    second = _draw_windows(key_second, x, share, 3)
    turned = beside(jax.random.bernoulli(key_turn, shape=(len(x), 1, 1, 1)), x)
    pair = jnp.where(
        (turned | (height == 1)) & (width > 1),
        _pair_of_peaks(first.cols, first.rows, first.width, first.height, first.inside),
        _pair_of_peaks(first.rows, first.cols, first.height, first.width, first.inside),
    )
    delta = x - clean
    unused = jnp.maximum(radius**2 - (delta**2).sum((1, 2, 3), keepdims=True), 0)
    taken = jnp.where(first.inside | second.inside, delta**2, 0).sum((1, 2), keepdims=True)
    signs = beside(jax.random.rademacher(key_signs, (len(x), 1, 1, channels), x.dtype), x)
    moved = signs * pair.astype(x.dtype) + _unit(jnp.where(first.inside, delta, 0), (1, 2))
    moved = _unit(moved, (1, 2)) * jnp.sqrt(unused / channels + taken)
    delta = jnp.where(first.inside, moved, jnp.where(second.inside, 0, delta))
    return clean + radius * _unit(delta, (1, 2, 3))


def _pair_of_peaks(
    rows: jax.Array, cols: jax.Array, height: ArrayLike, width: ArrayLike, inside: jax.Array
) -> jax.Array:
    """Peaks of opposite sign in the upper and the lower half of the window.

    The sum over k from d + 1 to M of k^-2, d the Chebyshev distance from the centre of the half, M
    the largest d + 1: the nested rectangles of the paper, without a loop over them.
    """
    upper, centre_cols = jnp.asarray(height) // 2, jnp.asarray(width) // 2
    positions = jnp.arange(inside.shape[-3] + inside.shape[-2] + 2)
    sums = jnp.cumsum(1 / jnp.maximum(positions, 1).astype(float) ** 2)

    def half(first_row: ArrayLike, num_rows: jax.Array) -> jax.Array:
        centre = first_row + num_rows // 2
        distance = jnp.maximum(jnp.abs(rows - centre), jnp.abs(cols - centre_cols))
        beyond = jnp.maximum(num_rows // 2, centre_cols) + 1
        within = inside & (rows >= first_row) & (rows < first_row + num_rows)
        return _unit(jnp.where(within, sums[beyond] - sums[distance], 0), (-3, -2))

    return _unit(half(0, upper) - half(upper, jnp.asarray(height) - upper), (-3, -2))


def _unit(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Scales to a Euclidean norm of one over the axes; zeros stay."""
    norms = jnp.sqrt((x**2).sum(axes, keepdims=True))
    return x / jnp.where(norms > 0, norms, 1)
