"""AutoAttack as torchattacks has it, on a prediction in JAX.

Needs PyTorch and torchattacks, in an environment of their own: see CONTRIBUTING.md. Arrays go to
and fro as NumPy's, derivatives by `jax.vjp`.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from tests.independent_attack import LogProbFn


def withstands(
    log_prob_fn: LogProbFn,
    x: NDArray[Any],
    given: Any,
    labels: NDArray[Any],
    *,
    epsilons: Sequence[float],
    valid_range: tuple[float, float],
    seed: int = 0,
    batch_size: int = 256,
) -> NDArray[np.bool_]:
    """Which rows stay right within each linf budget, (len(epsilons), N).

    Args:
      log_prob_fn: maps (x (B, ...), given) to log-probabilities (B, K).
      x: (N, ...), clean.
      given: whatever else it takes, a tree of (N, ...).
      labels: (N,).
      epsilons: increasing; what is lost within one counts for the next.
      valid_range: of the entries of x; what lies outside may stay where it is.
      seed: of the attack.
      batch_size: rows at a time.
    """
    torchattacks = importlib.import_module("torchattacks")
    torch = importlib.import_module("torch")
    low, high = min(valid_range[0], float(x.min())), max(valid_range[1], float(x.max()))
    codec = Codec(x.shape[1:], batch_size)
    predict = jax.jit(log_prob_fn)
    everything = np.arange(len(labels))
    log_probs = _padded(predict, x, everything, given)
    right = log_probs.argmax(axis=1) == labels
    results: list[NDArray[np.bool_]] = []
    for epsilon in epsilons:
        radius = epsilon / (high - low)
        if radius >= 0.5:
            raise ValueError(
                f"epsilon {epsilon} is half of the range [{low}, {high}] or more: row numbers, "
                "which are among the inputs, would not be safe"
            )
        left = np.flatnonzero(right)
        for rows in (left[i : i + batch_size] for i in range(0, len(left), batch_size)):
            model = make_module(log_prob_fn, codec, low, high, rows, given)
            attack = torchattacks.AutoAttack(
                model, norm="Linf", eps=radius, n_classes=log_probs.shape[1], seed=seed
            )
            images = codec.encode((x[rows] - low) / (high - low))
            found = attack(
                torch.from_numpy(images), torch.from_numpy(labels[rows].astype(np.int64))
            )
            moved = codec.decode(found.detach().numpy())[0] * (high - low) + low
            # Whatever came back is within the budget and the range, and judged with its own row.
            least = np.maximum(x[rows] - epsilon, np.minimum(x[rows], valid_range[0]))
            most = np.minimum(x[rows] + epsilon, np.maximum(x[rows], valid_range[1]))
            judged = _padded(predict, np.clip(moved, least, most).astype(x.dtype), rows, given)
            right[rows] &= judged.argmax(axis=1) == labels[rows]
        results.append(right.copy())
    return np.stack(results)


class Codec:
    """Arrays in [0, 1] as images (N, C, H, W) whose last channels say which row of a batch it is.

    AutoAttack hands subsets of a batch to the classifier, whose other modalities differ from row to
    row. The number of the row is written in binary, 0 and 1, into pixels that the prediction does
    not depend on: budgets below one half cannot turn 0 into 1.
    """

    def __init__(self, shape: tuple[int, ...], num_rows: int) -> None:
        """Of arrays (N, *shape); images keep their height and width, all else becomes square."""
        self._shape = shape
        self._num_entries = int(np.prod(shape))
        side = int(np.ceil(np.sqrt(self._num_entries)))
        is_image = len(shape) == 3
        self._size = shape[:2] if is_image else (side, side)
        self._num_channels = shape[2] if is_image else 1
        self._num_bits = max(1, int(num_rows - 1).bit_length())

    def encode(self, arrays: NDArray[Any]) -> NDArray[np.float32]:
        """(N, *shape) to (N, C, H, W), the rows in their order."""
        num_pixels = self._size[0] * self._size[1]
        flat = np.moveaxis(arrays, -1, 1) if len(self._shape) == 3 else arrays
        flat = flat.reshape(len(arrays), -1)
        room = self._num_channels * num_pixels - flat.shape[1]
        bits = np.arange(len(arrays))[:, None] >> np.arange(self._num_bits) & 1
        num_more = -(-self._num_bits // num_pixels)
        bits = np.pad(bits, [(0, 0), (room, num_more * num_pixels - self._num_bits)])
        images = np.concatenate([flat, bits], axis=1, dtype=np.float32).clip(0, 1)
        return images.reshape(len(arrays), self._num_channels + num_more, *self._size)

    def decode(self, images: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
        """Arrays (N, *shape) and (N,) their rows."""
        flat = images.reshape(len(images), -1)
        start = self._num_channels * self._size[0] * self._size[1]
        bits = flat[:, start : start + self._num_bits] > 0.5
        arrays = flat[:, : self._num_entries].reshape(len(images), *self._order())
        arrays = np.moveaxis(arrays, 1, -1) if len(self._shape) == 3 else arrays
        return arrays, bits @ (1 << np.arange(self._num_bits))

    def encode_gradient(self, gradient: NDArray[Any], like: NDArray[Any]) -> NDArray[np.float32]:
        """Derivatives in the arrays as derivatives in the images; zero in row numbers."""
        flat = np.moveaxis(gradient, -1, 1) if len(self._shape) == 3 else gradient
        flat = flat.reshape(len(gradient), -1)
        images = np.zeros((len(like), int(np.prod(like.shape[1:]))), np.float32)
        images[:, : flat.shape[1]] = flat
        return images.reshape(like.shape)

    def _order(self) -> tuple[int, ...]:
        if len(self._shape) == 3:
            return (self._shape[2], *self._shape[:2])
        return self._shape


def make_module(
    log_prob_fn: LogProbFn, codec: Codec, low: float, high: float, rows: NDArray[Any], given: Any
) -> Any:
    """A torch module that maps images of `codec`, of these rows, to log-probabilities."""
    torch: Any = importlib.import_module("torch")

    @jax.jit
    def predict(x: jax.Array, given: Any) -> jax.Array:
        return log_prob_fn(x * (high - low) + low, given)

    @jax.jit
    def pull_back(x: jax.Array, given: Any, cotangent: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: log_prob_fn(x * (high - low) + low, given), x)[1](cotangent)[0]

    class Predict(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, images: Any) -> Any:
            ctx.images = images.detach().numpy()
            ctx.x, numbers = codec.decode(ctx.images)
            ctx.rows = rows[np.minimum(numbers, len(rows) - 1)]
            return torch.from_numpy(_padded(predict, ctx.x, ctx.rows, given).astype(np.float32))

        @staticmethod
        def backward(ctx: Any, *cotangents: Any) -> Any:
            cotangent = cotangents[0].numpy()
            gradient = _padded(pull_back, ctx.x, ctx.rows, given, cotangent)
            return torch.from_numpy(codec.encode_gradient(gradient, ctx.images))

    class Fused(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))  # says on which device it is

        def forward(self, images: Any) -> Any:
            return Predict.apply(images)

    return Fused().eval()


def _padded(
    fn: Callable[..., Any], x: NDArray[Any], rows: NDArray[Any], given: Any, *others: Any
) -> NDArray[Any]:
    """fn(x, given of the rows, *others), (B, ...) each, in batches of few sizes."""
    padded = np.resize(np.arange(len(x)), 1 << (len(x) - 1).bit_length())
    of_rows = jax.tree.map(lambda array: np.asarray(array)[rows[padded]], given)
    arrays = (jnp.asarray(array[padded]) for array in (x, *others))
    first, *rest = arrays
    return np.asarray(fn(first, of_rows, *rest))[: len(x)]
