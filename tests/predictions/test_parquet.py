"""Tables in Parquet that several files hold."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal

from jacfuse_jax.predictions.inputs import Names, open_predictions
from jacfuse_jax.predictions.parquet import is_table, open_table, read_column
from jacfuse_jax.programs import InputError
from tests.predictions.formats import write_parquet

RNG = np.random.default_rng(0)
NUM_ROWS, NUM_CLASSES = 24, 3
LOGITS = RNG.normal(size=(NUM_ROWS, NUM_CLASSES)).astype(np.float32)
IDS = RNG.permutation(100)[:NUM_ROWS]
LABELS = RNG.integers(NUM_CLASSES, size=NUM_ROWS)


@pytest.fixture
def folder(tmp_path):
    """Twelve parts as Dask names them, and what Spark, HDFS and people leave beside them."""
    folder = tmp_path / "audio.parquet"
    folder.mkdir()
    for i in range(12):
        rows = slice(2 * i, 2 * i + 2)
        write_parquet(
            folder / f"part.{i}.parquet",
            {"logits": LOGITS[rows], "uid": IDS[rows], "labels": LABELS[rows]},
        )
    pq.write_table(pq.read_table(folder / "part.0.parquet")[:0], folder / "part.12.parquet")
    for name in ("_SUCCESS", ".part.0.parquet.crc", "._part.0.parquet", "_part.parquet", "notes"):
        (folder / name).write_text("no table")
    return folder


@pytest.fixture
def opened(scratch_fn):
    return lambda path, names=None: open_predictions(
        path, scratch_fn=scratch_fn, names=names or Names()
    )


class TestFolder:
    def test_is_one_table_in_the_order_of_its_parts(self, folder, opened):
        predictions = opened(folder)
        assert_array_equal(predictions.logits.read(), LOGITS)
        assert_array_equal(predictions.labels, LABELS)
        assert list(predictions.candidates) == ["uid"]
        assert_array_equal(predictions.candidates["uid"]().to_numpy(), IDS)

    def test_of_pandas_that_names_parts_by_a_column(self, tmp_path, opened):
        frame = pd.DataFrame({"logits": list(LOGITS), "ids": IDS, "split": LABELS, "no": IDS})
        frame.to_parquet(tmp_path / "audio", partition_cols=["split", "no"])
        predictions = opened(tmp_path / "audio")
        order = [IDS.tolist().index(x) for x in predictions.ids.to_pylist()]
        assert sorted(order) == list(range(NUM_ROWS))
        assert_array_equal(predictions.logits.read(), LOGITS[order])
        assert predictions.unused == ["split", "no"]
        with pytest.raises(InputError, match="audio: only folders' names tell split; save it as a"):
            opened(tmp_path / "audio", Names(labels="split"))

    def test_of_folders_of_other_tables_is_none(self, folder):
        assert is_table(folder)
        assert not is_table(folder.parent)

    def test_that_is_being_written(self, folder, opened):
        (folder / "_temporary").mkdir()
        with pytest.raises(InputError, match="audio.parquet holds _temporary: it is still being"):
            opened(folder)

    def test_of_two_formats(self, folder, opened):
        np.save(folder / "logits.npy", LOGITS)
        with pytest.raises(InputError, match="audio.parquet holds .npy and .parquet files; keep"):
            opened(folder)

    @pytest.mark.parametrize("share", [0, 0.5, 0.99])
    def test_of_a_part_that_is_not_whole(self, share, folder, opened):
        part = folder / "part.7.parquet"
        part.write_bytes(part.read_bytes()[: int(share * part.stat().st_size)])
        with pytest.raises(InputError, match=r"part\.7\.parquet is not a whole Parquet file"):
            opened(folder)

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            (
                {"logits": LOGITS, "uid": IDS},
                r"part\.7\.parquet and .*part\.0\.parquet .* labels; wr",
            ),
            ({"labels": IDS, "uid": IDS}, r"only one has logits; write all parts alike"),
            (
                {"logits": LOGITS.astype(float), "uid": IDS, "labels": LABELS},
                r"part\.7\.parquet: logits is list<.*double>, but list<.*float> in .*part\.0\.p",
            ),
            (
                {"logits": LOGITS, "uid": IDS.astype(str), "labels": LABELS},
                r"part\.7\.parquet: uid is (large_)?string, but int64 in .*part\.0\.parquet; write",
            ),
            (
                {"logits": LOGITS[:, 1:], "uid": IDS, "labels": LABELS},
                "logits has rows that are null, hold a null or differ in length",
            ),
        ],
    )
    def test_of_parts_that_differ(self, columns, message, folder, opened):
        write_parquet(folder / "part.7.parquet", columns)
        with pytest.raises(InputError, match=message):
            opened(folder)


def test_a_column_of_weights_is_no_layer(tmp_path, opened):
    write_parquet(tmp_path / "audio.parquet", {"logits": LOGITS, "weight": IDS})
    predictions = opened(tmp_path / "audio.parquet")
    assert predictions.heads == predictions.candidates == {}
    assert predictions.unused == ["weight"]


def test_rows_are_read_some_at_a_time(folder, tmp_path):
    path = tmp_path / "one.parquet"
    pq.write_table(pa.table({"uid": np.arange(10)}), path, row_group_size=10)
    batches = [batch.to_pylist() for batch in read_column(open_table(path), "uid", num_rows=4)]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    batches = list(read_column(open_table(folder), "uid"))
    assert [len(batch) for batch in batches] == [2] * 12
