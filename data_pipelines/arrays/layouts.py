"""Which arrays a folder or an archive has, and what each is for."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from data_pipelines.arrays.files import ArrayFile, open_npy, open_npz
from data_pipelines.errors import DataError

RESERVED = ("labels", "groups", "split", "fold", "classes")
"""Names of arrays that are no modalities."""
_TAKEN = ("label", "group", "noise_group")  # keys of what `datasets.load` returns


class Layout(NamedTuple):
    """Arrays of a data set, their rows unread.

    Attributes:
      path: of the folder or the archive.
      modalities: {modality: its files, whose rows follow each other}, sorted by name.
      extra: {one of `RESERVED`: its files}, those that are there; always "labels".
      is_published: in two parts, the second of which is the test split.
    """

    path: Path
    modalities: dict[str, tuple[ArrayFile, ...]]
    extra: dict[str, tuple[ArrayFile, ...]]
    is_published: bool


def find_layout(manual_dir: Path) -> Layout:
    """Finds the arrays of a data set.

    Args:
      manual_dir: folder of .npy files, or of one .npz archive, or such an archive.

    Raises:
      DataError: there is no such folder, it has several layouts, or arrays are missing, damaged or
        of different lengths.
    """
    if manual_dir.is_file():
        return _make_layout(manual_dir, open_npz(manual_dir))
    if not manual_dir.is_dir():
        raise DataError(
            f"manual_dir={manual_dir}: no such folder or .npz file; name the one with the arrays",
            "manual_dir",
        )
    files = _visible(manual_dir, "*.npy")
    archives = _visible(manual_dir, "*.npz")
    if len(archives) > 1 or (files and archives):
        first, second = (*archives, *files)[:2]
        raise DataError(
            f"{manual_dir} holds both {first.name} and {second.name}; leave one .npz or .npy files "
            "alone in a folder"
        )
    if archives:
        return _make_layout(archives[0], open_npz(archives[0]))
    names = [path.stem for path in files]
    if "train_labels" in names or "test_labels" in names:
        if "labels" in names:
            raise DataError(
                f"{manual_dir} holds both labels.npy and train_labels.npy or test_labels.npy; leave"
                " the files of one layout in the folder"
            )
        return _make_published(manual_dir)
    return _make_layout(manual_dir, {path.stem: open_npy(path) for path in files})


def _make_layout(path: Path, arrays: Mapping[str, ArrayFile]) -> Layout:
    """Tells modalities from what else there is."""
    if "labels" not in arrays:
        raise DataError(f"{path} has no labels; save labels.npy, or `labels` in the .npz, (N,)")
    extra = {name: (array,) for name, array in arrays.items() if name in RESERVED}
    modalities = {name: (arrays[name],) for name in sorted(arrays.keys() - {*RESERVED})}
    return _checked(Layout(path, modalities, extra, is_published=False))


def _make_published(folder: Path) -> Layout:
    """The layout of AV-MNIST as others publish it, rows in two parts."""
    parts = ("train", "test")
    labels = [folder / f"{part}_labels.npy" for part in parts]
    names = sorted(
        {path.parent.name for part in parts for path in folder.glob(f"*/{part}_data.npy")}
    )
    files = {name: [folder / name / f"{part}_data.npy" for part in parts] for name in names}
    for path in (*labels, *(path for paths in files.values() for path in paths)):
        if not path.is_file():
            raise DataError(f"{path} is missing; save train and test of labels and all modalities")
    return _checked(
        Layout(
            folder,
            {name: tuple(open_npy(path) for path in paths) for name, paths in files.items()},
            {"labels": tuple(open_npy(path) for path in labels)},
            is_published=True,
        )
    )


def _checked(layout: Layout) -> Layout:
    """Refuses names and lengths that do not fit."""
    for name in layout.modalities:
        if name in _TAKEN:
            raise DataError(
                f"{layout.path} holds {name!r}, which no modality may be called; rename it, or is "
                f"{name.removeprefix('noise_')}s meant?"
            )
        if not re.fullmatch(r"[\w-]+", name):
            raise DataError(
                f"{layout.path} holds {name!r}; rename it to letters, digits, '_' and '-'"
            )
    if len(layout.modalities) < 2:
        found = ", ".join(layout.modalities) or "none"
        raise DataError(
            f"{layout.path} has too few modalities ({found}); fusion takes two or more, an array "
            "each"
        )
    for name, files in (*layout.modalities.items(), *layout.extra.items()):
        for labels, file in zip(layout.extra["labels"], files, strict=True):
            if name != "classes" and file.shape[0] != labels.shape[0]:
                raise DataError(
                    f"{file} has {file.shape[0]} rows, but {labels} has {labels.shape[0]}; save "
                    "the same rows in the same order"
                )
        if len({file.shape[1:] for file in files}) > 1:
            raise DataError(
                f"{files[1]} has rows of shape {files[1].shape[1:]}, but {files[0]} of "
                f"{files[0].shape[1:]}; save the same shape"
            )
    return layout


def _visible(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder, but those that systems hide."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
