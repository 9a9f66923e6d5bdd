"""Labels, and which rows are in which split."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipelines.arrays.files import ArrayFile
from data_pipelines.arrays.layouts import Layout
from data_pipelines.errors import DataError

_SPLITS = ("train", "validation", "test")
_SHARES = (0.6, 0.8)  # of the rows, where train and where validation ends
_PUBLISHED_SHARE = 0.9  # of published training rows, the others are validation


class Labelled(NamedTuple):
    """What is known of every row.

    Attributes:
      labels: (N,) int32, 0 .. K - 1.
      classes: their K names.
      groups: (N,) integers, rows of one group are not independent.
      rows: {split: its rows, mixed}.
      note: one line on a split that was drawn here, or that groups leak through.
    """

    labels: NDArray[np.int32]
    classes: tuple[str, ...]
    groups: NDArray[np.int64]
    rows: dict[str, NDArray[np.intp]]
    note: str


def read_labels(layout: Layout, fold: int) -> Labelled:
    """Reads labels, groups and splits.

    Args:
      layout: arrays of a data set.
      fold: the test fold, where the data set has folds; the next one is validation.

    Raises:
      DataError: they are of another type or shape, a class or split has no rows, or there is no
        such fold.
    """
    labels, classes = _read_classes(layout)
    if "groups" in layout.extra:
        values = _read_column(layout, "groups", "iuUS")
        groups = np.unique(values, return_inverse=True)[1].astype(np.int64)
    else:
        groups = np.arange(len(labels))
    if "split" in layout.extra and "fold" in layout.extra:
        raise DataError(f"{layout.path} holds both split and fold; leave one of them")
    if fold and "fold" not in layout.extra:
        raise DataError(f"fold={fold}: {layout.path} holds no folds; save fold.npy (N,)", "fold")
    note = ""
    if "split" in layout.extra:
        parts = _given_split(layout)
    elif "fold" in layout.extra:
        parts = _split_of_folds(layout, fold)
    elif layout.is_published:
        parts = _split_of_published(layout)
        note = f"{layout.path}: 10% of the training rows, drawn with seed 0, are for validation"
    else:
        parts = _split_of_groups(groups)
        what = "groups" if "groups" in layout.extra else "rows"
        note = f"{layout.path} has no split: {what} are drawn 60/20/20 with seed 0"
    rows = {split: np.flatnonzero(parts == split) for split in _SPLITS}
    for split, numbers in rows.items():
        if not len(numbers):
            raise DataError(
                f"{layout.path}: split {split!r} has no rows; save split.npy (N,) with train, "
                "validation and test"
            )
    counts = np.bincount(labels[rows["train"]], minlength=len(classes))
    if counts.min() == 0:
        raise DataError(
            f"{layout.path}: class {classes[int(counts.argmin())]!r} has no training rows; leave it"
            " out, or change the split"
        )
    known = np.unique(groups)
    num_splits = np.sum([np.isin(known, groups[numbers]) for numbers in rows.values()], axis=0)
    if leaking := np.count_nonzero(num_splits > 1):
        note = f"{layout.path}: {leaking} of {len(known)} groups are in more than one split"
    # Whoever saves rows in the order of their classes has all of them in the first few.
    mixed = np.random.default_rng(0)
    return Labelled(
        labels, classes, groups, {split: mixed.permutation(n) for split, n in rows.items()}, note
    )


def first_of_group(groups: NDArray[Any]) -> NDArray[np.int32]:
    """Returns for every row the number of the first row of the same group.

    Args:
      groups: (N,).
    """
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int32)


def _read_classes(layout: Layout) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Numbers labels by their place in `classes`, or in sorted order."""
    values = _read_column(layout, "labels", "iuUS")
    file = layout.extra["labels"][0]
    if "classes" not in layout.extra:
        found, labels = np.unique(values, return_inverse=True)
        names = found.astype(str)
    else:
        names = _read_column(layout, "classes", "US")
        if len(set(names.tolist())) < len(names):
            raise DataError(f"{layout.extra['classes'][0]} holds a name twice; save each once")
        if values.dtype.kind == "U":
            places = {name: place for place, name in enumerate(names.tolist())}
            labels = np.array([places.get(value, -1) for value in values.tolist()])
        else:
            labels = np.where((values >= 0) & (values < len(names)), values, -1).astype(np.int64)
        if (unknown := np.flatnonzero(labels < 0)).size:
            raise DataError(
                f"{file} holds {values[unknown[0]].item()!r}, which is none of the {len(names)} "
                f"classes of {layout.extra['classes'][0]}; add it there, or leave classes out"
            )
    if len(names) < 2:
        raise DataError(f"{file} has one class ({names[0]}); at least two are needed")
    return labels.astype(np.int32), tuple(names.tolist())


def _given_split(layout: Layout) -> NDArray[Any]:
    """The splits of rows that say theirs."""
    parts = _read_column(layout, "split", "US")
    if unknown := {*parts.tolist()} - {*_SPLITS}:
        raise DataError(
            f"{layout.extra['split'][0]} holds {min(unknown)!r}; write {', '.join(_SPLITS)}"
        )
    return parts


def _split_of_folds(layout: Layout, fold: int) -> NDArray[Any]:
    """Tests on one fold, validates on the next one, trains on the others."""
    folds = _read_column(layout, "fold", "iu")
    known = np.unique(folds).tolist()
    if fold not in known:
        raise DataError(
            f"fold={fold}: no such fold in {layout.extra['fold'][0]}; choose from "
            f"{', '.join(map(str, known))}",
            "fold",
        )
    following = known[(known.index(fold) + 1) % len(known)]
    return np.where(folds == fold, "test", np.where(folds == following, "validation", "train"))


def _split_of_published(layout: Layout) -> NDArray[Any]:
    """Draws validation rows from the training part."""
    num_train, num_test = (file.shape[0] for file in layout.extra["labels"])
    order = np.random.default_rng(0).permutation(num_train)
    parts = np.full(num_train + num_test, "validation")
    parts[order[: round(_PUBLISHED_SHARE * num_train)]] = "train"
    parts[num_train:] = "test"
    return parts


def _split_of_groups(groups: NDArray[np.int64]) -> NDArray[Any]:
    """Draws splits of which no group is in two."""
    sizes = np.bincount(groups)
    order = np.random.default_rng(0).permutation(len(sizes))
    ends = np.cumsum(sizes[order])
    middles = (ends - sizes[order] / 2) / len(groups)
    places = np.empty(len(sizes), np.intp)
    places[order] = np.searchsorted(_SHARES, middles, side="right")
    return np.array(_SPLITS)[places[groups]]


def _read_column(layout: Layout, name: str, dtype_kinds: str) -> NDArray[Any]:
    """Reads one of the arrays that are no modalities, bytes as texts."""
    files = layout.extra[name]
    for file in files:
        if len(file.shape) != 1:
            raise DataError(f"{file} has shape {file.shape}, not (N,); save one value a row")
        if file.dtype.kind not in dtype_kinds:
            wanted = {"iuUS": "integers or texts", "US": "texts", "iu": "integers"}[dtype_kinds]
            raise DataError(f"{file} is {file.dtype}, not {wanted}; save it so")
    return np.concatenate([_as_texts(file) for file in files])


def _as_texts(file: ArrayFile) -> NDArray[Any]:
    """The values of an array, bytes decoded."""
    values = np.asarray(file.open())
    if values.dtype.kind != "S":
        return values
    try:
        return np.char.decode(values, "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} holds bytes that are not UTF-8; save texts") from error
