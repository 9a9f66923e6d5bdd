"""Which rows of several inputs belong together.

Positions are looked up by Arrow's `index_in`; joins of tables, in Arrow or pandas, would move the
logits, which stay on disk, and lose the order of the first input.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jacfuse_jax.predictions.ids import name_some
from jacfuse_jax.predictions.inputs import Predictions
from jacfuse_jax.predictions.kinds import log_of_probs
from jacfuse_jax.predictions.parquet import Arrow
from jacfuse_jax.programs import InputError


class Joined(NamedTuple):
    """The rows that all inputs have, in the order of the first input.

    Attributes:
      inputs: {modality: what its classifier predicted}.
      ids_name: the column that rows were joined by; None: their position.
      ids: (N,), int64 or large_string; where rows were joined by position, that.
      rows: {modality: (N,)}, where they are in each input.
      labels: (N,); None where no input has any.
      left_out: a line for every input that has other rows, too.
      are_probs: whether logits are the logarithms of what inputs hold.
    """

    inputs: Mapping[str, Predictions]
    ids_name: str | None
    ids: Arrow
    rows: dict[str, NDArray[np.int64]]
    labels: NDArray[np.int64] | None
    left_out: list[str]
    are_probs: bool = False

    @property
    def num_classes(self) -> int:
        """K."""
        return next(iter(self.inputs.values())).logits.shape[1]

    def read(self, rows: NDArray[np.int64], dtype: Any) -> dict[str, NDArray[Any]]:
        """Reads logits, {modality: (n, K)}, into memory.

        Args:
          rows: (n,), positions among the shared rows.
          dtype: of the result; what it cannot hold is infinite.
        """
        logits = {name: p.logits.read(self.rows[name][rows]) for name, p in self.inputs.items()}
        if self.are_probs:
            logits = {name: log_of_probs(z) for name, z in logits.items()}
        with np.errstate(over="ignore"):
            return {name: z.astype(dtype) for name, z in logits.items()}


def join(predictions: Mapping[str, Predictions]) -> Joined:
    """Finds the rows that all inputs have.

    They have a column of ids if each has one that was named, or if just one of the candidates is in
    all of them. Where no input has either, rows are joined by position.

    Args:
      predictions: {modality: what its classifier predicted}, at least one.

    Returns:
      The rows.

    Raises:
      InputError: numbers of classes differ, some inputs have ids but not all have one column, no
        row is shared, lengths differ without ids, or inputs disagree about a label.
    """
    shapes = {str(p.path): p.logits.shape for p in predictions.values()}
    if len({num_classes for _, num_classes in shapes.values()}) > 1:
        raise InputError(f"inputs must have the same classes, got logits of shapes {shapes}")
    ids_name = _ids_name(predictions)
    if ids_name is None:
        if len(set(shapes.values())) > 1:
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
    labels = _labels(predictions, shared, rows)
    return Joined(predictions, ids_name, shared, rows, labels, _left_out(predictions, rows))


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
    """The ids that all inputs have, and where they are."""
    (first, reference), *others = ids.items()
    positions = {first: np.arange(len(reference))}
    for name, own in others:
        if own.type != reference.type:
            raise InputError(
                f"ids are {reference.type} in {predictions[first].path}, but {own.type} in "
                f"{predictions[name].path}; save one kind"
            )
        found = pc.call_function("index_in", [reference], pc.SetLookupOptions(value_set=own))
        positions[name] = found.fill_null(-1).to_numpy().astype(np.int64)
    is_shared = np.all([rows >= 0 for rows in positions.values()], axis=0)
    if not is_shared.any():
        paths = ", ".join(str(p.path) for p in predictions.values())
        raise InputError(f"no id is in all of {paths}")
    return reference.filter(pa.array(is_shared)), {
        name: rows[is_shared] for name, rows in positions.items()
    }


def _labels(
    predictions: Mapping[str, Predictions], ids: Arrow, rows: Mapping[str, NDArray[np.int64]]
) -> NDArray[np.int64] | None:
    """The labels of shared rows, from any input that has them; raises where two disagree."""
    first: tuple[Path, NDArray[np.int64]] | None = None
    for name, p in predictions.items():
        if p.labels is None:
            continue
        labels = p.labels[rows[name]]
        if first is None:
            first = p.path, labels
        differing = np.flatnonzero(labels != first[1])
        if differing.size:
            raise InputError(
                f"{first[0]} and {p.path} disagree about {differing.size} of {len(labels)} labels, "
                f"of id {name_some(ids, differing)}"
            )
    return None if first is None else first[1]


def _left_out(
    predictions: Mapping[str, Predictions], rows: Mapping[str, NDArray[np.int64]]
) -> list[str]:
    """A line for every input with rows that another one lacks."""
    lines: list[str] = []
    for name, p in predictions.items():
        if p.ids is not None and len(p.ids) > len(rows[name]):
            left_out = np.delete(np.arange(len(p.ids)), rows[name])
            lines.append(
                f"{p.path}: {left_out.size} of {len(p.ids)} rows are left out, since another input "
                f"lacks their ids: {name_some(p.ids, left_out)}"
            )
    return lines
