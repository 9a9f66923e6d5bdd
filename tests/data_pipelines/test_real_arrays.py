"""Real data as arrays: phones, leaves, digits, acted emotions."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines import arrays
from tests.data_pipelines.real_arrays import (
    needs_real_arrays,
    write_hapt,
    write_leaves,
    write_mfeat,
    write_ravdess,
)

pytestmark = needs_real_arrays


def _check(folder: Path, sizes: tuple[int, int, int], **options: Any) -> arrays.Outline:
    """Checks splits and what is in them; returns the outline."""
    outline = arrays.peek(folder, **options)
    assert tuple(outline.num_rows.values()) == sizes
    groups = [set(outline.labelled.groups[rows]) for rows in outline.labelled.rows.values()]
    assert sum(map(len, groups)) == len(set().union(*groups))
    for columns in arrays.read(outline).values():
        assert set(columns["label"]) == set(range(outline.num_classes))
        for modality, kind in outline.kinds.items():
            if kind != "series":  # which are in physical units
                assert columns[modality].min() >= 0
                assert columns[modality].max() <= 1
    return outline


def test_phones_have_people_of_their_own_in_every_split(tmp_path: Path) -> None:
    outline = _check(write_hapt(tmp_path / "hapt"), (6213, 2058, 2140))
    assert outline.kinds == {"accelerometer": "series", "gyroscope": "series"}
    assert set(outline.shapes.values()) == {(128, 3)}
    assert outline.num_classes == 6
    assert len(set(outline.labelled.groups)) == 30


def test_gravity_is_in_the_accelerations_of_phones(tmp_path: Path) -> None:
    outline = arrays.peek(write_hapt(tmp_path / "hapt"))
    columns = arrays.read(outline)["test"]
    lengths = np.linalg.norm(columns["accelerometer"].mean(axis=1), axis=-1)
    assert 0.95 < np.median(lengths) < 1.05  # in g


@pytest.mark.parametrize("fold", range(5))
def test_leaves_have_all_species_in_every_split_of_every_fold(fold: int, tmp_path: Path) -> None:
    num_test, num_validation = (400 if f == 0 else 300 for f in (fold, (fold + 1) % 5))
    sizes = (1600 - num_test - num_validation, num_validation, num_test)
    outline = _check(write_leaves(tmp_path / "leaves"), sizes, fold=fold)
    assert outline.shapes == {"view1": (64,), "view2": (64,), "view3": (64,)}
    assert outline.num_classes == 100
    counts = Counter(outline.labelled.labels[outline.labelled.rows["test"]].tolist())
    assert set(counts.values()) == {num_test // 100}


def test_digits_keep_the_views_that_are_asked_for(tmp_path: Path) -> None:
    outline = _check(write_mfeat(tmp_path / "mfeat", ("fou", "zer")), (1200, 400, 400))
    assert outline.shapes == {"fou": (76,), "zer": (47,)}
    assert outline.num_classes == 10


@pytest.mark.parametrize("fold", [0, 4])
def test_acted_emotions_have_actors_of_their_own_in_every_split(fold: int, tmp_path: Path) -> None:
    folder = write_ravdess(tmp_path / "ravdess", slice(None, None, 5))  # 12 clips an actor
    sizes = {0: (14 * 12, 60, 60), 4: (15 * 12, 60, 48)}[fold]
    outline = _check(folder, sizes, kinds={"voice": "spectrogram"}, fold=fold)
    assert outline.kinds == {"face": "vector", "voice": "spectrogram"}
    assert outline.shapes == {"face": (35,), "voice": (32, 50, 1)}
    assert outline.num_classes == 8
