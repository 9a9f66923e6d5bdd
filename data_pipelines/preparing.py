"""Makes a data set on disk with its tensorflow-datasets builder, once and whole."""

import io
import shutil
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from filelock import FileLock
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder
from tensorflow_datasets.core.download import downloader

from data_pipelines.errors import DataError
from data_pipelines.stored import reading

# With ten attempts, the default, it takes over three minutes to find that there is no network.
downloader.MAX_RETRIES = 4


class ArrayRecordBuilder(FileReaderBuilder, skip_registration=True):
    """A builder that writes array_record files, which needs no TensorFlow.

    To be inherited from in front of a builder of tensorflow-datasets that generates examples.
    """

    def __init__(self, *, file_format: Any = None, **keywords: Any) -> None:
        """Makes the builder.

        Args:
          file_format: of what is to be written; None is array_record, or what is there already.
          **keywords: of the base class, such as data_dir and config.
        """
        super().__init__(file_format=file_format, **keywords)
        if file_format is None and not self.info.initialized:
            self.info.set_file_format("array_record", override=True)


def make_builder(builder_class: Any, data_dir: Path, config: Any, **keywords: Any) -> Any:
    """Returns a builder, which knows of what it built before.

    Args:
      builder_class: of tensorflow-datasets.
      data_dir: where prepared data sets are kept.
      config: of the builder.
      **keywords: further arguments of the class.

    Returns:
      The builder, as Any: decorators hide the true types of its methods.

    Raises:
      DataError: what it built is damaged.
    """
    folder = Path(data_dir) / builder_class.name / config.name / str(builder_class.VERSION)
    with reading(folder, "its description"):
        return builder_class(data_dir=data_dir, config=config, **keywords)


def prepare_builder(
    builder: Any, data_dir: Path, *, manual_dir: Path | None = None, progress: bool = True
) -> None:
    """Makes a data set in `data_dir` unless it is there already.

    It is written to a folder of its own that is renamed when complete, so an interrupted one is
    never taken for a finished one; the next call removes what it left. Two processes may prepare
    the same data set at once: the second waits for the first. Where it is there already nothing is
    written, so it may lie on storage that can only be read.

    Args:
      builder: of tensorflow-datasets, made with this `data_dir`.
      data_dir: where prepared data sets, and in `downloads/{data set}` downloads, are kept; made if
        missing.
      manual_dir: folder with the raw files; None downloads them.
      progress: shows progress bars where standard error is a terminal.

    Raises:
      DataError: `manual_dir` is missing; `data_dir` cannot be written to, or holds something else
        in the place of the data set; what the builder raises about raw files.
    """
    tfds.display_progress_bar(progress and sys.stderr.isatty())
    folder = Path(builder.data_dir)
    if is_prepared(builder) and not decoded_dir(builder).exists():
        return
    # The lock is that of one data set: others may be downloading.
    downloads = Path(data_dir) / "downloads" / builder.name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # The system releases it however the process ends.
        claim = FileLock(folder.parent.parent / "lock").acquire()
    except OSError as error:
        reason = error.strerror
        raise DataError(
            f"data_dir={data_dir}: {reason}; name a folder to write to", "data_dir"
        ) from None
    with claim:
        if folder.exists() and not is_prepared(builder):
            raise DataError(f"{folder}: not a prepared data set; remove the folder")
        if not folder.exists():
            if manual_dir is not None and not Path(manual_dir).is_dir():
                raise DataError(
                    f"manual_dir={manual_dir}: no such folder; name the one with the raw files,"
                    " or leave it out to download them",
                    "manual_dir",
                )
            # Nobody else is at work while the lock is held, so these are remains of a killed
            # process.
            for remains in [*folder.parent.glob("incomplete.*"), *downloads.rglob("*.tmp.*")]:
                shutil.rmtree(remains) if remains.is_dir() else remains.unlink()
            # What is printed here is that all sizes are unknown; progress bars go to stderr.
            with redirect_stdout(io.StringIO()):
                builder.download_and_prepare(
                    download_dir=downloads,
                    download_config=tfds.download.DownloadConfig(manual_dir=manual_dir),
                )
        # Here as well for a process that was killed after the last renaming.
        if decoded_dir(builder).exists():
            shutil.rmtree(decoded_dir(builder))


def is_prepared(builder: Any) -> bool:
    """Tells whether a data set is there; TFDS would log a warning where it is not."""
    return (Path(builder.data_dir) / "dataset_info.json").is_file()


def decoded_dir(builder: Any) -> Path:
    """Returns the folder for decoded clips: it outlives a kill, until the data set is complete."""
    # While the builder writes, its own folder is another one below the same parent.
    return Path(builder.data_dir).parent / f"decoded.{builder.version}"


def bytes_feature(*shape: int) -> tfds.features.Tensor:
    """Returns a feature of 8-bit values: bytes are read seven times as fast as numbers, or PNG."""
    return tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="bytes")


def download(dl_manager: tfds.download.DownloadManager, urls: Mapping[str, str]) -> dict[str, Path]:
    """Downloads what has not been downloaded yet.

    Args:
      dl_manager: of a builder.
      urls: {name: address}.

    Returns:
      {name: path}.

    Raises:
      DataError: a download failed.
    """
    try:
        # One after the other: when one fails, none is still under way.
        return {name: Path(dl_manager.download(url)) for name, url in urls.items()}
    except (OSError, tfds.download.DownloadError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"manual_dir is not given, and the download failed ({reason}); check the network, or"
            " get the files in another way and name their folder",
            "manual_dir",
        ) from None


def forget_download(path: Path) -> None:
    """Removes a downloaded file that turned out to be wrong, so that it is fetched anew."""
    path.unlink()
    # Else TFDS insists on the same bytes.
    path.with_name(path.name + ".INFO").unlink(missing_ok=True)
