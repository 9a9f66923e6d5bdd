import dataclasses
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from data_pipelines import av_mnist
from data_pipelines.av_mnist import read_split
from data_pipelines.catalogue import NAMES
from data_pipelines.datasets import KINDS, MODALITIES, load
from data_pipelines.errors import DataError
from data_pipelines.ravdess import Ravdess, split_actors
from data_pipelines.stored import StoredColumn, StoredSplit
from data_pipelines.vggsound import VggSound
from jacfuse_jax.training import iterate_batches
from tests.data_pipelines import vggsound_files
from tests.data_pipelines.media_files import ravdess_zips, tiny_ravdess_config
from tests.data_pipelines.raw_files import UNCHECKED, tiny_config, write_raw_files


@pytest.fixture(scope="module")
def keywords(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What `load` needs for every data set, in small."""
    folder = tmp_path_factory.mktemp("data sets")
    vggsound_files.write_vggsound(folder / "vggsound_raw")
    common: dict[str, Any] = {
        "data_dir": folder,
        "progress": False,
        "num_workers": 1,
        "av_mnist_config": tiny_config(),
        "ravdess_config": tiny_ravdess_config(),
        "vggsound_config": vggsound_files.tiny_config(),
    }
    manual_dirs = {
        "digits": None,
        "av_mnist": write_raw_files(folder / "av_mnist_raw"),
        "ravdess": ravdess_zips(folder / "ravdess_raw", emotions=(1, 3, 5)),
        "vggsound": folder / "vggsound_raw",
    }
    return {name: {**common, "manual_dir": path} for name, path in manual_dirs.items()}


def test_digits_are_all_of_scikit_learns_images_each_in_one_split(tmp_path: Path) -> None:
    digits = load("digits", data_dir=tmp_path)

    assert digits.modalities == MODALITIES["digits"] == ("upper", "lower")
    assert digits.num_classes == 10
    sizes = {split: len(arrays["label"]) for split, arrays in digits.splits.items()}
    assert sizes == {"train": 1097, "validation": 200, "test": 500}
    rows: list[tuple[float, ...]] = []
    for arrays in digits.splits.values():
        assert arrays["upper"].shape == arrays["lower"].shape == (len(arrays["label"]), 4, 8, 1)
        assert arrays["upper"].dtype == arrays["lower"].dtype == np.float32
        assert arrays["label"].dtype == np.int32
        whole = np.concatenate([arrays["upper"], arrays["lower"]], axis=1)
        assert whole.min() == 0
        assert whole.max() == 1
        labelled = np.column_stack([16 * whole.reshape(-1, 64), arrays["label"]])
        rows += [tuple(row) for row in labelled.tolist()]
    images, labels = load_digits(return_X_y=True)
    expected = np.column_stack([images, labels]).tolist()
    assert sorted(rows) == sorted(tuple(row) for row in expected)


def test_digits_splits_are_stratified_and_the_same_every_time(tmp_path: Path) -> None:
    first, second = (load("digits", data_dir=tmp_path).splits for _ in range(2))

    _, labels = load_digits(return_X_y=True)
    for split, arrays in first.items():
        share = np.bincount(labels) / len(labels)
        counts = np.bincount(arrays["label"])
        assert np.abs(counts - share * len(arrays["label"])).max() <= 2
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, second[split][key])
        np.testing.assert_array_equal(arrays["group"], np.arange(len(arrays["label"])))


def test_av_mnist_rows_share_a_group_if_and_only_if_they_share_a_recording(tmp_path: Path) -> None:
    config = tiny_config()
    splits = load(
        "av_mnist",
        data_dir=tmp_path,
        manual_dir=write_raw_files(tmp_path / "raw"),
        progress=False,
        av_mnist_config=config,
    ).splits
    for split, arrays in splits.items():
        recordings = read_split(tmp_path, split, config=config, progress=False)["recording"]
        _assert_groups(arrays["group"], recordings)
    assert len(set(splits["train"]["group"].tolist())) < 60  # some do share one


def test_av_mnist_rows_share_a_noise_group_if_and_only_if_they_share_a_clip(
    keywords: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    splits = load("av_mnist", **keywords["av_mnist"]).splits
    for split, arrays in splits.items():
        columns = read_split(
            keywords["av_mnist"]["data_dir"], split, config=tiny_config(), progress=False
        )
        assert arrays["noise_group"].dtype == np.int32
        _assert_groups(arrays["noise_group"], columns["noise"])
    changes: dict[str, Any] = {
        "data_dir": tmp_path,
        "av_mnist_config": tiny_config(snr_db=None),
    }
    clean = load("av_mnist", **{**keywords["av_mnist"], **changes}).splits
    for arrays in clean.values():
        assert set(arrays) == {"image", "audio", "label", "group"}


def test_raw_images_are_reduced_by_the_subspace_that_comes_with_them(
    keywords: dict[str, dict[str, Any]],
) -> None:
    reduced = load("av_mnist", **keywords["av_mnist"])
    raw = load("av_mnist", raw_images=True, **keywords["av_mnist"])
    few = load("av_mnist", raw_images=True, num_train=2, num_eval=2, **keywords["av_mnist"])
    assert reduced.subspaces == {}
    assert set(raw.subspaces) == set(few.subspaces) == {"image"}
    for dataset in (raw, few):
        point, basis = dataset.subspaces["image"]
        for split, columns in dataset.splits.items():
            x = columns["image"].reshape(-1, 784)
            assert x.min() >= 0
            assert x.max() <= 1
            expected = reduced.splits[split]["image"][: len(x)].reshape(-1, 784)
            kept = point + (x - point) @ basis @ basis.T
            np.testing.assert_allclose(kept, expected, atol=2e-6)
            assert np.abs(x - expected).max() > 0.1
            for key in columns.keys() - {"image"}:
                same = reduced.splits[split][key][: len(x)]
                assert "group" in key or np.array_equal(columns[key], same)


def test_the_config_of_a_name_is_what_is_loaded(
    keywords: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {
        name: dataclasses.replace(
            config,
            name=f"small {config.name}",
            num_train=20,
            num_validation=10,
            num_test=10,
            sources=UNCHECKED,
        )
        for name, config in av_mnist.CONFIGS.items()
    }
    monkeypatch.setattr(av_mnist, "CONFIGS", small)
    options: dict[str, Any] = {
        "data_dir": tmp_path,
        "manual_dir": keywords["av_mnist"]["manual_dir"],
        "progress": False,
    }
    loaded = {name: load(name, **options) for name in NAMES if name.startswith("av_mnist")}
    for name, dataset in loaded.items():
        assert dataset.name == name
        assert dataset.modalities == ("image", "audio")
        assert ("noise_group" in dataset.splits["test"]) == (name != "av_mnist/clean")
    for split, columns in loaded["av_mnist"].splits.items():
        for key, column in columns.items():
            np.testing.assert_array_equal(column, loaded["av_mnist/noisy"].splits[split][key])
    folders = sorted(path.name for path in (tmp_path / "av_mnist").glob("small*"))
    assert folders == ["small balanced", "small clean", "small noisy"]


@pytest.mark.parametrize("name", MODALITIES)
def test_first_rows_are_those_of_the_whole(name: str, keywords: dict[str, dict[str, Any]]) -> None:
    whole = load(name, **keywords[name]).splits
    part = load(name, num_train=13, num_eval=7, **keywords[name]).splits

    assert len(part["train"]["label"]) == 13
    assert len(part["test"]["label"]) == 7
    for split, arrays in part.items():
        more = {"noise_group"} if name == "av_mnist" else set[str]()
        assert set(arrays) == {*MODALITIES[name], "label", "group", *more}
        for key, array in arrays.items():
            assert array.dtype == (np.float32 if key in MODALITIES[name] else np.int32)
            expected = np.asarray(whole[split][key])[
                : None if split == "validation" else len(array)
            ]
            np.testing.assert_array_equal(np.asarray(array), expected)


# Channels and dimensions of a row.
LAYOUTS = {"image": (1, 3), "spectrogram": (1, 3), "video": (3, 4)}


@pytest.mark.parametrize("name", MODALITIES)
def test_rows_of_a_modality_have_the_shape_of_its_kind(
    name: str, keywords: dict[str, dict[str, Any]]
) -> None:
    dataset = load(name, **keywords[name])
    assert dataset.kinds == KINDS[name]
    assert tuple(dataset.kinds) == dataset.modalities == MODALITIES[name]
    for columns in dataset.splits.values():
        for modality, kind in dataset.kinds.items():
            row = columns[modality].shape[1:]
            assert (row[-1], len(row)) == LAYOUTS[kind]


def test_scikit_learn_is_loaded_where_it_is_used() -> None:
    code = "import sys, data_pipelines.datasets; sys.exit('sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)


def _assert_groups(groups: NDArray[np.int32], values: NDArray[Any]) -> None:
    """Asserts that a group is the number of the first row with the same value."""
    assert groups.tolist() == [values.tolist().index(value) for value in values.tolist()]


@pytest.mark.parametrize("fold", [0, 3, 5])
def test_no_actor_of_ravdess_is_in_two_splits(
    fold: int, keywords: dict[str, dict[str, Any]]
) -> None:
    dataset = load("ravdess", fold=fold, **keywords["ravdess"])

    builder = Ravdess(data_dir=keywords["ravdess"]["data_dir"], config=tiny_ravdess_config())
    full = StoredSplit(builder, "full")
    order = np.random.default_rng(0).permutation(len(full))
    rows = full.read(["video", "audio", "label", "actor"], order)
    assert (dataset.modalities, dataset.num_classes) == (("video", "audio"), 8)
    assert len(order) == 24 * 3
    for split, actors in split_actors(fold).items():
        columns = dataset.splits[split]
        chosen = [i for i, actor in enumerate(rows["actor"]) if actor in actors]
        assert len(columns["label"]) == len(chosen) == 3 * len(actors)
        for modality in dataset.modalities:
            assert isinstance(columns[modality], StoredColumn)
            expected = (np.stack([rows[modality][i] for i in chosen]) / 255).astype(np.float32)
            np.testing.assert_array_equal(np.asarray(columns[modality]), expected)
        np.testing.assert_array_equal(columns["label"], [rows["label"][i] for i in chosen])
        _assert_groups(columns["group"], np.array([rows["actor"][i] for i in chosen]))
        # The first few rows are of several actors and emotions.
        assert len(set(columns["group"][:6].tolist())) > 1
        assert len(set(columns["label"][:6].tolist())) > 1


def test_rows_of_vggsound_share_a_group_if_and_only_if_they_share_a_video(
    keywords: dict[str, dict[str, Any]],
) -> None:
    dataset = load("vggsound", **keywords["vggsound"])

    config = vggsound_files.tiny_config()
    builder = VggSound(data_dir=keywords["vggsound"]["data_dir"], config=config)
    assert (dataset.modalities, dataset.num_classes) == (("video", "audio"), 4)
    sizes = {split: len(columns["label"]) for split, columns in dataset.splits.items()}
    assert sizes == {"train": 24, "validation": 4, "test": 12}
    for split, columns in dataset.splits.items():
        stored = StoredSplit(builder, split)
        rows = stored.read(["label", "youtube_id"], np.arange(len(stored)))
        np.testing.assert_array_equal(columns["label"], rows["label"])
        _assert_groups(columns["group"], np.array(rows["youtube_id"]))
        assert columns["video"].shape == (len(stored), 2, 8, 8, 3)
        assert columns["audio"].shape == (len(stored), 8, 20, 1)
    assert len(set(dataset.splits["train"]["group"].tolist())) < 24  # some do share a video
    assert set(dataset.splits["train"]["label"][:12].tolist()) == {0, 1, 2, 3}


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": _half,
    "junk": lambda path: path.write_bytes(bytes(range(256))),
    "other json": lambda path: path.write_text("[1]"),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["av_mnist", "ravdess", "vggsound"])
def test_what_describes_a_prepared_data_set_is_whole_or_refused(
    name: str, damage: str, keywords: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    whole = load(name, **keywords[name])
    (info,) = (keywords[name]["data_dir"] / name).rglob("dataset_info.json")
    refused: dict[str, str] = {}
    for file in [path.name for path in info.parent.iterdir() if "array_record" not in path.name]:
        copy = tmp_path / file / info.parent.relative_to(keywords[name]["data_dir"])
        shutil.copytree(info.parent, copy)
        DAMAGES[damage](copy / file)
        try:
            dataset = load(name, **{**keywords[name], "data_dir": tmp_path / file})
        except DataError as error:
            refused[file] = str(error)
            continue
        assert dataset.num_classes == whole.num_classes
        for split, columns in whole.splits.items():
            np.testing.assert_array_equal(dataset.splits[split]["label"], columns["label"])
    for message in refused.values():
        problem = r"is damaged \(its description, \w+\)|not a prepared data set"
        assert re.fullmatch(rf".*{tmp_path}\S* ({problem}); remove th.*", message)
    assert "dataset_info.json" in refused
    assert name != "vggsound" or {"metadata.json", "label.labels.txt"} <= refused.keys()


@pytest.mark.parametrize("name", ["ravdess", "vggsound"])
def test_classes_can_be_told_by_colour_and_by_pitch(
    name: str, keywords: dict[str, dict[str, Any]]
) -> None:
    splits = load(name, **keywords[name]).splits
    train, test = splits["train"], splits["test"]
    for modality in ("video", "audio"):
        flat = {
            split: np.asarray(splits[split][modality]).reshape(len(splits[split]["label"]), -1)
            for split in ("train", "test")
        }
        distances = np.linalg.norm(flat["test"][:, None] - flat["train"], axis=2)
        assert np.mean(train["label"][distances.argmin(axis=1)] == test["label"]) > 0.9


def test_batches_of_stored_rows_hold_together(keywords: dict[str, dict[str, Any]]) -> None:
    train = load("vggsound", **keywords["vggsound"]).splits["train"]
    eager = {key: np.asarray(column) for key, column in train.items()}
    for actual, expected in zip(
        iterate_batches(train, 7, shuffle_seed=0),
        iterate_batches(eager, 7, shuffle_seed=0),
        strict=True,
    ):
        for key, rows in expected.items():
            np.testing.assert_array_equal(actual[key], rows)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ravdess", {"num_train": 49}, r"num_train=49: choose between 1 and the 48 rows"),
        ("ravdess", {"num_eval": 13}, r"num_eval=13: choose between 1 and the 12 rows"),
        ("vggsound", {"num_train": 25}, r"num_train=25: choose between 1 and the 24 rows"),
        ("vggsound", {"num_eval": 0}, r"num_eval=0: choose between 1 and the 12 rows"),
        ("ravdess", {"num_workers": 0}, "num_workers=0: choose at least 1"),
    ],
)
def test_more_rows_than_there_are_are_refused(
    name: str, changes: dict[str, Any], message: str, keywords: dict[str, dict[str, Any]]
) -> None:
    with pytest.raises(DataError, match=message):
        load(name, **{**keywords[name], **changes})


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (
            {"name": "cifar"},
            r"name='cifar': unknown; choose from digits, av_mnist, ravdess, vggs",
        ),
        (
            {"name": "av_mnist/loud"},
            r"name='av_mnist/loud': no such config; .* \S+/noisy, \S+/balanced, \S+/clean$",
        ),
        ({"name": "av_mnist/"}, "name='av_mnist/': no such config; choose from av_mnist/noisy,"),
        ({"name": "digits/clean"}, "name='digits/clean': digits has no configs; choose 'digits'"),
        (
            {"name": "digits", "num_train": 1098},
            r"num_train=1098: choose between 1 and the 1097 rows",
        ),
        ({"name": "digits", "num_train": 0}, r"num_train=0: choose between 1"),
        ({"name": "digits", "num_eval": 501}, r"num_eval=501: choose between 1 and the 500 rows"),
        ({"name": "av_mnist", "num_train": 55_001}, r"num_train=55001: .* the 55000 rows"),
        ({"name": "ravdess", "fold": 6}, "fold=6: choose from 0 to 5"),
        ({"name": "ravdess", "fold": -1}, "fold=-1: choose from 0 to 5"),
        ({"name": "vggsound"}, "manual_dir=None: VGGSound is not downloaded; name the folder"),
        ({"name": "vggsound", "max_missing": 2}, "max_missing=2: choose a share from 0 to 1"),
        ({"name": "vggsound", "num_workers": -1}, "num_workers=-1: choose at least 1"),
        ({"name": "av_mnist", "num_eval": 10_001}, r"num_eval=10001: .* the 10000 rows"),
        ({"name": "ravdess", "num_train": 961}, r"num_train=961: .* the 960 rows"),
        ({"name": "ravdess", "num_eval": 241}, r"num_eval=241: .* the 240 rows"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_made(
    keywords: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"^{message}") as caught:
        load(data_dir=tmp_path, **keywords)
    argument, _, _ = message.partition("=")
    assert caught.value.argument == (None if argument == "name" else argument)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("argument", "available"), [("num_train", 24), ("num_eval", 12)])
def test_more_rows_than_are_listed_are_refused_before_clips_are_decoded(
    argument: str, available: int, keywords: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    changes: dict[str, Any] = {argument: available + 1, "data_dir": tmp_path}
    with pytest.raises(DataError, match=f"{argument}={available + 1}: .* the {available} rows"):
        load("vggsound", **{**keywords["vggsound"], **changes})
    assert not list(tmp_path.iterdir())
