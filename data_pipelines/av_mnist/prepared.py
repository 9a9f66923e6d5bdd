"""Makes AV-MNIST on disk, once and whole, and reads it back."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from data_pipelines.av_mnist.builder import DEFAULT_CONFIG, AvMnist, AvMnistConfig
from data_pipelines.av_mnist.spectrogram import pixel_values
from data_pipelines.preparing import make_builder, prepare_builder
from data_pipelines.stored import reading


def prepare(
    data_dir: Path,
    manual_dir: Path | None = None,
    config: AvMnistConfig = DEFAULT_CONFIG,
    *,
    progress: bool = True,
) -> Any:
    """Makes the data set in `data_dir` unless it is there already.

    `preparing.prepare_builder` says what happens when it is interrupted, or called twice at once.

    Args:
      data_dir: where prepared data sets and downloads are kept; made if missing.
      manual_dir: folder with the raw files in `mnist/`, `fsdd/` and, for noise, `esc10/`; None
        downloads them.
      config: sizes, seed and raw files; in one `data_dir`, different ones need different names.
      progress: shows progress bars where standard error is a terminal.

    Returns:
      The builder of tensorflow-datasets, which knows where the data set lies and what is in it.

    Raises:
      DataError: raw files are missing, damaged or foreign, or cannot be downloaded; `data_dir`
        cannot be written to, or holds something else in the place of the data set.
    """
    builder = make_builder(AvMnist, data_dir, config)
    prepare_builder(builder, data_dir, manual_dir=manual_dir, progress=progress)
    # Read anew: another process may have prepared it in the meantime.
    return make_builder(AvMnist, data_dir, config)


def read_split(
    data_dir: Path,
    split: str,
    *,
    num_examples: int | None = None,
    config: AvMnistConfig = DEFAULT_CONFIG,
    progress: bool = True,
) -> dict[str, NDArray[Any]]:
    """Reads the first rows of a prepared split, in its fixed order.

    Args:
      data_dir: as for `prepare`.
      split: "train", "validation" or "test".
      num_examples: N, at most the size of the split; None reads all.
      config: as for `prepare`.
      progress: shows a progress bar where standard error is a terminal.

    Returns:
      "image": (N, 28, 28, 1) float32, reduced; "raw_image": what it is reduced from, in [0, 1];
      "audio": (N, 112, 112, 1) float32 in [0, 1]; "label": (N,) int32; "index": (N,) int32, the
      image's position in its MNIST file; "recording": (N,) str, the recording's file name; "noise":
      (N,) str, the id of the clip that the noise is cut out of, "" where there is none.

    Raises:
      DataError: what was prepared cannot be read any more.
    """
    builder = make_builder(AvMnist, data_dir, config)
    with reading(Path(builder.data_dir), f"split {split}"):
        source = builder.as_data_source(split)
        positions = range(len(source) if num_examples is None else num_examples)
        rows: list[dict[str, Any]] = [
            source[i]
            for i in tqdm(positions, desc=f"Reading {split}", disable=None if progress else True)
        ]
    return {
        "image": np.stack([row["image"] for row in rows]),
        "raw_image": pixel_values(np.stack([row["raw_image"] for row in rows])),
        "audio": pixel_values(np.stack([row["audio"] for row in rows])),
        "label": np.array([row["label"] for row in rows], np.int32),
        "index": np.array([row["index"] for row in rows], np.int32),
        "recording": np.array([row["recording"].decode() for row in rows]),
        "noise": np.array([row["noise"].decode() for row in rows]),
    }
