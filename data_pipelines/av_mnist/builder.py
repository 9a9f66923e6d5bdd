"""The tensorflow-datasets builder of AV-MNIST; it neither needs nor uses TensorFlow."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import tensorflow_datasets as tfds
from numpy.typing import NDArray

from data_pipelines.av_mnist.energy import fit_subspace, project
from data_pipelines.av_mnist.mixing import draw_excerpts, mix
from data_pipelines.av_mnist.noise import NoiseClip
from data_pipelines.av_mnist.pairing import pair_recordings
from data_pipelines.av_mnist.recordings import Recording
from data_pipelines.av_mnist.sources import (
    PUBLISHED,
    RawData,
    Sources,
    listed,
    manual_paths,
    read_sources,
)
from data_pipelines.av_mnist.spectrogram import SIZE, log_spectrogram
from data_pipelines.errors import DataError
from data_pipelines.preparing import ArrayRecordBuilder, bytes_feature, download, forget_download

_CITATION = """@article{lecun1998gradient,
  title={Gradient-based learning applied to document recognition},
  author={LeCun, Yann and Bottou, L{\\'e}on and Bengio, Yoshua and Haffner, Patrick},
  journal={Proceedings of the IEEE},
  volume={86},
  number={11},
  pages={2278--2324},
  year={1998}
}
@misc{jackson2018free,
  title={Free Spoken Digit Dataset},
  author={Jackson, Zohar and others},
  doi={10.5281/zenodo.1342401},
  year={2018}
}
@inproceedings{piczak2015esc,
  title={{ESC}: Dataset for Environmental Sound Classification},
  author={Piczak, Karol J.},
  booktitle={Proceedings of the 23rd ACM International Conference on Multimedia},
  pages={1015--1018},
  doi={10.1145/2733373.2806390},
  year={2015}
}"""


@dataclasses.dataclass(eq=False, kw_only=True)
class AvMnistConfig(tfds.core.BuilderConfig):
    """Noise, sizes, seed and raw files; not to be changed once made.

    Attributes:
      snr_db: ratio of the powers of a recording and its noise in decibels; None adds no noise.
      num_train: training pairs, made from the first images of MNIST's training file.
      num_validation: validation pairs, made from the last images of MNIST's training file.
      num_test: test pairs, made from the first images of MNIST's test file.
      seed: of the pairing and of the noise.
      sources: the raw files; those of the noise are not needed where none is added.
    """

    snr_db: float | None
    num_train: int = 55_000
    num_validation: int = 5_000
    num_test: int = 10_000
    seed: int = 0
    sources: Sources = PUBLISHED


CONFIGS = {
    "noisy": AvMnistConfig(name="noisy", snr_db=-18.0),
    "balanced": AvMnistConfig(name="balanced", snr_db=-11.0),
    "clean": AvMnistConfig(name="clean", snr_db=None),
}
"""By their names in `catalogue.CONFIGS`; the first is the default."""
DEFAULT_CONFIG = next(iter(CONFIGS.values()))


class AvMnist(ArrayRecordBuilder, tfds.core.GeneratorBasedBuilder):
    """MNIST images reduced to 25% of their energy, and spectrograms of digits spoken in noise."""

    VERSION = tfds.core.Version("2.1.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {
        "1.0.0": "Recordings as they are.",
        "2.0.0": "Environmental noise in the recordings; `clean` has the data of 1.0.0.",
        "2.1.0": "Images as they are beside the reduced ones.",
    }
    BUILDER_CONFIGS: ClassVar[list[AvMnistConfig]] = list(CONFIGS.values())
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Optional: mnist/ with MNIST's four .gz files, fsdd/ with one .tar.gz source archive of"
        " the Free Spoken Digit Dataset and, for noise, esc10/ with one of ESC-10. Without them the"
        " files are downloaded."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=AvMnist.__doc__,
            citation=_CITATION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(28, 28, 1), dtype=np.float32),
                    "raw_image": bytes_feature(28, 28, 1),
                    "audio": bytes_feature(SIZE, SIZE, 1),
                    "label": tfds.features.ClassLabel(num_classes=10),
                    "index": tfds.features.Scalar(dtype=np.int32),
                    "recording": tfds.features.Text(),
                    "noise": tfds.features.Text(),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        config = cast(AvMnistConfig, self.builder_config)
        raw = _raw_data(config, dl_manager)
        subspace = fit_subspace(raw.train_images[: config.num_train])
        num_images = len(raw.train_images)
        validation = range(num_images - config.num_validation, num_images)
        rows = {
            "train": (raw.train_images, raw.train_labels, range(config.num_train)),
            "validation": (raw.train_images, raw.train_labels, validation),
            "test": (raw.test_images, raw.test_labels, range(config.num_test)),
        }
        generators: dict[str, Any] = {}
        for split, (images, labels, indices) in rows.items():
            recordings = pair_recordings(labels[indices], raw.recordings, split, config.seed)
            generators[split] = self._generate_examples(
                images[indices],
                project(subspace, images[indices]),
                *_sounds(recordings, raw.noise, split, config),
                labels[indices],
                indices,
                [recording.name for recording in recordings],
            )
        return generators

    def _generate_examples(
        self,
        images: NDArray[np.uint8],
        reduced: NDArray[np.float32],
        pictures: Iterable[NDArray[np.uint8]],
        noise: Iterable[str],
        labels: NDArray[np.uint8],
        indices: Iterable[int],
        names: Iterable[str],
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        columns = zip(images, reduced, pictures, noise, labels, indices, names, strict=True)
        for key, (raw, image, picture, clip_id, label, index, name) in enumerate(columns):
            example = {
                "image": image,
                "raw_image": raw[..., np.newaxis],
                "audio": picture[..., np.newaxis],
                "label": int(label),
                "index": index,
                "recording": name,
                "noise": clip_id,
            }
            yield key, example


def _sounds(
    recordings: Sequence[Recording], clips: Sequence[NoiseClip], split: str, config: AvMnistConfig
) -> tuple[Iterable[NDArray[np.uint8]], list[str]]:
    """Returns the spectrograms of all pairs of a split and the ids of their noise."""
    snr_db = config.snr_db
    if snr_db is None:
        distinct = {each.name: each.waveform for each in recordings}
        pictures = {name: log_spectrogram(waveform) for name, waveform in distinct.items()}
        return [pictures[each.name] for each in recordings], [""] * len(recordings)
    excerpts = draw_excerpts(clips, len(recordings), split, config.seed)
    # Made one by one as they are written.
    mixed = (
        log_spectrogram(mix(recording.waveform, excerpt.waveform, snr_db))
        for recording, excerpt in zip(recordings, excerpts, strict=True)
    )
    return mixed, [excerpt.clip_id for excerpt in excerpts]


def _raw_data(config: AvMnistConfig, dl_manager: tfds.download.DownloadManager) -> RawData:
    """Reads the raw files from the manual folder, or else from their public homes."""
    try:
        manual_dir = Path(dl_manager.manual_dir)
    except AssertionError:  # there is no such folder
        return _downloaded_data(config, dl_manager)
    return _read(config, manual_paths(_sources(config), manual_dir))


def _downloaded_data(config: AvMnistConfig, dl_manager: tfds.download.DownloadManager) -> RawData:
    """Downloads what has not been downloaded yet, and keeps nothing that turns out to be wrong."""
    urls = {name: source.url for name, source in listed(_sources(config)).items()}
    paths = download(dl_manager, urls)
    try:
        return _read(config, paths)
    except DataError as error:
        problem = str(error)
        for name, path in paths.items():
            forget_download(path)
            problem = problem.replace(str(path), urls[name])
        raise DataError(f"{problem} (the downloads are removed: run again to fetch them)") from None


def _read(config: AvMnistConfig, paths: dict[str, Path]) -> RawData:
    """Reads raw files that must hold as many images as the config asks for."""
    num_images = config.num_train + config.num_validation
    return read_sources(_sources(config), paths, min_train=num_images, min_test=config.num_test)


def _sources(config: AvMnistConfig) -> Sources:
    """Returns the raw files that a config needs."""
    return config.sources if config.snr_db is not None else config.sources._replace(noise=None)
