"""The tensorflow-datasets builder of the digits, for those who want them like other data sets.

`digits.read_splits` gives the same rows without it, and without a file.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from numpy.typing import NDArray

from data_pipelines.digits.digits import read_splits
from data_pipelines.preparing import ArrayRecordBuilder

_CITATION = """@misc{alpaydin1998optical,
  title={Optical Recognition of Handwritten Digits},
  author={Alpaydin, Ethem and Kaynak, Cenk},
  howpublished={UCI Machine Learning Repository},
  doi={10.24432/C50P49},
  year={1998}
}"""


class Digits(ArrayRecordBuilder, tfds.core.GeneratorBasedBuilder):
    """Handwritten digits cut into an upper and a lower half."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        half = tfds.features.Tensor(shape=(4, 8, 1), dtype=np.float32)
        return tfds.core.DatasetInfo(
            builder=self,
            description=Digits.__doc__,
            homepage="https://archive.ics.uci.edu/dataset/80",
            citation=_CITATION,
            license="CC BY 4.0",
            features=tfds.features.FeaturesDict(
                {
                    "upper": half,
                    "lower": half,
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # they come with scikit-learn
        return {split: self._generate_examples(columns) for split, columns in read_splits().items()}

    def _generate_examples(
        self, columns: Mapping[str, NDArray[np.generic]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for row, (upper, lower, label) in enumerate(
            zip(columns["upper"], columns["lower"], columns["label"], strict=True)
        ):
            yield row, {"upper": upper, "lower": lower, "label": int(label)}
