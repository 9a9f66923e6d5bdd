import errno
import io
import os
import resource
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from numpy.typing import NDArray

from data_pipelines import stored
from data_pipelines.errors import DataError
from data_pipelines.stored import StoredColumn, StoredSplit, summarise
from jacfuse_jax.training import iterate_batches

_NUM_ROWS = 11
_SHAPE = (4, 6, 1)
# All 256 values come.
_VALUES = np.random.default_rng(0).permutation(256).astype(np.uint8)
_PIXELS = np.resize(_VALUES, (_NUM_ROWS, *_SHAPE))


class _Pictures(tfds.core.GeneratorBasedBuilder):
    """Random pictures."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        picture = tfds.features.Tensor(shape=_SHAPE, dtype=np.uint8, encoding="bytes")
        features = {"picture": picture, "label": tfds.features.Scalar(np.int32)}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    # The base class leaves the type open.
    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in range(_NUM_ROWS):
            yield i, {"picture": _PIXELS[i], "label": 10 * i}


def _builder(data_dir: Path) -> Any:
    """Prepares the pictures in four files."""
    builder: Any = _Pictures(data_dir=data_dir)
    tfds.display_progress_bar(False)
    with redirect_stdout(io.StringIO()):
        builder.download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(num_shards=4),
        )
    return builder


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> StoredSplit:
    return StoredSplit(_builder(tmp_path_factory.mktemp("data")), "train")


@pytest.fixture
def column(split: StoredSplit) -> StoredColumn:
    return StoredColumn(split, "picture", np.arange(_NUM_ROWS))


_EAGER: NDArray[np.float32] = (_PIXELS / 255).astype(np.float32)


@pytest.mark.parametrize("chunk_rows", [1, 4, 256])
def test_rows_come_in_the_order_asked_for(
    column: StoredColumn, chunk_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "_CHUNK_ROWS", chunk_rows)
    for rows in ([0], [10, 0, 3, 3, 7], range(_NUM_ROWS), [-1, -11]):
        actual = column[np.array(rows)]
        assert actual.dtype == np.float32
        np.testing.assert_array_equal(actual, _EAGER[np.array(rows)])
    bright = _PIXELS[:, 0, 0, 0] > 99
    np.testing.assert_array_equal(column[bright], _EAGER[bright])
    assert column[np.zeros(0, int)].shape == (0, *_SHAPE)


@pytest.mark.parametrize("part", [slice(None), slice(2, 9), slice(3), slice(5, 99), slice(4, 4)])
def test_a_slice_is_a_column_of_these_rows(column: StoredColumn, part: slice) -> None:
    actual = column[part]
    assert isinstance(actual, StoredColumn)
    assert len(actual) == len(_EAGER[part])
    assert actual.shape == _EAGER[part].shape
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(actual), _EAGER[part])
    np.testing.assert_array_equal(np.asarray(actual[1:]), _EAGER[part][1:])


def test_a_column_may_hold_some_rows_in_any_order(split: StoredSplit) -> None:
    rows = np.array([8, 2, 5])
    column = StoredColumn(split, "picture", rows)
    np.testing.assert_array_equal(np.asarray(column), _EAGER[rows])
    np.testing.assert_array_equal(column[np.array([2, 0])], _EAGER[[5, 8]])
    with pytest.raises(IndexError):
        column[np.array([3])]


def test_arrays_of_a_column_take_the_type_asked_for(column: StoredColumn) -> None:
    assert np.asarray(column).dtype == np.float32
    assert np.asarray(column, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="always a copy"):
        np.array(column, copy=False)


def test_batches_of_a_column_are_those_of_the_array(column: StoredColumn) -> None:
    batches = [
        list(iterate_batches({"picture": pictures}, 4, shuffle_seed=1))
        for pictures in (column, _EAGER)
    ]
    for actual, expected in zip(*batches, strict=True):
        np.testing.assert_array_equal(actual["picture"], expected["picture"])


def test_a_column_is_a_leaf(column: StoredColumn) -> None:
    halves = jax.tree.map(lambda leaf: leaf[:5], {"picture": column, "label": np.arange(11)})
    assert jax.tree.map(len, halves) == {"picture": 5, "label": 5}


@pytest.mark.parametrize("chunk_rows", [3, 256])
def test_a_summary_is_that_of_the_array(
    column: StoredColumn, chunk_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "_CHUNK_ROWS", chunk_rows)
    for rows in (column, _EAGER):
        low, high, mean, stddev = summarise(rows)
        assert (low, high) == (_EAGER.min(), _EAGER.max())
        assert mean.dtype == np.float32
        # Sums in float64, so that both round to the same float32 but for ties.
        np.testing.assert_allclose(mean, _EAGER.mean(axis=0, dtype=np.float64), rtol=1e-7)
        np.testing.assert_allclose(stddev, [_EAGER.std(dtype=np.float64)], rtol=1e-7)


def test_spreads_of_channels_far_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_CHUNK_ROWS", 4)
    rows = np.random.default_rng(0).normal(size=(11, 5, 3)) * [1e-3, 1.0, 0.0] + [1e4, -2.0, 0.1]
    stddev = summarise(rows.astype(np.float32)).stddev
    assert stddev.dtype == np.float32
    expected = rows.astype(np.float32).std(axis=(0, 1), dtype=np.float64)
    np.testing.assert_allclose(stddev, expected, rtol=1e-6, atol=1e-12)
    of_vectors = summarise(rows[:, 0]).stddev
    np.testing.assert_allclose(of_vectors, rows[:, 0].std(axis=0), rtol=1e-6, atol=1e-12)


def test_what_cannot_be_a_column_is_refused(column: StoredColumn, split: StoredSplit) -> None:
    with pytest.raises(IndexError):
        column[np.array([_NUM_ROWS])]
    with pytest.raises(TypeError, match="slice or a one-dimensional array, got 3"):
        column[3]  # pyright: ignore[reportArgumentType, reportCallIssue]
    with pytest.raises(TypeError, match="label must be uint8, got .*int32"):
        StoredColumn(split, "label", np.arange(3))


def test_other_features_are_read_as_they_are(split: StoredSplit) -> None:
    rows = np.array([4, 1, 9])
    columns = split.read(["label", "picture"], rows)
    assert columns["label"] == [40, 10, 90]
    np.testing.assert_array_equal(np.stack(columns["picture"]), _PIXELS[rows])


def _halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _scramble(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(b"".join(bytes([byte ^ 0x55]) for byte in content))


@pytest.mark.parametrize("damage", [_halve, _scramble, Path.unlink])
def test_damage_is_named_with_its_remedy(damage: Any, tmp_path: Path) -> None:
    builder = _builder(tmp_path)
    for file in tmp_path.rglob("*train.array_record*"):
        damage(file)
    with pytest.raises(DataError, match=r"data_dir: \S+ is damaged .*train.*remove") as caught:
        np.asarray(StoredColumn(StoredSplit(builder, "train"), "picture", np.arange(_NUM_ROWS)))
    assert "\n" not in str(caught.value)


def test_what_the_system_refuses_is_not_called_damage(tmp_path: Path) -> None:
    builder = _builder(tmp_path)
    column = StoredColumn(StoredSplit(builder, "train"), "picture", np.arange(3))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(DataError, match=r"cannot be read .*train, Too many open") as caught:
            np.asarray(column)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "remove" not in str(caught.value)
    assert "\n" not in str(caught.value)
    again = StoredColumn(StoredSplit(builder, "train"), "picture", np.arange(3))
    np.testing.assert_array_equal(np.asarray(again), _EAGER[:3])


class _Failing:
    """Records that cannot be had."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getitems__(self, rows: list[int]) -> list[bytes]:
        raise self._error


def test_other_failures_are_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = StoredSplit(_builder(tmp_path), "train")
    stale = OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    gone = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    cases: list[tuple[Exception, type[Exception], str]] = [
        (MemoryError("no room"), MemoryError, "no room"),
        (stale, DataError, r"cannot be read \(split train, Stale file handle\)"),
        (gone, DataError, "is damaged"),
    ]
    for error, raised, message in cases:
        monkeypatch.setattr(split, "_records", _Failing(error))
        with pytest.raises(raised, match=message):
            split.read(["label"], np.arange(3))
