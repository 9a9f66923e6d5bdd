"""Where the raw files come from and how each is known to be the right one."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipelines.av_mnist.idx import read_images, read_labels
from data_pipelines.av_mnist.noise import NoiseClip, read_noise_clips
from data_pipelines.av_mnist.recordings import Recording, read_recordings
from data_pipelines.errors import DataError


class Source(NamedTuple):
    """One raw file.

    Attributes:
      pattern: file below the manual folder, `*` standing for anything in its name.
      url: public home.
      sha256: digest of the content, hexadecimal: of the decompressed bytes of an IDX file, or of
        the archive's sound files (`archives.content_digest`); None accepts any content.
    """

    pattern: str
    url: str
    sha256: str | None


class Sources(NamedTuple):
    """The raw files; `noise` is None where none is added."""

    train_images: Source
    train_labels: Source
    test_images: Source
    test_labels: Source
    recordings: Source
    noise: Source | None


class RawData(NamedTuple):
    """Checked content of the raw files.

    Attributes:
      train_images: (N, 28, 28) pixels of MNIST's training file.
      train_labels: (N,) in 0..9.
      test_images: (M, 28, 28) pixels of MNIST's test file.
      test_labels: (M,) in 0..9.
      recordings: spoken digits, sorted by file name.
      noise: environmental sounds, sorted by file name; empty where none are added.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]
    recordings: list[Recording]
    noise: list[NoiseClip]


_MNIST_HOME = "https://storage.googleapis.com/cvdf-datasets/mnist"
_FSDD_COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
_FSDD_HOME = "https://github.com/Jakobovski/free-spoken-digit-dataset"
_ESC10_COMMIT = "553c8f1743b9dba6b282e1323c3ca8fa76923448"
_ESC10_HOME = "https://github.com/karolpiczak/ESC-10"


def _mnist(name: str, sha256: str) -> Source:
    """Returns one of MNIST's files."""
    return Source(f"mnist/{name}.gz", f"{_MNIST_HOME}/{name}.gz", sha256)


PUBLISHED = Sources(
    train_images=_mnist(
        "train-images-idx3-ubyte",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    train_labels=_mnist(
        "train-labels-idx1-ubyte",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    test_images=_mnist(
        "t10k-images-idx3-ubyte",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    test_labels=_mnist(
        "t10k-labels-idx1-ubyte",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    # The host packs these archives on request, not always to the same bytes.
    recordings=Source(
        "fsdd/*.tar.gz",
        f"{_FSDD_HOME}/archive/{_FSDD_COMMIT}.tar.gz",
        "8fed8b0b058a7efa7544bbb3e8e98607ecdcbd47a2f0ea31139cab18a6b679c9",
    ),
    noise=Source(
        "esc10/*.tar.gz",
        f"{_ESC10_HOME}/archive/{_ESC10_COMMIT}.tar.gz",
        "236b5ff6e15f64c7b70668db3f48e53e7b47b0d2800fc4000f91b59c30a90b27",
    ),
)


def listed(sources: Sources) -> dict[str, Source]:
    """Returns {name: source} of those that are needed.

    Args:
      sources: of a data set.
    """
    return {name: source for name, source in sources._asdict().items() if source is not None}


def manual_paths(sources: Sources, manual_dir: Path) -> dict[str, Path]:
    """Finds the raw files in a folder.

    Args:
      sources: patterns to look for.
      manual_dir: the folder, holding `mnist/`, `fsdd/` and, for noise, `esc10/`.

    Returns:
      {name of the source: path}.

    Raises:
      DataError: the folder or a file is missing, or a pattern fits several files.
    """
    if not manual_dir.is_dir():
        raise DataError(
            f"manual_dir={manual_dir}: no such folder; name the one that holds mnist/, fsdd/"
            " and, for noise, esc10/, or leave it out to download the files",
            "manual_dir",
        )
    paths: dict[str, Path] = {}
    for name, source in listed(sources).items():
        found = sorted(manual_dir.glob(source.pattern))
        if len(found) != 1:
            raise DataError(
                f"manual_dir: {manual_dir / source.pattern}: found {len(found)} files, expected"
                f" one; get it from {source.url}, or name no folder to download it",
                "manual_dir",
            )
        paths[name] = found[0]
    return paths


def read_sources(
    sources: Sources, paths: dict[str, Path], *, min_train: int, min_test: int
) -> RawData:
    """Reads and checks the raw files.

    Args:
      sources: digests to check against.
      paths: {name of the source: path}.
      min_train: training images needed.
      min_test: test images needed.

    Returns:
      The content.

    Raises:
      DataError: a file is missing, damaged, foreign, too short, or disagrees with its companion.
    """
    digests = {name: source.sha256 for name, source in listed(sources).items()}
    raw = RawData(
        train_images=read_images(paths["train_images"], digests["train_images"]),
        train_labels=read_labels(paths["train_labels"], digests["train_labels"]),
        test_images=read_images(paths["test_images"], digests["test_images"]),
        test_labels=read_labels(paths["test_labels"], digests["test_labels"]),
        recordings=read_recordings(paths["recordings"], digests["recordings"]),
        noise=read_noise_clips(paths["noise"], digests["noise"]) if "noise" in digests else [],
    )
    for kind, images, labels, needed in (
        ("train", raw.train_images, raw.train_labels, min_train),
        ("test", raw.test_images, raw.test_labels, min_test),
    ):
        if len(images) != len(labels):
            raise DataError(
                f"{paths[kind + '_images']}: {len(images)} images but {len(labels)} labels in"
                f" {paths[kind + '_labels']}; fetch both files again from their public home"
            )
        if len(images) < needed:
            raise DataError(
                f"{paths[kind + '_images']}: {len(images)} images, {needed} needed; use the"
                " complete MNIST files"
            )
    return raw
