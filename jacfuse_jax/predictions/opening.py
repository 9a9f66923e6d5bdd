"""What programs take from files of predictions: rows, a class prior, last layers."""

import contextlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from jacfuse_jax.linalg import GramSpectrum
from jacfuse_jax.predictions.arrays import open_arrays
from jacfuse_jax.predictions.class_names import align_files, read_classes
from jacfuse_jax.predictions.classes import Alignment, align_prior
from jacfuse_jax.predictions.flags import InputConfig
from jacfuse_jax.predictions.inputs import Names, open_predictions
from jacfuse_jax.predictions.join import Joined, join
from jacfuse_jax.predictions.kinds import check_probs, look_like_probs
from jacfuse_jax.predictions.layers import HEADS, head_spectrum
from jacfuse_jax.predictions.npy import ArrayOnDisk, ScratchFn
from jacfuse_jax.programs import InputError


class Opened(NamedTuple):
    """What the inputs hold.

    Attributes:
      joined: their rows.
      reference: those that the prior, rules and parameters are chosen on.
      source: "validation" or "input", which flag gave these.
      classes: of the output; None where they have no names.
      class_prior: (K,), sums to one.
      grams: {modality: spectrum of the Gram matrix of its last layer}, of those asked for.
      identity_gram: modalities of which no last layer is used.
      dtype: that is computed in.
    """

    joined: Joined
    reference: Joined
    source: str
    classes: Alignment | None
    class_prior: NDArray[np.float64]
    grams: dict[str, GramSpectrum]
    identity_gram: list[str]
    dtype: np.dtype[Any]

    @property
    def class_remarks(self) -> list[str]:
        """What was done to classes and labels, each once."""
        of_labels = (
            line
            for joined in (self.joined, self.reference)
            for p in joined.inputs.values()
            for line in p.remarks
        )
        return list(dict.fromkeys([*(self.classes.remarks if self.classes else []), *of_labels]))


def names_of(config: InputConfig) -> Names:
    """What flags say that arrays and columns are called.

    Args:
      config: the flags.
    """
    return Names(
        logits=config.logits_column,
        ids=config.ids_column,
        labels=config.labels_column,
        groups=config.groups_column,
        by_position=config.join == "position",
    )


def find_classes(config: InputConfig, paths: Sequence[Path]) -> Alignment | None:
    """The classes that files name, aligned; None where they name none, or that is not to count.

    Args:
      config: the flags.
      paths: of predictions.

    Raises:
      InputError: they do not fit together.
    """
    if config.classes == "position":
        return None
    return align_files(paths, names_of(config), config.classes)


def open_inputs(
    config: InputConfig,
    validation: Mapping[str, Path],
    classes: Alignment | None,
    *,
    recalibrated: Sequence[str],
    is_recalibrated: bool,
    folder: Path,
    stack: contextlib.ExitStack,
) -> Opened:
    """Opens predictions, and says what is not used of them.

    Args:
      config: the flags.
      validation: {modality: file or folder}; empty: the inputs themselves.
      classes: as `find_classes` has them.
      recalibrated: modalities whose last layers are asked for.
      is_recalibrated: whether their Jacobians count; if not, a layer may lack classes.
      folder: for temporary files.
      stack: ends them.

    Raises:
      InputError: a file or flag does not fit.
    """
    names = names_of(config)

    def make_scratch() -> BinaryIO:
        # Without a name it ends with this process; folders for temporary files may be memory.
        return stack.enter_context(tempfile.TemporaryFile(dir=folder))

    joined = _open(config, names, config.input, make_scratch, classes)
    source = "validation" if validation else "input"
    reference = joined
    if validation:
        reference = _open(config, names, validation, make_scratch, classes)
    if reference.num_classes != joined.num_classes:
        raise InputError(
            f"--validation has {reference.num_classes} classes, --input {joined.num_classes}"
        )
    if config.labels_column and joined.labels is None and reference.labels is None:
        raise InputError(f"--labels_column={config.labels_column} is in no input")
    if config.groups_column and reference.groups is None:
        raise InputError(f"--groups_column={config.groups_column} is in no --{source}")
    is_double = any(p.logits.dtype.name == "float64" for p in joined.inputs.values())
    dtype = jax.dtypes.canonicalize_dtype(np.float64 if is_double else np.float32)
    if is_double and dtype == np.float32:
        print("float64 logits are rounded to float32", file=sys.stderr)
    heads = {
        name: _head(config, joined, name, make_scratch, classes, is_recalibrated=is_recalibrated)
        for name in recalibrated
    }
    class_prior = _class_prior(config, classes, reference, source, dtype, make_scratch)
    joined, reference = (each._replace(class_prior=class_prior) for each in (joined, reference))
    return Opened(
        joined,
        reference,
        source,
        classes,
        class_prior,
        {
            name: head_spectrum(head, joined.inputs[name].logits.shape[1], dtype, places)
            for name, (head, places) in heads.items()
        },
        [name for name, (head, _) in heads.items() if not head],
        dtype,
    )


def _open(
    config: InputConfig,
    names: Names,
    paths: Mapping[str, Path],
    scratch_fn: ScratchFn,
    classes: Alignment | None,
) -> Joined:
    """The rows that these files share; says what is not used of them."""
    joined = join(
        {
            name: open_predictions(path, scratch_fn=scratch_fn, names=names, classes=classes)
            for name, path in paths.items()
        },
        config.missing,
    )
    for line in joined.remarks:
        print(line, file=sys.stderr)
    if joined.ids_name is None and config.join is None and len(paths) > 1:
        print("no input has a column of ids: rows are joined by position", file=sys.stderr)
    for p in joined.inputs.values():
        unused = [name for name in p.unused if name != joined.ids_name]
        if unused:
            print(f"{p.path}: not used: {', '.join(unused)}", file=sys.stderr)
        if config.inputs_are is None and look_like_probs(p.logits):
            print(
                f"warning: {p.logits.name} look like probabilities: all rows lie in [0, 1] and sum "
                "to one; say --inputs_are=probabilities, or logits",
                file=sys.stderr,
            )
        elif config.inputs_are in ("probabilities", "log_probabilities"):
            check_probs(p.logits, config.inputs_are)
    return joined._replace(are_probs=config.inputs_are == "probabilities")


def _head(
    config: InputConfig,
    joined: Joined,
    name: str,
    scratch_fn: ScratchFn,
    classes: Alignment | None,
    *,
    is_recalibrated: bool,
) -> tuple[dict[str, ArrayOnDisk], NDArray[np.int64] | None]:
    """The last linear layer of a modality, of its input or a file of its own, and its classes."""
    p, path = joined.inputs[name], config.kernel.get(name)
    head, places = p.heads, p.places
    if path is not None:
        if head:
            raise InputError(f"--kernel={name}={path}: {p.path} holds its {', '.join(head)}")
        head = open_arrays(path, HEADS, bare="kernel", scratch_fn=scratch_fn)
        if not head:
            raise InputError(f"--kernel={name}={path} holds none of {', '.join(HEADS)}")
        own = None if config.classes == "position" else read_classes(path)
        if own is not None:
            if classes is None or set(own) != set(classes.own[str(p.path)]):
                raise InputError(
                    f"--kernel={name}={path} names classes that are not those of {p.path}; save "
                    "the same with both"
                )
            places = classes.places(own)
    if head and places is not None and places.min() < 0:
        if is_recalibrated:
            raise InputError(
                f"--classes=unite: {p.path} lacks classes, so that its {', '.join(head)} does not "
                "tell the Jacobian; give --gamma=1, or --classes=intersect"
            )
        head = {}
    return head, places


def _class_prior(
    config: InputConfig,
    classes: Alignment | None,
    reference: Joined,
    flag: str,
    dtype: Any,
    scratch_fn: ScratchFn,
) -> NDArray[np.float64]:
    """The prior (K,) that is asked for; a flag gave the rows whose labels may count."""
    source, num_classes = config.class_prior, reference.num_classes
    if source == "uniform":
        return np.full(num_classes, 1 / num_classes)
    if source == "labels":
        if reference.labels is None:
            raise InputError(f"--class_prior=labels needs `labels`, and no --{flag} has any")
        known = reference.labels[reference.labels >= 0]
        counts = np.bincount(known, minlength=num_classes)
        if not counts.all():
            raise InputError(
                f"--class_prior=labels: no label is {counts.argmin()}; give uniform, or a file of "
                "the frequencies in training"
            )
    else:
        path = Path(source).expanduser()
        arrays = open_arrays(path, ["class_prior"], bare="class_prior", scratch_fn=scratch_fn)
        if "class_prior" not in arrays:
            raise InputError(f"--class_prior={path} holds no array `class_prior`")
        own = None if config.classes == "position" else read_classes(path)
        counts = align_prior(
            arrays["class_prior"].read(), own, classes, source=f"--class_prior={path}"
        )
        is_number = counts.dtype.kind in "iuf" and np.isfinite(counts).all()
        if counts.shape != (num_classes,) or not (is_number and np.all(counts > 0)):
            raise InputError(f"--class_prior={path} must hold {num_classes} positive numbers")
    prior = counts / counts.sum(dtype=np.float64)
    if prior.min() < np.finfo(dtype).tiny:
        raise InputError(
            f"--class_prior={source}: the share {prior.min():.3g} of class {prior.argmin()} is "
            f"zero in {dtype}; give it a larger one"
        )
    return prior
