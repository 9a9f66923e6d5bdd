"""What the binary that fuses predictions needs: said beforehand, and refused if it is not free."""

import shutil
from typing import NamedTuple

import numpy as np
import psutil
import pytest

from jacfuse_jax.predictions.extent import measure_predictions
from jacfuse_jax.predictions.inputs import open_predictions
from jacfuse_jax.programs import resources
from tests.predictions.formats import WRITERS
from tests.predictions.runs import error_of, fuse

RNG = np.random.default_rng(0)
NUM_ROWS, NUM_CLASSES = 3000, 20
LOGITS = RNG.normal(size=(NUM_ROWS, NUM_CLASSES)).astype(np.float32)
IDS = np.array([f"v{i:05}" for i in range(NUM_ROWS)])


class Memory(NamedTuple):
    available: float


class Disk(NamedTuple):
    free: float


@pytest.fixture
def needed(monkeypatch):
    """{"memory", "disk"} of runs that follow."""
    found = {}

    def check(memory, folders, *, remedy):
        assert remedy
        (disk,) = folders.values()
        found.update(memory=memory, disk=disk)

    monkeypatch.setattr(resources, "check", check)
    return found


@pytest.mark.parametrize("kind", WRITERS)
def test_headers_tell_how_large_predictions_are(kind, tmp_path):
    path = tmp_path / f"audio.{kind}"
    files = []

    def make_scratch():
        files.append((tmp_path / f"scratch{len(files)}").open("w+b"))
        return files[-1]

    for with_ids in (False, True):
        arrays = {"logits": LOGITS, **({"ids": np.arange(NUM_ROWS)} if with_ids else {})}
        shutil.rmtree(path, ignore_errors=True)
        WRITERS[kind](path, arrays)
        extent = measure_predictions(path)
        assert extent[:3] == (NUM_ROWS, NUM_CLASSES, 4)
        assert extent.may_have_ids == with_ids
        unpacked = -sum(file.tell() for file in files)
        open_predictions(path, scratch_fn=make_scratch)
        unpacked += sum(file.seek(0, 2) for file in files)
        # A header, and ids that are looked at twice where they are not named.
        assert unpacked - 1000 <= extent.unpacked_bytes <= unpacked + with_ids * 9 * NUM_ROWS
    for file in files:
        file.close()


@pytest.mark.parametrize("ending", ["parquet", "csv", "npz"])
def test_output_takes_what_is_said(ending, needed, tmp_path):
    for name in ("audio", "video"):
        np.save(tmp_path / f"{name}.npy", LOGITS)
    output = tmp_path / f"fused.{ending}"
    inputs = [f"--input={name}={tmp_path}/{name}.npy" for name in ("audio", "video")]
    fuse(*inputs, f"--output={output}")
    assert output.stat().st_size <= needed["disk"] <= 2 * output.stat().st_size
    assert needed["memory"] == 0.6e9 + 8 * NUM_ROWS


def test_ids_and_choices_take_memory(needed, tmp_path):
    folder = tmp_path / "audio"
    labels = RNG.integers(NUM_CLASSES, size=NUM_ROWS)
    WRITERS["folder"](folder, {"logits": LOGITS, "labels": labels, "ids": IDS})
    arguments = (f"--input=audio={folder}", "--perturbed=audio", f"--output={tmp_path}/fused.npz")
    fuse(*arguments)
    assert needed["memory"] == 0.6e9 + 200 * NUM_ROWS
    fuse(*arguments, "--join=position", "--contamination=auto")
    assert needed["memory"] == 0.6e9 + (8 + 100 * NUM_CLASSES) * NUM_ROWS


def test_what_does_not_fit_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    np.save(tmp_path / "audio.npy", LOGITS)
    output = tmp_path / "new" / "fused.npz"
    arguments = (f"--input=audio={tmp_path}/audio.npy", f"--output={output}")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(0.5e9))
    assert "of memory are needed and" in error_of(*arguments)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(4e9))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(1000))
    assert error_of(*arguments).startswith(f"{output.parent}: about ")
    assert not output.parent.exists()


def test_classes_that_are_united_take_what_is_said(needed, tmp_path):
    for name, first in (("audio", 0), ("video", 15)):
        classes = np.array([f"class {k}" for k in range(first, first + NUM_CLASSES)])
        np.savez(tmp_path / f"{name}.npz", logits=LOGITS, classes=classes)
    output = tmp_path / "fused.parquet"
    inputs = [f"--input={name}={tmp_path}/{name}.npz" for name in ("audio", "video")]
    fuse(*inputs, "--classes=unite", f"--output={output}")
    unpacked = 2 * LOGITS.nbytes
    assert output.stat().st_size <= needed["disk"] - unpacked <= 2 * output.stat().st_size
