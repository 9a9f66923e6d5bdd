"""Processes that prepare data sets side by side, or are killed in the middle.

They are forked from one that has imported everything: a new Python takes seconds to start.
"""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, cast

import tensorflow_datasets as tfds

from data_pipelines import av_mnist, ravdess, vggsound
from data_pipelines.ravdess import builder as ravdess_builder
from data_pipelines.vggsound import builder as vggsound_builder
from data_pipelines.vggsound import decoding as vggsound_decoding
from tests.data_pipelines import media_files, raw_files, vggsound_files

Prepare = Callable[[Path, Path, str], None]


def start(prepare_fn: Prepare, data_dir: Path, manual_dir: Path, moment: str) -> ForkServerProcess:
    """Starts one of the functions below, that dies at that moment, or not at all if it has none."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=prepare_fn, args=(data_dir, manual_dir, moment))
    process.start()
    return process


def exit_code(process: ForkServerProcess) -> int | None:
    """Waits for the process; negative is the signal that killed it."""
    process.join(120)
    return process.exitcode


def prepare_av_mnist(data_dir: Path, manual_dir: Path, moment: str) -> None:
    """Dies while it writes "train" or "test", or when all is "written"."""
    generate: Any = av_mnist.AvMnist._generate_examples
    size = {"train": 60, "test": 20}.get(moment)

    def generate_and_die(self: Any, images: Any, *columns: Any) -> Any:
        for key, example in generate(self, images, *columns):
            yield key, example
            if key == 5 and len(images) == size:
                _die()

    cast(Any, av_mnist.AvMnist)._generate_examples = generate_and_die
    if moment == "written":
        write: Any = tfds.core.DatasetInfo.write_to_directory
        cast(Any, tfds.core.DatasetInfo).write_to_directory = lambda *args: _die(write(*args))
    av_mnist.prepare(data_dir, manual_dir, raw_files.tiny_config(), progress=False)


def prepare_ravdess(data_dir: Path, manual_dir: Path, moment: str) -> None:
    """Dies while it is "decoding", "writing" or "cleaning" up."""
    if moment == "decoding":
        ravdess_builder.decode_clip = _die_at(20, ravdess_builder.decode_clip)
    elif moment == "writing":
        generate: Any = ravdess.Ravdess._generate_examples

        def generate_and_die(self: Any, clips: Any) -> Any:
            for row, example in generate(self, clips):
                yield row, example
                if row == 5:
                    _die()

        cast(Any, ravdess.Ravdess)._generate_examples = generate_and_die
    elif moment == "cleaning":
        shutil.rmtree = _die
    config = media_files.tiny_ravdess_config()
    ravdess.prepare(data_dir, manual_dir, config, num_workers=1, progress=False)


def prepare_vggsound(data_dir: Path, manual_dir: Path, moment: str) -> None:
    """Dies while it is "decoding" or "writing"."""
    if moment == "decoding":
        vggsound_decoding.read_frames = _die_at(15, vggsound_decoding.read_frames)
    elif moment == "writing":
        vggsound_builder.read_decoded = _die_at(30, vggsound_builder.read_decoded)
    config = vggsound_files.tiny_config()
    vggsound.prepare(data_dir, manual_dir, config, num_workers=1, progress=False)


def _die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at(count: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, of which call number `count` kills the process."""
    calls: list[Any] = []

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        calls.append(arguments)
        return _die() if len(calls) == count else function(*arguments, **keywords)

    return wrapped
