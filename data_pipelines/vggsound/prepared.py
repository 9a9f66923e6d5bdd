"""Makes VGGSound on disk, once and whole, out of the clips that are there."""

from pathlib import Path
from typing import Any

from absl import logging
from joblib import cpu_count

from data_pipelines.errors import DataError
from data_pipelines.preparing import make_builder, prepare_builder
from data_pipelines.stored import reading
from data_pipelines.vggsound.builder import DEFAULT_CONFIG, VggSound, VggSoundConfig
from data_pipelines.vggsound.missing import LISTING


def prepare(
    data_dir: Path,
    manual_dir: Path | None,
    config: VggSoundConfig = DEFAULT_CONFIG,
    *,
    num_workers: int | None = None,
    max_missing: float = 1.0,
    progress: bool = True,
) -> Any:
    """Makes the data set in `data_dir` unless it is there already.

    Clips that are missing or damaged are left out and listed in `vggsound/{config}/
    missing_clips.txt` below `data_dir`. A data set that was made without some stays as it is when
    they turn up later: a warning tells how many it has, and to remove its folder. What was decoded
    outlives a kill, see `preparing.prepare_builder`.

    Args:
      data_dir: where prepared data sets are kept; made if missing.
      manual_dir: folder that holds `vggsound.csv` and `clips/{id}_{start:06d}.mp4`; None if the
        data set is prepared.
      config: sizes; in one `data_dir`, different ones need different names.
      num_workers: processes that decode clips; None is one for each CPU that this process may use.
      max_missing: share of the clips that may be missing or damaged, 0 to 1.
      progress: shows progress bars where standard error is a terminal.

    Returns:
      The builder of tensorflow-datasets, which knows where the data set lies and what is in it.

    Raises:
      DataError: an argument is out of range, the list of clips cannot be used, there are too few
        clips, or `data_dir` cannot be written to.
    """
    if not 0 <= max_missing <= 1:
        raise DataError(f"max_missing={max_missing}: choose a share from 0 to 1", "max_missing")
    if num_workers is None:
        num_workers = cpu_count()
    if num_workers < 1:
        raise DataError(f"num_workers={num_workers}: choose at least 1", "num_workers")
    builder = make_builder(
        VggSound,
        data_dir,
        config,
        num_workers=num_workers,
        max_missing=max_missing,
        progress=progress,
    )
    folder = Path(builder.data_dir)
    if not folder.exists() and (manual_dir is None or not (manual_dir / "vggsound.csv").is_file()):
        raise DataError(
            f"manual_dir={manual_dir}: VGGSound is not downloaded; name the folder that holds"
            " vggsound.csv and clips/",
            "manual_dir",
        )
    prepare_builder(builder, data_dir, manual_dir=manual_dir, progress=progress)
    # Read anew: another process may have prepared it in the meantime.
    prepared = make_builder(VggSound, data_dir, config)
    info = prepared.info
    with reading(folder, "its description"):
        num_clips, num_missing = (int(info.metadata[key]) for key in ("num_clips", "num_missing"))
        if info.metadata["labels"] != info.features["label"].names:
            raise ValueError("its labels are not those that it was made with")
    if num_missing:
        report = (
            f"{folder}: prepared with {num_clips - num_missing} of {num_clips} clips"
            f" ({folder.parent / LISTING} names the others); when there are more, remove the folder"
            " and it is prepared again"
        )
        if num_missing > max_missing * num_clips:
            raise DataError(f"max_missing={max_missing} allows fewer: {report}", "max_missing")
        logging.warning("%s", report)
    return prepared
