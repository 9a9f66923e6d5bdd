"""The tensorflow-datasets builder of RAVDESS; it neither needs nor uses TensorFlow."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.media.decode import decode_all, read_decoded
from data_pipelines.preparing import (
    ArrayRecordBuilder,
    bytes_feature,
    decoded_dir,
    download,
    forget_download,
)
from data_pipelines.ravdess.archives import (
    HOMEPAGE,
    URLS,
    ArchiveError,
    Clip,
    find_clips,
    list_some,
    manual_paths,
)
from data_pipelines.ravdess.clips import AUDIO_SHAPE, decode_clip
from data_pipelines.ravdess.names import EMOTIONS
from data_pipelines.ravdess.unpacked import find_unpacked, is_unpacked

_CITATION = """@article{livingstone2018ravdess,
  title={The Ryerson Audio-Visual Database of Emotional Speech and Song (RAVDESS): A dynamic,
    multimodal set of facial and vocal expressions in North American English},
  author={Livingstone, Steven R. and Russo, Frank A.},
  journal={PLoS ONE},
  volume={13},
  number={5},
  pages={e0196391},
  year={2018}
}"""


@dataclasses.dataclass(eq=False, kw_only=True)
class RavdessConfig(tfds.core.BuilderConfig):
    """Sizes of the video; not to be changed once made.

    Attributes:
      num_frames: frames of a clip, evenly spaced.
      frame_size: their height and width in pixels.
    """

    num_frames: int = 6
    frame_size: int = 80


DEFAULT_CONFIG = RavdessConfig(name="default")


class Ravdess(ArrayRecordBuilder, tfds.core.GeneratorBasedBuilder):
    """Sentences spoken by 24 actors in eight emotions: frames and log-mel spectrograms.

    All clips are in one split, "full"; `split_actors` says which actors train and which test.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar[list[RavdessConfig]] = [DEFAULT_CONFIG]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Optional: Audio_Speech_Actors_01-24.zip and Video_Speech_Actor_01.zip to _24.zip of Zenodo"
        " record 1188976, or what is in them. Without them they are downloaded."
    )

    def __init__(self, *, num_workers: int = 1, progress: bool = True, **keywords: Any) -> None:
        """Makes the builder.

        Args:
          num_workers: processes that decode clips.
          progress: shows a progress bar while clips are decoded.
          **keywords: of the base class, such as data_dir and config.
        """
        super().__init__(**keywords)
        self._num_workers = num_workers
        self._progress = progress

    def _info(self) -> tfds.core.DatasetInfo:
        config = self._config
        video_shape = (config.num_frames, config.frame_size, config.frame_size, 3)
        return tfds.core.DatasetInfo(
            builder=self,
            description=Ravdess.__doc__,
            homepage=HOMEPAGE,
            citation=_CITATION,
            license="CC BY-NC-SA 4.0",
            features=tfds.features.FeaturesDict(
                {
                    "audio": bytes_feature(*AUDIO_SHAPE),
                    "video": bytes_feature(*video_shape),
                    "label": tfds.features.ClassLabel(names=list(EMOTIONS)),
                    "actor": tfds.features.Scalar(dtype=np.int32),
                    "intensity": tfds.features.Scalar(dtype=np.int32),
                    "statement": tfds.features.Scalar(dtype=np.int32),
                    "repetition": tfds.features.Scalar(dtype=np.int32),
                    "name": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        try:
            manual_dir = Path(dl_manager.manual_dir)
        except AssertionError:  # there is no such folder
            clips = self._decode_downloads(dl_manager)
        else:
            unpacked = is_unpacked(manual_dir)
            clips = self._decode(
                find_unpacked(manual_dir) if unpacked else find_clips(manual_paths(manual_dir))
            )
        return {"full": self._generate_examples(clips)}

    def _generate_examples(
        self, clips: Sequence[tuple[str, Clip]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for row, (key, clip) in enumerate(clips):
            example: dict[str, Any] = {
                **read_decoded(decoded_dir(self), key),
                "label": clip.name.emotion - 1,
                "actor": clip.name.actor,
                "intensity": clip.name.intensity,
                "statement": clip.name.statement,
                "repetition": clip.name.repetition,
                "name": str(clip.name),
            }
            yield row, example

    @property
    def _config(self) -> RavdessConfig:
        return cast(RavdessConfig, self.builder_config)

    def _decode(self, found: Sequence[Clip]) -> list[tuple[str, Clip]]:
        """Decodes all clips; returns them with their keys for `read_decoded`."""
        # So that what was decoded from other archives, or to other sizes, is not taken for these.
        sizes = f"{self._config.num_frames}x{self._config.frame_size}"
        clips = {
            f"{clip.name}.{clip.video.crc:08x}.{clip.audio.crc:08x}.{sizes}": clip for clip in found
        }
        failures = decode_all(
            clips,
            partial(
                decode_clip,
                num_frames=self._config.num_frames,
                frame_size=self._config.frame_size,
            ),
            decoded_dir(self),
            num_workers=self._num_workers,
            progress=self._progress,
            description="Decoding clips",
        )
        if failures:
            # Every message begins with the member that is wrong.
            wrong = {
                member.archive
                for key, message in failures.items()
                for member in (clips[key].video, clips[key].audio)
                if message.startswith(f"{member.archive}: {member.name}")
            }
            raise ArchiveError(
                f"{len(failures)} of {len(clips)} clips cannot be used:"
                f" {list_some(list(failures.values()))}; fetch these archives again from"
                f" {HOMEPAGE}",
                wrong,
            )
        return list(clips.items())

    def _decode_downloads(
        self, dl_manager: tfds.download.DownloadManager
    ) -> list[tuple[str, Clip]]:
        """Downloads what has not been downloaded yet, and keeps no archive found to be wrong."""
        paths = download(dl_manager, URLS)
        try:
            return self._decode(find_clips(paths))
        except ArchiveError as error:
            problem = str(error)
            for name, path in paths.items():
                problem = problem.replace(str(path), name)
            wrong = [name for name, path in paths.items() if path in error.archives]
            for name in wrong:
                forget_download(paths[name])
            raise ArchiveError(
                f"{problem} (removed {len(wrong)} downloads, {list_some(wrong)}: run again to fetch"
                " them)",
                error.archives,
            ) from None
