"""Training of one classifier, resumable after every epoch."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from flax import nnx

Batch: TypeAlias = Mapping[str, Any]
LossFn: TypeAlias = Callable[[Any, Batch], jax.Array]


class CheckpointError(ValueError):
    """A checkpoint is there but cannot be restored."""


def fit(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    make_batches: Callable[[int], Iterable[Batch]],
    *,
    num_epochs: int,
    checkpoint_dir: str | Path,
    loss_fn: LossFn | None = None,
) -> None:
    """Trains a classifier in place, or restores what is already trained of it.

    Minimises sum_b mask_b loss_b / sum_b mask_b, by default of the cross-entropy. After every epoch
    parameters, running statistics and optimizer state are written, atomically; a run that was
    killed carries on from the last finished epoch and ends where an uninterrupted one does,
    provided `make_batches` depends on nothing but the epoch.

    The model trains in training mode and is left in evaluation mode. Batch normalisation takes its
    statistics from all rows of a batch, masked ones too: let those be other rows of the data, as
    copies of a single one would draw the statistics towards it.

    Args:
      model: maps inputs to a `UnimodalOutput`.
      optimizer: optax gradient transformation.
      make_batches: maps the epoch, from 0, to batches {"inputs": (B, ...), or a pytree of such
        arrays, "label": (B,) integer, "mask": (B,), 1 for samples that count}, all of one shape.
        Whatever else a batch holds is for `loss_fn`, a PRNG key for example.
      num_epochs: epochs in all, those of earlier runs included; 0 trains and writes nothing.
      checkpoint_dir: folder of this classifier's checkpoints; only the latest is kept.
      loss_fn: maps (model, batch) to (B,) losses, traced; None is `cross_entropy`. One compiled
        step serves all calls with the same architecture, optimizer object and function object, so
        those made once are cheaper than those made for every call.

    Raises:
      CheckpointError: a checkpoint there is damaged, belongs to another architecture, or is of
        more epochs than asked for; the folder is a file.
    """
    state = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=1, enable_async_checkpointing=False, cleanup_tmp_directories=True
    )
    directory = Path(checkpoint_dir).absolute()
    if directory.is_file():
        raise CheckpointError(f"{directory} is a file; use a folder")
    handler = ocp.StandardCheckpointHandler()
    with ocp.CheckpointManager(directory, options=options, item_handlers=handler) as manager:
        first_epoch = manager.latest_step() or 0
        if first_epoch > num_epochs:
            raise CheckpointError(
                f"checkpoint {directory / str(first_epoch)} is of {first_epoch} epochs, more than "
                f"the {num_epochs} asked for; use another folder"
            )
        if first_epoch:
            _restore(manager, first_epoch, model, state)
        model.train()
        for epoch in range(first_epoch, num_epochs):
            for batch in make_batches(epoch):
                _train_step(model, state, batch, loss_fn=loss_fn or cross_entropy)
            manager.save(epoch + 1, args=ocp.args.StandardSave(nnx.state((model, state))))
    model.eval()


def cross_entropy(model: Any, batch: Batch) -> jax.Array:
    """Cross-entropy -log softmax(z)[label] of every sample, z = model(inputs).logits.

    Args:
      model: maps inputs to a `UnimodalOutput`.
      batch: {"inputs": as the model takes them, "label": (B,) integer}; the rest is not read.

    Returns:
      (B,) losses, in the dtype of the logits.
    """
    logits = model(batch["inputs"]).logits
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


@partial(nnx.jit, static_argnames="loss_fn")
def _train_step(
    model: nnx.Module, optimizer: nnx.Optimizer[Any], batch: Batch, *, loss_fn: LossFn
) -> None:
    """One step of gradient descent on the mean loss of the samples that count."""

    def mean_loss(model: Any) -> jax.Array:
        losses = loss_fn(model, batch)
        mask = jnp.asarray(batch["mask"], losses.dtype)
        return (mask * losses).sum() / mask.sum()

    gradient = nnx.grad(mean_loss)(model)
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies step counts and floats
        optimizer.update(model, gradient)


def _restore(
    manager: ocp.CheckpointManager, step: int, model: nnx.Module, optimizer: nnx.Optimizer[Any]
) -> None:
    """Updates model and optimizer in place from the checkpoint of a step."""
    path = Path(manager.directory) / str(step)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, nnx.state((model, optimizer)))
    try:
        if _shapes(manager.item_metadata(step)) != _shapes(abstract):
            raise CheckpointError(
                f"checkpoint {path} is of another architecture; delete the folder to train again"
            )
        restored = manager.restore(step, args=ocp.args.StandardRestore(abstract))
    except CheckpointError:
        raise
    except Exception as error:  # orbax raises many types for damaged files
        raise CheckpointError(
            f"checkpoint {path} is damaged ({type(error).__name__}); delete the folder to train "
            "again"
        ) from error
    nnx.update((model, optimizer), restored)


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    """Shapes of all leaves; their order depends on how keys are spelt, so they are sorted."""
    return sorted(tuple(leaf.shape) for leaf in jax.tree.leaves(tree))
