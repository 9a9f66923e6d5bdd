from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines.errors import DataError
from data_pipelines.preparing import ArrayRecordBuilder, decoded_dir, prepare_builder


class _Numbers(ArrayRecordBuilder, tfds.core.GeneratorBasedBuilder):
    """Three numbers."""

    name = "numbers"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="tiny", description="As all data sets have one.")
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"number": tfds.features.Scalar(np.int32)})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    # The base class leaves the type open.
    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in range(3):
            yield i, {"number": i}


def _prepare(data_dir: Path) -> Any:
    builder: Any = _Numbers(data_dir=data_dir)
    prepare_builder(builder, data_dir, progress=False)
    return builder


def test_remains_of_a_data_sets_own_downloads_are_removed_and_no_others(tmp_path: Path) -> None:
    own, others, old = (
        tmp_path / "downloads" / folder / "file.tmp.0123" for folder in ("numbers", "letters", "")
    )
    for remains in (own, others, old):
        remains.mkdir(parents=True)
        (remains / "half").write_bytes(b"half")
    _prepare(tmp_path)
    assert not own.exists()
    assert (others / "half").exists()
    assert (old / "half").exists()


def test_nothing_is_written_where_the_data_set_is_there_already(tmp_path: Path) -> None:
    builder = _prepare(tmp_path)
    lock = tmp_path / "numbers/lock"
    lock.unlink()
    _prepare(tmp_path)
    assert not lock.exists()
    # What a killed process left is removed all the same, and by one process at a time.
    decoded_dir(builder).mkdir()
    _prepare(tmp_path)
    assert lock.exists()
    assert not decoded_dir(builder).exists()


@pytest.mark.parametrize(("place", "kind"), [("numbers", "File exists"), ("numbers/lock", "Is a")])
def test_a_folder_that_cannot_be_written_to_is_named(place: str, kind: str, tmp_path: Path) -> None:
    if kind == "Is a":
        (tmp_path / place).mkdir(parents=True)
    else:
        (tmp_path / place).write_bytes(b"a file")
    with pytest.raises(DataError, match=rf"^data_dir={tmp_path}: (Not a|{kind}).*; name a fol"):
        _prepare(tmp_path)
