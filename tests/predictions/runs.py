"""Runs of the binary that fuses predictions, on small inputs."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from absl import flags

from jacfuse_jax.predictions import __main__ as program
from jacfuse_jax.predictions.flags import define_flags
from jacfuse_jax.programs.command_line import parse_flags

RNG = np.random.default_rng(0)
NUM_ROWS, NUM_CLASSES = 40, 5
LABELS = RNG.integers(NUM_CLASSES, size=NUM_ROWS)
AUDIO, VIDEO = (
    (RNG.normal(size=(NUM_ROWS, NUM_CLASSES)) + 2 * np.eye(NUM_CLASSES)[LABELS]).astype(np.float32)
    for _ in range(2)
)
ROOT = Path(__file__).parents[2]
KERNEL = RNG.normal(size=(7, NUM_CLASSES)).astype(np.float32)


def write_inputs(folder: Path) -> tuple[str, str]:
    """Flags of two inputs: audio with labels and kernel, video in another order."""
    order = RNG.permutation(NUM_ROWS)
    ids = np.arange(NUM_ROWS) + 100
    np.savez(folder / "audio.npz", logits=AUDIO, ids=ids, labels=LABELS, kernel=KERNEL)
    safetensors.numpy.save_file(
        {"logits": VIDEO[order], "ids": ids[order]}, folder / "video.safetensors"
    )
    return f"--input=audio={folder}/audio.npz", f"--input=video={folder}/video.safetensors"


def fuse(*arguments: object) -> None:
    """In this process."""
    values = flags.FlagValues()
    define_flags(values)
    program.main(parse_flags(["predictions", *map(str, arguments)], values), values)


def error_of(*arguments: object) -> str:
    """The message with which the binary ends."""
    with pytest.raises(SystemExit) as caught:
        fuse(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("error: ")
    return message.removeprefix("error: ")


def start(*arguments: object) -> "subprocess.Popen[str]":
    """In a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "jacfuse_jax.predictions", *map(str, arguments)],
        cwd=ROOT,
        # One that is killed might leave half a compiled program for others.
        env={**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
