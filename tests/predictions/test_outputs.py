"""Writers of fused predictions: every format holds the same, and never half of it."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal
from pyarrow import csv

from jacfuse_jax.predictions.outputs import FusedRows, write_fused
from jacfuse_jax.programs import InputError

RNG = np.random.default_rng(0)
NUM_ROWS, NUM_CLASSES = 20, 4
LOGITS = RNG.normal(size=(NUM_ROWS, NUM_CLASSES)).astype(np.float32)
IDS = RNG.permutation(100)[:NUM_ROWS]
LABELS = RNG.integers(NUM_CLASSES, size=NUM_ROWS)


def read_parquet(path):
    table = pq.read_table(path)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    return columns, json.loads(table.schema.metadata[b"jacfuse_jax"])


def read_csv(path):
    columns = csv.read_csv(path).to_pydict()
    names = [f"log_probs_{k}" for k in range(NUM_CLASSES)]
    columns["log_probs"] = np.stack([columns.pop(name) for name in names], axis=1).tolist()
    return columns, json.loads(path.with_name(f"{path.name}.json").read_text())


def read_npz(path):
    with np.load(path) as file:
        columns = {name: file[name].tolist() for name in file}
    return columns, json.loads(columns.pop("jacfuse_jax"))


READERS = {".parquet": read_parquet, ".csv": read_csv, ".npz": read_npz}
METADATA = {"gamma": 0.1, "perturbed": ["audio"]}


class TestWriteFused:
    @pytest.fixture(params=list(READERS))
    def path(self, request, tmp_path):
        return tmp_path / "made" / f"fused{request.param}"

    def batches(self, ids, sizes=(12, 8), dtype=np.float32):
        log_probs = LOGITS.astype(dtype)
        log_probs[3] = np.nan
        for start, size in zip(np.cumsum((0, *sizes)), sizes, strict=False):
            rows = slice(start, start + size)
            yield FusedRows(
                pa.array(ids[rows]),
                LABELS[rows].astype(np.int32),
                LOGITS[rows, 0].astype(dtype),
                log_probs[rows],
            )

    @pytest.mark.parametrize("ids", [IDS, IDS.astype(str)], ids=["numbers", "texts"])
    def test_holds_what_was_written(self, ids, path, dtype):
        write_fused(path, pa.array(ids), self.batches(ids, dtype=dtype), METADATA)
        columns, metadata = READERS[path.suffix](path)
        assert sorted(columns) == ["ids", "jacobian_norm", "log_probs", "prediction"]
        if path.suffix == ".csv" and ids is not IDS:
            columns["ids"] = [str(x) for x in columns["ids"]]  # a table of texts has no types
        assert columns["ids"] == ids.tolist()
        assert columns["prediction"] == LABELS.tolist()
        assert_array_equal(np.array(columns["jacobian_norm"], dtype), LOGITS[:, 0])
        expected = LOGITS.copy()
        expected[3] = np.nan
        assert_array_equal(np.array(columns["log_probs"], dtype), expected)
        assert metadata == METADATA

    def test_that_fails_leaves_what_was_there(self, path):
        def fail():
            yield from self.batches(IDS, (12,))
            raise KeyboardInterrupt

        write_fused(path, pa.array(IDS), self.batches(IDS), METADATA)
        before = {file: file.read_bytes() for file in path.parent.iterdir()}
        with pytest.raises(KeyboardInterrupt):
            write_fused(path, pa.array(IDS), fail(), {})
        assert {file: file.read_bytes() for file in path.parent.iterdir()} == before

    def test_that_fails_leaves_no_half(self, path):
        def fail():
            yield from self.batches(IDS, (12,))
            raise OSError("no space left")

        with pytest.raises(OSError, match="no space left"):
            write_fused(path, pa.array(IDS), fail(), {})
        assert list(path.parent.iterdir()) == []

    def test_refuses_texts_that_npz_would_pad(self, tmp_path):
        ids = pa.array([*map(str, range(20_000)), "é" * 5000])
        path = tmp_path / "fused.npz"
        with pytest.raises(InputError, match="20001 ids are as long as the longest, of 5000 char"):
            write_fused(path, ids, iter(()), {})
        assert list(tmp_path.iterdir()) == []
