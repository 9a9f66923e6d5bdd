"""Which rows of several inputs belong together.

Positions are looked up by Arrow's `index_in`; joins of tables, in Arrow or pandas, would move the
logits, which stay on disk, and lose the order of the first input.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jacfuse_jax.predictions.classes import align_logits
from jacfuse_jax.predictions.flags import Missing
from jacfuse_jax.predictions.ids import name_some
from jacfuse_jax.predictions.inputs import Predictions
from jacfuse_jax.predictions.kinds import log_of_probs
from jacfuse_jax.predictions.parquet import Arrow
from jacfuse_jax.programs import InputError


class Joined(NamedTuple):
    """The rows of all inputs, in the order of the first input that has them.

    Attributes:
      inputs: {modality: what its classifier predicted}.
      ids_name: the column that rows were joined by; None: their position.
      ids: (N,), int64 or large_string; where rows were joined by position, that.
      rows: {modality: (N,)}, where they are in each input; -1 in what is missing.
      labels: (N,), -1 where no input has one; None where no input has any.
      groups: (N,), equal for rows that have something in common; None where no input tells.
      remarks: a line for everything that is missing.
      are_probs: whether logits are the logarithms of what inputs hold.
      class_prior: (K,), what an input says of classes that it lacks; None: uniform.
    """

    inputs: Mapping[str, Predictions]
    ids_name: str | None
    ids: Arrow
    rows: dict[str, NDArray[np.int64]]
    labels: NDArray[np.int64] | None
    groups: NDArray[np.int64] | None
    remarks: list[str]
    are_probs: bool = False
    class_prior: NDArray[Any] | None = None

    @property
    def num_classes(self) -> int:
        """K."""
        return next(iter(self.inputs.values())).num_classes

    @property
    def present(self) -> dict[str, NDArray[np.bool_]]:
        """{modality: (N,)}, which rows have it."""
        return {name: rows >= 0 for name, rows in self.rows.items()}

    def read(self, rows: NDArray[np.int64], dtype: Any) -> dict[str, NDArray[Any]]:
        """Reads logits, {modality: (n, K)}, into memory; of what is missing, anything.

        Args:
          rows: (n,), positions among the shared rows.
          dtype: of the result; what it cannot hold is infinite.
        """
        places = {name: np.maximum(of_input[rows], 0) for name, of_input in self.rows.items()}
        logits = {name: p.logits.read(places[name]) for name, p in self.inputs.items()}
        if self.are_probs:
            logits = {name: log_of_probs(z) for name, z in logits.items()}
        logits = {
            name: align_logits(z, self.inputs[name].places, self.class_prior)
            for name, z in logits.items()
        }
        with np.errstate(over="ignore"):
            return {name: z.astype(dtype) for name, z in logits.items()}


def join(predictions: Mapping[str, Predictions], missing: Missing = "fuse") -> Joined:
    """Finds the rows of several inputs that belong together.

    They have a column of ids if each has one that was named, or if just one of the candidates is in
    all of them. Where no input has either, rows are joined by position. A modality is missing in
    rows whose id its input lacks, or that are all NaN there.

    Args:
      predictions: {modality: what its classifier predicted}, at least one.
      missing: "fuse" keeps rows that lack a modality, "drop" leaves them out, "error" refuses them.

    Returns:
      The rows.

    Raises:
      InputError: numbers of classes differ, some inputs have ids but not all have one column, no
        row is shared, lengths differ without ids, inputs disagree about a label, some entries of a
        row are NaN and others not, something is missing and must not be, or some rows are in no
        group, or in two.
    """
    shapes = {str(p.path): p.logits.shape for p in predictions.values()}
    if len({p.num_classes for p in predictions.values()}) > 1:
        raise InputError(f"inputs must have the same classes, got logits of shapes {shapes}")
    ids_name = _ids_name(predictions)
    if ids_name is None:
        if len({num_rows for num_rows, _ in shapes.values()}) > 1:
            raise InputError(f"without ids inputs must have the same rows, got shapes {shapes}")
        every = np.arange(next(iter(predictions.values())).logits.shape[0])
        shared, rows = pa.array(every), dict.fromkeys(predictions, every)
    else:
        ids = {
            name: p.candidates[ids_name]() if p.ids is None else p.ids
            for name, p in predictions.items()
        }
        predictions = {name: p._replace(ids=ids[name]) for name, p in predictions.items()}
        shared, rows = _join_by_id(predictions, ids)
    is_nan = {
        name: find_nan(p.logits.name, p.logits.shape, p.logits.chunks())
        for name, p in predictions.items()
    }
    labels = {name: p.labels for name, p in predictions.items() if p.labels is not None}
    labels = _agree(predictions, labels, shared, rows, "labels")
    groups = _agree(predictions, _group_codes(predictions), shared, rows, "groups")
    if groups is not None and groups.min() < 0:
        raise InputError(
            f"{(groups < 0).sum()} rows are in no group, of id "
            f"{name_some(shared, np.flatnonzero(groups < 0))}; save groups with each input"
        )
    sources = {name: str(p.path) for name, p in predictions.items()}
    kept, places, remarks = settle_missing(sources, shared, rows, is_nan, missing)
    return Joined(
        predictions,
        ids_name,
        shared if len(kept) == len(shared) else shared.take(pa.array(kept)),
        places,
        None if labels is None else labels[kept],
        None if groups is None else groups[kept],
        remarks,
    )


def settle_missing(
    sources: Mapping[str, str],
    ids: Any,
    rows: Mapping[str, NDArray[np.int64]],
    is_nan: Mapping[str, NDArray[np.bool_]],
    missing: Missing,
    *,
    flag: str = "--missing",
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.int64]], list[str]]:
    """Keeps, drops or refuses rows that lack a modality.

    Args:
      sources: {modality: its file}, for messages.
      ids: (N,), of Arrow, or an index of pandas.
      rows: {modality: (N,)}, where ids are in each input; -1 where they are not.
      is_nan: {modality: which of its rows are NaN}.
      missing: as in `join`.
      flag: what it is called in messages.

    Returns:
      (n,), the positions of those that are kept; {modality: (n,)}, where they are in each input, -1
      in what is missing; a line for everything that is missing.

    Raises:
      InputError: no id is in all inputs, or something is missing and must not be.
    """
    if not np.all([of >= 0 for of in rows.values()], axis=0).any():
        raise InputError(f"no id is in all of {', '.join(sources.values())}")
    remarks = _remarks(sources, ids, rows, is_nan)
    if remarks and missing == "error":
        raise InputError(f"{flag}=error: {remarks[0]}; give {flag}=fuse, or drop")
    rows = {name: np.where(is_nan[name][of], -1, of) for name, of in rows.items()}
    if not remarks or missing == "fuse":
        then = "; it is fused without"
        return np.arange(len(ids)), rows, [line + then for line in remarks]
    kept = np.flatnonzero(np.all([of >= 0 for of in rows.values()], axis=0))
    if not kept.size:
        raise InputError(f"{flag}=drop leaves no row: {remarks[0]}")
    then = "; such rows are left out"
    return kept, {name: of[kept] for name, of in rows.items()}, [line + then for line in remarks]


def find_nan(
    name: str,
    shape: tuple[int, ...],
    chunks: Iterable[tuple[int, NDArray[Any]]],
    ids: Any = None,
) -> NDArray[np.bool_]:
    """Which rows of an input, (N,), are NaN.

    Args:
      name: of the input, for messages.
      shape: (N, K).
      chunks: of rows, with the position of the first.
      ids: (N,), an index of pandas; None: rows are named by their position.

    Raises:
      InputError: some entries of a row are NaN, and others not.
    """
    num_rows, num_classes = shape
    is_nan = np.zeros(num_rows, bool)
    for start, chunk in chunks:
        counts = np.isnan(chunk).sum(axis=1)
        is_nan[start : start + len(chunk)] = counts == num_classes
        partly = np.flatnonzero((counts > 0) & (counts < num_classes))
        if partly.size:
            i = int(partly[0])
            row = start + i if ids is None else name_some(ids, np.array([start + i]))
            raise InputError(
                f"{name}: row {row} has NaN in {counts[i]} of {num_classes} "
                "entries; all of them would say that the modality is missing"
            )
    return is_nan


def _ids_name(predictions: Mapping[str, Predictions]) -> str | None:
    """The column of ids; None where no input has any."""
    named = {
        p.path: list(p.candidates) if p.ids_name is None else [p.ids_name]
        for p in predictions.values()
    }
    if not any(named.values()):
        return None
    shared = set.intersection(*map(set, named.values()))
    if len(shared) == 1:
        return shared.pop()
    listed = "; ".join(f"{path} has {', '.join(own) or 'none'}" for path, own in named.items())
    reason = "more than one column may be ids" if shared else "inputs share no column of ids"
    raise InputError(f"{reason}: {listed}; name one by --ids_column, or give --join=position")


def _join_by_id(
    predictions: Mapping[str, Predictions], ids: Mapping[str, Arrow]
) -> tuple[Arrow, dict[str, NDArray[np.int64]]]:
    """The ids of all inputs, and where they are; -1 where they are not."""
    first, reference = next(iter(ids.items()))
    every = reference
    for name, own in ids.items():
        if own.type != reference.type:
            raise InputError(
                f"ids are {reference.type} in {predictions[first].path}, but {own.type} in "
                f"{predictions[name].path}; save one kind"
            )
        is_new = _places(own, every) < 0
        if is_new.any():
            every = pa.concat_arrays([every, own.filter(pa.array(is_new))])
    return every, {name: _places(every, own) for name, own in ids.items()}


def _places(ids: Arrow, of: Arrow) -> NDArray[np.int64]:
    """Where each id is in another column; -1 where it is not."""
    found = pc.call_function("index_in", [ids], pc.SetLookupOptions(value_set=of))
    return found.fill_null(-1).to_numpy().astype(np.int64)


def _agree(
    predictions: Mapping[str, Predictions],
    codes: Mapping[str, NDArray[np.int64]],
    ids: Arrow,
    rows: Mapping[str, NDArray[np.int64]],
    what: str,
) -> NDArray[np.int64] | None:
    """What inputs that tell it say of rows, -1 where none does; raises where two disagree."""
    known: NDArray[np.int64] | None = None
    paths: list[Path] = []
    for name, own in codes.items():
        said = np.where(rows[name] >= 0, own[rows[name]], -1)
        if known is None:
            known = said
        differing = np.flatnonzero((said != known) & (said >= 0) & (known >= 0))
        if differing.size:
            raise InputError(
                f"{paths[0]} and {predictions[name].path} disagree about {differing.size} of "
                f"{len(said)} {what}, of id {name_some(ids, differing)}"
            )
        known = np.where(known >= 0, known, said)
        paths.append(predictions[name].path)
    return known


def _group_codes(predictions: Mapping[str, Predictions]) -> dict[str, NDArray[np.int64]]:
    """Groups as integers, which are the same in all inputs that have some."""
    texts = {
        name: p.groups.cast(pa.large_string())
        for name, p in predictions.items()
        if p.groups is not None
    }
    every = pa.chunked_array([*texts.values()], pa.large_string()).unique()
    return {name: _places(groups, every) for name, groups in texts.items()}


def _remarks(
    sources: Mapping[str, str],
    ids: Any,
    rows: Mapping[str, NDArray[np.int64]],
    is_nan: Mapping[str, NDArray[np.bool_]],
) -> list[str]:
    """A line for everything that is missing."""
    lines: list[str] = []
    for name, source in sources.items():
        where = {
            "whose ids are not in": rows[name] < 0,
            "which are NaN in": (rows[name] >= 0) & is_nan[name][rows[name]],
        }
        lines += [
            f"{name} is missing in {is_missing.sum()} of {len(ids)} rows, {why} {source}: "
            f"{name_some(ids, np.flatnonzero(is_missing))}"
            for why, is_missing in where.items()
            if is_missing.any()
        ]
    return lines
