"""Makes RAVDESS on disk, once and whole."""

from pathlib import Path
from typing import Any

from joblib import cpu_count

from data_pipelines.errors import DataError
from data_pipelines.preparing import make_builder, prepare_builder
from data_pipelines.ravdess.builder import DEFAULT_CONFIG, Ravdess, RavdessConfig


def prepare(
    data_dir: Path,
    manual_dir: Path | None = None,
    config: RavdessConfig = DEFAULT_CONFIG,
    *,
    num_workers: int | None = None,
    progress: bool = True,
) -> Any:
    """Makes the data set in `data_dir` unless it is there already.

    Clips are decoded in parallel into a folder that outlives a kill: the next call decodes what is
    missing. `preparing.prepare_builder` says what else happens when it is interrupted, or called
    twice at once.

    Args:
      data_dir: where prepared data sets and downloads are kept; made if missing.
      manual_dir: folder with the 25 archives as published, or with Actor_01 to Actor_24 unpacked;
        None downloads them, about 13 GB.
      config: sizes; in one `data_dir`, different ones need different names.
      num_workers: processes that decode; None is one for each CPU that this process may use.
      progress: shows progress bars where standard error is a terminal.

    Returns:
      The builder of tensorflow-datasets, which knows where the data set lies and what is in it.

    Raises:
      DataError: `num_workers` is below 1; archives are missing, damaged or foreign, or cannot be
        downloaded; clips cannot be decoded, which is said after all have been tried; `data_dir`
        cannot be written to, or holds something else in the place of the data set.
    """
    if num_workers is None:
        num_workers = cpu_count()
    if num_workers < 1:
        raise DataError(f"num_workers={num_workers}: choose at least 1", "num_workers")
    builder = make_builder(Ravdess, data_dir, config, num_workers=num_workers, progress=progress)
    prepare_builder(builder, data_dir, manual_dir=manual_dir, progress=progress)
    # Read anew: another process may have prepared it in the meantime.
    return make_builder(Ravdess, data_dir, config)
