"""Fused predictions as data frames of pandas, joined and aligned as files are, in memory."""

import functools
from collections.abc import Mapping
from typing import Any, get_args

import jax
import numpy as np
import pandas as pd
from jax.typing import ArrayLike
from numpy.typing import NDArray

from jacfuse_jax import fusion
from jacfuse_jax.linalg import GramSpectrum, spectrum_from_kernel
from jacfuse_jax.predictions.classes import align_classes, align_logits, align_prior
from jacfuse_jax.predictions.flags import Combine, Missing
from jacfuse_jax.predictions.ids import list_some
from jacfuse_jax.predictions.join import find_nan, settle_missing


def fuse_frames(
    rule: fusion.Rule,
    frames: Mapping[str, pd.DataFrame],
    *,
    perturbed: str | tuple[str, ...],
    class_prior: pd.Series | ArrayLike | None = None,
    grams: Mapping[str, GramSpectrum | ArrayLike] | None = None,
    missing: Missing = "fuse",
    classes: Combine | None = None,
) -> pd.DataFrame:
    """Fuses logits whose columns are classes and whose index says which rows belong together.

    Rows and columns may be in any order in each frame. A modality is missing in rows that its frame
    lacks, or in which all of its logits are NaN.

    Args:
      rule: with its parameters.
      frames: {modality: logits}, at least one; columns are classes, each once, and labels of the
        index are the rows, each once. float32 or float64.
      perturbed: name or names of the modalities believed perturbed.
      class_prior: (K,), positive, frequencies or counts; a series is aligned by its index, an array
        is in the order of the columns, which all frames must then share. None: uniform.
      grams: {modality: spectrum of its Gram matrix or the matrix, (K, K)}, for the rules that need
        them; in the order of the columns of its own frame.
      missing: "fuse" keeps rows that lack a modality, "drop" leaves them out, "error" refuses them.
      classes: what becomes of classes that not all frames have, see `classes`; None refuses them.

    Returns:
      Log-probabilities in the order of the first frame: its index, then rows that only others have;
      its columns, then with "unite" the classes that only others have. float64 where a frame is and
      JAX allows it, else float32.

    Raises:
      TypeError: something is no data frame, or not floating.
      ValueError: rows or columns repeat or have no label; frames have other classes, and `classes`
        is None; no row is in all; a row is NaN in part; something is missing and must not be; a
        prior or Gram matrix does not fit; or what `fusion.fuse` refuses.

    Example:
      >>> import pandas as pd
      >>> from jacfuse_jax.fusion import Statistical
      >>> from jacfuse_jax.predictions import fuse_frames
      >>> audio = pd.DataFrame({"cat": [1.0, 0.0], "dog": [0.0, 2.0]}, index=["a", "b"])
      >>> video = pd.DataFrame({"dog": [3.0, 0.0], "cat": [0.0, 1.0]}, index=["b", "a"])
      >>> fused = fuse_frames(Statistical(), {"audio": audio, "video": video}, perturbed="audio")
      >>> fused.idxmax(axis=1).to_dict()
      {'a': 'cat', 'b': 'dog'}
    """
    for name, value, known in (
        ("missing", missing, get_args(Missing)),
        ("classes", classes, (None, *get_args(Combine))),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
    if not frames:
        raise ValueError("frames is empty; give one a modality")
    sources = {name: f"frames[{name!r}]" for name in frames}
    arrays = {name: _read(sources[name], frame) for name, frame in frames.items()}
    own = {sources[name]: tuple(frame.columns) for name, frame in frames.items()}
    aligned = align_classes(own, classes, flag="classes")
    index = functools.reduce(_append, (frame.index for frame in frames.values()))
    is_nan = {
        name: find_nan(sources[name], z.shape, [(0, z)], frames[name].index)
        for name, z in arrays.items()
    }
    kept, rows, _ = settle_missing(
        sources,
        index,
        {name: frame.index.get_indexer(index) for name, frame in frames.items()},
        is_nan,
        missing,
        flag="missing",
    )
    prior = np.ones(len(aligned.names))
    if class_prior is not None:
        labels = None
        if isinstance(class_prior, pd.Series):
            _check_labels("class_prior.index", class_prior.index)
            labels = tuple(class_prior.index)
        prior = align_prior(np.asarray(class_prior), labels, aligned, source="class_prior")
    prior = prior / prior.sum()
    places = {name: aligned.places(own[sources[name]]) for name in frames}
    dtype = jax.dtypes.canonicalize_dtype(np.result_type(*arrays.values()))
    with np.errstate(over="ignore"):
        logits = {
            name: align_logits(z[np.maximum(rows[name], 0)], places[name], prior).astype(dtype)
            for name, z in arrays.items()
        }
    present = {name: of >= 0 for name, of in rows.items()}
    log_probs = fusion.fuse(
        rule,
        logits,
        prior,
        perturbed=perturbed,
        grams=None if grams is None else _align_grams(grams, frames, places),
        present=None if np.all([*present.values()]) else present,
    )
    columns = functools.reduce(_append, (frame.columns for frame in frames.values()))
    kept_classes = set(aligned.names)
    return pd.DataFrame(
        np.asarray(log_probs),
        index.take(kept),
        columns.take(np.flatnonzero([name in kept_classes for name in columns])),
    )


def _read(source: str, frame: object) -> NDArray[Any]:
    """Logits of a frame; raises where they are none, or rows or columns are not told apart."""
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"{source} must be a pandas.DataFrame, got {type(frame).__name__}")
    if frame.shape[0] < 1 or frame.shape[1] < 2:
        raise ValueError(f"{source} has shape {frame.shape}, not (N, K) of K >= 2 classes")
    _check_labels(f"{source}.index", frame.index)
    _check_labels(f"{source}.columns", frame.columns)
    for name, dtype in frame.dtypes.items():
        if not pd.api.types.is_float_dtype(dtype):
            raise TypeError(f"{source}: column {name!r} is {dtype}, not floating")
    is_double = any(dtype.itemsize > 4 for dtype in frame.dtypes)
    return frame.to_numpy(np.float64 if is_double else np.float32, na_value=np.nan)


def _check_labels(source: str, labels: pd.Index) -> None:
    """Raises where labels are null or occur twice."""
    if len(labels.dropna()) < len(labels):
        raise ValueError(f"{source} has labels that are null; name them")
    if not labels.is_unique:
        repeated = list_some(labels[labels.duplicated()].unique().tolist())
        raise ValueError(f"{source} has labels more than once, {repeated}; keep one")


def _append(index: pd.Index, other: pd.Index) -> pd.Index:
    """The labels of the first, then those that only the other one has."""
    if index.nlevels != other.nlevels:
        raise ValueError(
            f"frames have labels of {index.nlevels} and of {other.nlevels} levels; give all the "
            "same"
        )
    new = other[index.get_indexer(other) < 0]
    return index.append(new) if len(new) else index


def _align_grams(
    grams: Mapping[str, GramSpectrum | ArrayLike],
    frames: Mapping[str, pd.DataFrame],
    places: Mapping[str, NDArray[np.int64]],
) -> dict[str, GramSpectrum | ArrayLike]:
    """Gram matrices of the classes of the output, in their order."""
    aligned: dict[str, GramSpectrum | ArrayLike] = {}
    for name, gram in grams.items():
        if name not in frames:
            raise ValueError(f"grams[{name!r}] is of no frame; name one of {', '.join(frames)}")
        num_classes, of = len(frames[name].columns), places[name]
        matrix = gram.eigenvectors if isinstance(gram, GramSpectrum) else gram
        if np.shape(matrix) != (num_classes, num_classes):
            raise ValueError(
                f"grams[{name!r}] must be of {num_classes} classes, shared by all rows, got shape "
                f"{np.shape(matrix)}"
            )
        if of.min() < 0:
            raise ValueError(
                f"grams[{name!r}] does not tell the Jacobian in classes that its frame lacks; take "
                "a rule without it, or classes='intersect'"
            )
        if isinstance(gram, GramSpectrum):
            kernel = np.sqrt(gram.eigenvalues)[:, None] * np.transpose(gram.eigenvectors)
            aligned[name] = spectrum_from_kernel(kernel[:, of])
        else:
            aligned[name] = np.asarray(gram)[of][:, of]
    return aligned
