from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from data_pipelines.av_mnist import read_split
from data_pipelines.datasets import MODALITIES, load
from data_pipelines.errors import DataError
from tests.data_pipelines.raw_files import tiny_config, write_raw_files


def test_digits_are_all_of_scikit_learns_images_each_in_one_split(tmp_path: Path) -> None:
    digits = load("digits", data_dir=tmp_path)

    assert digits.modalities == MODALITIES["digits"] == ("upper", "lower")
    assert digits.num_classes == 10
    sizes = {split: len(arrays["label"]) for split, arrays in digits.splits.items()}
    assert sizes == {"train": 1097, "validation": 200, "test": 500}
    rows: list[tuple[float, ...]] = []
    for arrays in digits.splits.values():
        assert arrays["upper"].shape == arrays["lower"].shape == (len(arrays["label"]), 4, 8, 1)
        assert arrays["upper"].dtype == arrays["lower"].dtype == np.float32
        assert arrays["label"].dtype == np.int32
        whole = np.concatenate([arrays["upper"], arrays["lower"]], axis=1)
        assert whole.min() == 0
        assert whole.max() == 1
        labelled = np.column_stack([16 * whole.reshape(-1, 64), arrays["label"]])
        rows += [tuple(row) for row in labelled.tolist()]
    images, labels = load_digits(return_X_y=True)
    expected = np.column_stack([images, labels]).tolist()
    assert sorted(rows) == sorted(tuple(row) for row in expected)


def test_digits_splits_are_stratified_and_the_same_every_time(tmp_path: Path) -> None:
    first, second = (load("digits", data_dir=tmp_path).splits for _ in range(2))

    _, labels = load_digits(return_X_y=True)
    for split, arrays in first.items():
        share = np.bincount(labels) / len(labels)
        counts = np.bincount(arrays["label"])
        assert np.abs(counts - share * len(arrays["label"])).max() <= 2
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, second[split][key])
        np.testing.assert_array_equal(arrays["group"], np.arange(len(arrays["label"])))


def test_av_mnist_rows_share_a_group_if_and_only_if_they_share_a_recording(tmp_path: Path) -> None:
    config = tiny_config()
    splits = load(
        "av_mnist",
        data_dir=tmp_path,
        manual_dir=write_raw_files(tmp_path / "raw"),
        progress=False,
        av_mnist_config=config,
    ).splits
    for split, arrays in splits.items():
        recordings = read_split(tmp_path, split, config=config, progress=False)["recording"]
        groups = arrays["group"]
        np.testing.assert_array_equal(groups[:, None] == groups, recordings[:, None] == recordings)
        # A group has the number of its first row.
        first = [list(recordings).index(recording) for recording in recordings]
        np.testing.assert_array_equal(groups, first)
    assert len(set(splits["train"]["group"].tolist())) < 60  # some do share one


@pytest.mark.parametrize("name", ["digits", "av_mnist"])
def test_first_rows_are_those_of_the_whole(name: str, tmp_path: Path) -> None:
    manual_dir = write_raw_files(tmp_path / "raw")
    keywords: dict[str, Any] = {
        "data_dir": tmp_path,
        "manual_dir": manual_dir,
        "progress": False,
        "av_mnist_config": tiny_config(),
    }
    whole = load(name, **keywords).splits
    part = load(name, num_train=13, num_eval=7, **keywords).splits

    assert len(part["train"]["label"]) == 13
    assert len(part["test"]["label"]) == 7
    for split, arrays in part.items():
        assert set(arrays) == {*MODALITIES[name], "label", "group"}
        for key, array in arrays.items():
            assert array.dtype == (np.float32 if key in MODALITIES[name] else np.int32)
            expected = whole[split][key][: None if split == "validation" else len(array)]
            np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"name": "cifar"}, r"--dataset=cifar: unknown; choose from digits, av_mnist"),
        (
            {"name": "digits", "num_train": 1098},
            r"--num_train=1098: choose between 1 and the 1097 rows",
        ),
        ({"name": "digits", "num_train": 0}, r"--num_train=0: choose between 1"),
        ({"name": "digits", "num_eval": 501}, r"--num_eval=501: choose between 1 and the 500 rows"),
        ({"name": "av_mnist", "num_train": 55_001}, r"--num_train=55001: .* the 55000 rows"),
        ({"name": "av_mnist", "num_eval": 10_001}, r"--num_eval=10001: .* the 10000 rows"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_made(
    keywords: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        load(data_dir=tmp_path, **keywords)
    assert not list(tmp_path.iterdir())
