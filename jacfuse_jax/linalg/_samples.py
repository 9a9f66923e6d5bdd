"""A function of one sample and its Gram matrices, mapped over a batch in chunks."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jacfuse_jax._devices import on_each_device
from jacfuse_jax.linalg._batching import Chunks, with_chunks
from jacfuse_jax.linalg._spectrum import GramSpectrum


def map_samples(
    sample_fn: Callable[..., Any],
    samples: Any,
    grams: Sequence[GramSpectrum | jax.Array],
    *shared: Any,
    batch_size: int | Chunks | None = None,
) -> Any:
    """Applies `sample_fn(sample, grams, *shared)` to every sample, on the device that has it.

    Leaves of `samples` are (K,) for one sample or (B, K); Gram matrices, or their spectra, are
    shared (K, K) or per sample (B, K, K). Devices solve a chunk at a time. Differentiable as
    `sample_fn` is, in its floating-point results.
    """
    if jax.tree.leaves(samples)[0].ndim == 1:
        return sample_fn(samples, grams, *shared)
    solve = functools.partial(map_local_samples, sample_fn, batch_size)
    # Which Gram matrices samples have of their own: the others are None there, and conversely.
    is_own = [jax.tree.leaves(gram)[-1].ndim == 3 for gram in grams]
    own = [gram if own else None for gram, own in zip(grams, is_own, strict=True)]
    common = [None if own else gram for gram, own in zip(grams, is_own, strict=True)]
    return on_each_device(solve, (samples, own), common, *shared)


def map_local_samples(
    sample_fn: Callable[..., Any],
    batch_size: int | Chunks | None,
    batched: tuple[Any, list[Any]],
    common_grams: list[Any],
    *shared: Any,
) -> Any:
    """The same of one device's samples and their own Gram matrices.

    The body is rematerialised, so reverse mode keeps no K x K array.
    """

    @jax.checkpoint
    def body(args: tuple[Any, list[Any]]) -> Any:
        sample, own_grams = args
        grams = [
            common if own is None else own
            for own, common in zip(own_grams, common_grams, strict=True)
        ]
        return sample_fn(sample, grams, *shared)

    def solve(batch_size: int | Chunks, batched: tuple[Any, list[Any]]) -> Any:
        if isinstance(batch_size, Chunks):
            first = jax.tree.leaves(batched)[0]
            batch_size = _chunk_size(batch_size.matrix_entries, *first.shape)
        return jax.lax.map(body, batched, batch_size=batch_size)

    return with_chunks(solve, batch_size, batched)


def _chunk_size(matrix_entries: int, batch: int, num_classes: int) -> int:
    """Samples that fill about as many matrix entries; a divisor of the batch where one is near.

    A last, smaller chunk would make `jax.lax.map` copy inputs and outputs.
    """
    largest = max(1, matrix_entries // num_classes**2)
    sizes = range(min(largest, max(batch, 1)), largest // 2, -1)
    return next((size for size in sizes if batch % size == 0), largest)
