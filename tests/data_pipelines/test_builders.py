"""What tensorflow-datasets' own test case asks of every builder; that one needs TensorFlow."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines.catalogue import MODALITIES
from data_pipelines.datasets import load
from data_pipelines.ravdess import EMOTIONS
from data_pipelines.tfds_builders import AvMnist, Digits, Ravdess, VggSound
from tests.data_pipelines import raw_files, vggsound_files
from tests.data_pipelines.media_files import ravdess_zips, tiny_ravdess_config


class Case(NamedTuple):
    """One builder.

    Attributes:
      builder_class: of tensorflow-datasets.
      config: small; None where there is none.
      write_fn: writes raw files to a folder.
      sizes: {split: rows}.
      labels: names of the classes, as far as the builder knows them.
      key: features that no two rows share all of.
      licence: of the data set, where it has one of its own.
      version: of the data set.
      configs: published ones, the default first.
    """

    builder_class: Any
    config: Any
    write_fn: Any
    sizes: dict[str, int]
    labels: list[str]
    key: tuple[str, ...]
    licence: str | None = None
    version: str = "1.0.0"
    configs: tuple[str, ...] = ("default",)


CASES = {
    "digits": Case(
        Digits,
        None,
        Path.mkdir,
        {"train": 1097, "validation": 200, "test": 500},
        [str(digit) for digit in range(10)],
        ("upper", "lower"),
        "CC BY 4.0",
        configs=(),
    ),
    "av_mnist": Case(
        AvMnist,
        raw_files.tiny_config(),
        raw_files.write_raw_files,
        {"train": 60, "validation": 20, "test": 20},
        [str(digit) for digit in range(10)],
        ("recording", "image"),
        version="2.1.0",
        configs=("noisy", "balanced", "clean"),
    ),
    "ravdess": Case(
        Ravdess,
        tiny_ravdess_config(),
        lambda folder: ravdess_zips(folder, emotions=(1, 5), size=32),
        {"full": 48},
        list(EMOTIONS),
        ("name",),
        "CC BY-NC-SA 4.0",
    ),
    "vggsound": Case(
        VggSound,
        vggsound_files.tiny_config(),
        vggsound_files.write_vggsound,
        {"train": 24, "validation": 4, "test": 12},
        list(vggsound_files.LABELS),
        ("youtube_id", "start"),
        "CC BY 4.0",
    ),
}


class Built(NamedTuple):
    """What a builder made without help of `prepare`."""

    case: Case
    builder: Any
    rows: dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module", params=CASES)
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Built]:
    case = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    case.write_fn(folder / "raw")
    tfds.display_progress_bar(False)
    builder: Any = tfds.builder(request.param, data_dir=folder, config=case.config)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=folder / "raw")
    )
    rows: dict[str, list[dict[str, Any]]] = {}
    for split in case.sizes:
        source = builder.as_data_source(split)
        rows[split] = [source[i] for i in range(len(source))]
    yield Built(case, builder, rows)
    tfds.display_progress_bar(True)


def test_is_registered_by_its_name(built: Built) -> None:
    assert type(built.builder) is built.case.builder_class
    assert built.builder.name in tfds.list_builders(with_community_datasets=False)


def test_says_what_it_is(built: Built) -> None:
    info = built.builder.info
    config = "" if built.case.config is None else "/tiny"
    assert info.full_name == f"{built.builder.name}{config}/{built.case.version}"
    assert info.description
    assert info.citation.startswith("@")
    if built.case.licence is not None:
        assert built.case.licence in str(info.redistribution_info)
        assert info.homepage.startswith("https://")
    assert info.features["label"].names == built.case.labels
    names = [config.name for config in built.case.builder_class.BUILDER_CONFIGS]
    assert tuple(names) == built.case.configs


def test_splits_have_the_rows_that_they_say(built: Built) -> None:
    splits = built.builder.info.splits
    assert {name: split.num_examples for name, split in splits.items()} == built.case.sizes
    assert {name: len(rows) for name, rows in built.rows.items()} == built.case.sizes


def test_no_row_comes_twice(built: Built) -> None:
    keys = [
        tuple(np.asarray(row[feature]).tobytes() for feature in built.case.key)
        for rows in built.rows.values()
        for row in rows
    ]
    assert len(set(keys)) == len(keys)


def test_rows_have_the_features_that_are_declared_and_survive_encoding(built: Built) -> None:
    features = built.builder.info.features
    for row in [rows[i] for rows in built.rows.values() for i in (0, -1)]:
        assert row.keys() == features.keys()
        for name, value in row.items():
            assert np.shape(value) == features[name].shape
            assert np.ndim(value) == 0 or value.dtype == features[name].np_dtype
        record = features.serialize_example(row)
        for name, value in features.deserialize_example_np(record).items():
            np.testing.assert_array_equal(value, row[name])


def test_can_be_opened_where_it_lies_and_read_in_any_order(built: Built) -> None:
    folder = Path(built.builder.data_dir)
    builder: Any = tfds.builder_from_directory(folder)
    for split, rows in built.rows.items():
        source = builder.as_data_source(split)
        for i in (len(rows) - 1, 0, 0, len(rows) // 2):
            for name, value in rows[i].items():
                np.testing.assert_array_equal(source[i][name], value)


def test_digits_are_the_rows_that_load_gives_without_a_file(tmp_path: Path) -> None:
    builder: Any = tfds.builder("digits", data_dir=tmp_path / "built")
    tfds.display_progress_bar(False)
    builder.download_and_prepare()
    tfds.display_progress_bar(True)
    for split, columns in load("digits", data_dir=tmp_path / "none").splits.items():
        source = builder.as_data_source(split)
        rows = [source[i] for i in range(len(source))]
        for name in (*MODALITIES["digits"], "label"):
            np.testing.assert_array_equal(np.stack([row[name] for row in rows]), columns[name])
    assert not (tmp_path / "none").exists()


def test_configs_are_chosen_by_name(tmp_path: Path) -> None:
    for name in CASES["av_mnist"].configs:
        builder: Any = tfds.builder(f"av_mnist/{name}", data_dir=tmp_path)
        assert Path(builder.data_dir) == tmp_path / f"av_mnist/{name}/2.1.0"
        assert (builder.builder_config.snr_db is None) == (name == "clean")
    builder = tfds.builder("av_mnist", data_dir=tmp_path)
    assert builder.builder_config.name == "noisy"
    with pytest.raises(ValueError, match="loud"):
        tfds.builder("av_mnist/loud", data_dir=tmp_path)


@pytest.mark.parametrize("name", MODALITIES)
def test_files_are_array_record_unless_something_else_is_asked_for(
    name: str, tmp_path: Path
) -> None:
    def format_of(**keywords: Any) -> str:
        builder: Any = tfds.builder(name, data_dir=tmp_path, **keywords)
        return builder.info.file_format.value

    assert format_of() == "array_record"
    assert format_of(file_format="tfrecord") == "tfrecord"
    assert not list(tmp_path.iterdir())


def test_what_is_there_in_another_format_is_opened_as_it_is(tmp_path: Path) -> None:
    builder: Any = tfds.builder("digits", data_dir=tmp_path)
    Path(builder.data_dir).mkdir(parents=True)
    builder.info.set_file_format("riegeli", override=True)
    builder.info.write_to_directory(builder.data_dir)
    again: Any = tfds.builder("digits", data_dir=tmp_path)
    assert again.info.file_format.value == "riegeli"


def test_all_data_sets_are_known_after_one_import() -> None:
    code = (
        "import data_pipelines.tfds_builders, tensorflow_datasets as tfds\n"
        f"for name in {tuple(MODALITIES)}: assert tfds.builder_cls(name).name == name"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
