"""The tensorflow-datasets builder of VGGSound; it neither needs nor uses TensorFlow."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, cast

import numpy as np
import tensorflow_datasets as tfds
from tqdm.auto import tqdm

from data_pipelines.media.decode import decode_all, read_decoded
from data_pipelines.preparing import ArrayRecordBuilder, bytes_feature, decoded_dir
from data_pipelines.vggsound.clips import Clip, read_clips, split_clips
from data_pipelines.vggsound.decoding import decode_clip
from data_pipelines.vggsound.missing import LISTING, ClipFile, find_clips, report_missing

# TFDS holds a shard in memory while it is written, 220 MB with the default sizes.
_SHARD_ROWS = 1024

_CITATION = """@inproceedings{chen2020vggsound,
  title={VGGSound: A Large-scale Audio-Visual Dataset},
  author={Chen, Honglie and Xie, Weidi and Vedaldi, Andrea and Zisserman, Andrew},
  booktitle={IEEE International Conference on Acoustics, Speech and Signal Processing (ICASSP)},
  year={2020}
}"""

Example: TypeAlias = tuple[str, dict[str, Any]]
"""A key and the features of its row."""


@dataclasses.dataclass(eq=False, kw_only=True)
class VggSoundConfig(tfds.core.BuilderConfig):
    """Sizes of what is kept of a clip; not to be changed once made.

    Attributes:
      num_frames: T, frames of a clip.
      frame_size: S, their side in pixels.
      num_mels: M, bands of the spectrogram.
      num_steps: N, its columns, 10 ms apart: 1,000 are the ten seconds of a clip.
    """

    num_frames: int = 4
    frame_size: int = 112
    num_mels: int = 64
    num_steps: int = 1000


DEFAULT_CONFIG = VggSoundConfig(name="default")


# Not a GeneratorBasedBuilder: from 1 GB on that sorts the rows of a split on disk, which takes
# TensorFlow.
class VggSound(ArrayRecordBuilder, tfds.core.ShardBasedBuilder):
    """Sound and pictures of YouTube clips in which what is heard is seen."""

    name = "vggsound"  # TFDS would make it vgg_sound
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar[list[VggSoundConfig]] = [DEFAULT_CONFIG]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "A folder with vggsound.csv, as published, and clips/{id}_{start:06d}.mp4 for those of its"
        " rows that are still to be had."
    )

    def __init__(
        self,
        *,
        num_workers: int = 1,
        max_missing: float = 1.0,
        progress: bool = True,
        **keywords: Any,
    ) -> None:
        """Makes the builder.

        Args:
          num_workers: processes that decode clips.
          max_missing: share of the clips that may be missing or damaged, 0 to 1.
          progress: shows progress bars while clips are decoded and rows are written.
          **keywords: of the base class, such as data_dir and config.
        """
        super().__init__(**keywords)
        self._num_workers = num_workers
        self._max_missing = max_missing
        self._progress = progress

    def _info(self) -> tfds.core.DatasetInfo:
        config = cast(VggSoundConfig, self.builder_config)
        size = config.frame_size
        features = {
            "video": bytes_feature(config.num_frames, size, size, 3),
            "audio": bytes_feature(config.num_mels, config.num_steps, 1),
            "label": tfds.features.ClassLabel(),  # the names are in the list of clips
            "youtube_id": tfds.features.Text(),
            "start": tfds.features.Scalar(dtype=np.int32),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=VggSound.__doc__,
            homepage="https://www.robots.ox.ac.uk/~vgg/data/vggsound/",
            citation=_CITATION,
            license="CC BY 4.0",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Sequence[Callable[[], Iterator[Example]]]]:
        manual_dir = Path(dl_manager.manual_dir)
        clips = read_clips(manual_dir / "vggsound.csv")
        labels = sorted({clip.label for clip in clips})
        splits = split_clips(clips)
        files, problems = find_clips(splits, manual_dir / "clips")
        listing = Path(self.data_dir).parent / LISTING
        report_missing(listing, problems, splits, labels, max_missing=self._max_missing)
        keys = {name: self._key(name, file) for name, file in files.items()}
        failures = self._decode({key: files[name].path for name, key in keys.items()})
        problems |= {name: failures[key] for name, key in keys.items() if key in failures}
        report_missing(listing, problems, splits, labels, max_missing=self._max_missing)
        info = cast(Any, self.info)
        info.features["label"].names = labels
        num_clips = sum(map(len, splits.values()))
        info.metadata.update(num_clips=num_clips, num_missing=len(problems), labels=labels)
        return {
            split: self._shards(
                split, [(keys[clip.name], clip) for clip in part if clip.name not in problems]
            )
            for split, part in splits.items()
        }

    def _key(self, name: str, file: ClipFile) -> str:
        """Returns a key that neither a file that was replaced nor other sizes share."""
        config = cast(VggSoundConfig, self.builder_config)
        sizes = f"{config.num_frames}x{config.frame_size}x{config.num_mels}x{config.num_steps}"
        return f"{name}.{file.size}.{file.mtime_ns}.{sizes}"

    def _decode(self, paths: Mapping[str, Path]) -> dict[str, str]:
        """Decodes clips by key; returns what is wrong with those that cannot be."""
        config = cast(VggSoundConfig, self.builder_config)
        decode_fn = partial(
            decode_clip,
            num_frames=config.num_frames,
            frame_size=config.frame_size,
            num_mels=config.num_mels,
            num_steps=config.num_steps,
        )
        return decode_all(
            paths,
            decode_fn,
            decoded_dir(self),
            num_workers=self._num_workers,
            progress=self._progress,
            description="Decoding clips",
        )

    def _shards(
        self, split: str, clips: Sequence[tuple[str, Clip]]
    ) -> Sequence[Callable[[], Iterator[Example]]]:
        """Returns the shards, which TFDS writes one after the other."""
        examples = self._generate_examples(split, clips)
        return [partial(islice, examples, _SHARD_ROWS)] * math.ceil(len(clips) / _SHARD_ROWS)

    def _generate_examples(
        self, split: str, clips: Sequence[tuple[str, Clip]]
    ) -> Iterator[Example]:
        folder = decoded_dir(self)
        for key, clip in tqdm(
            clips, desc=f"Writing {split}", disable=None if self._progress else True
        ):
            row = {"label": clip.label, "youtube_id": clip.youtube_id, "start": clip.start}
            yield clip.name, {**read_decoded(folder, key), **row}
