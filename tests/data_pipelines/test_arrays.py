"""Arrays of one's own: layouts, splits, and whatever can be wrong with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import logging
from numpy.typing import NDArray

from data_pipelines import arrays
from data_pipelines.catalogue import NAMES
from data_pipelines.datasets import MultimodalDataset, load
from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from tests.real_data import needs_real_data, real_data

N = 40
RNG = np.random.default_rng(0)
LABELS = np.arange(N) % 4
Arrays = dict[str, Any]


def plain(**changes: Any) -> Arrays:
    """Two modalities whose first number says which row it is; None leaves an array out."""
    made: Arrays = {
        "sound": RNG.normal(size=(N, 5)),
        "touch": RNG.normal(size=(N, 9, 3)).astype(np.float32),
        "labels": LABELS,
        **changes,
    }
    for name in ("sound", "touch"):
        if made[name] is not None and changes.get(name) is None:
            made[name].reshape(N, -1)[:, 0] = np.arange(N)
    return {name: array for name, array in made.items() if array is not None}


def write(folder: Path, **changes: Any) -> Path:
    """A folder of .npy files."""
    folder.mkdir(exist_ok=True)
    for name, array in plain(**changes).items():
        np.save(folder / f"{name}.npy", array, allow_pickle=True)
    return folder


def write_published(folder: Path, num_train: int = 30, num_test: int = 12, **changes: Any) -> Path:
    """The layout of AV-MNIST as others publish it."""
    for part, count in (("train", num_train), ("test", num_test)):
        for name, shape in {"image": (6, 6, 1), "audio": (20, 16), **changes}.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            rows = RNG.normal(size=(count, *shape))
            rows.reshape(count, -1)[:, 0] = np.arange(count) + (1000 if part == "test" else 0)
            np.save(folder / name / f"{part}_data.npy", rows)
        np.save(folder / f"{part}_labels.npy", np.arange(count) % 3)
    return folder


def load_arrays(path: Path, **options: Any) -> MultimodalDataset:
    return load("arrays", data_dir=Path("unused"), manual_dir=path, **options)


def rows_of(dataset: MultimodalDataset, split: str, modality: str = "sound") -> NDArray[Any]:
    """Which rows of the file are in a split."""
    column = dataset.splits[split][modality]
    return column.reshape(len(column), -1)[:, 0].astype(int)


def test_rows_are_those_of_the_files_in_float32_each_in_one_split(tmp_path: Path) -> None:
    made = plain()
    folder = write(tmp_path, **made)
    (folder / "README.txt").write_text("not an array")
    (folder / "._sound.npy").write_bytes(b"what a Macintosh leaves")
    dataset = load_arrays(folder)
    assert dataset.name == "arrays"
    assert "arrays" in NAMES
    assert dataset.modalities == ("sound", "touch")
    assert dataset.kinds == {"sound": "vector", "touch": "series"}
    assert dataset.num_classes == 4
    rows = {split: rows_of(dataset, split) for split in dataset.splits}
    assert {split: len(numbers) for split, numbers in rows.items()} == {
        "train": 24,
        "validation": 8,
        "test": 8,
    }
    assert sorted(np.concatenate([*rows.values()]).tolist()) == list(range(N))
    for split, columns in dataset.splits.items():
        assert set(columns) == {"sound", "touch", "label", "group"}
        assert columns["label"].dtype == columns["group"].dtype == np.int32
        np.testing.assert_array_equal(columns["label"], LABELS[rows[split]])
        np.testing.assert_array_equal(columns["group"], np.arange(len(rows[split])))
        for modality in dataset.modalities:
            assert columns[modality].dtype == np.float32
            np.testing.assert_array_equal(
                columns[modality], made[modality][rows[split]].astype(np.float32)
            )
    assert rows["train"].tolist() != sorted(rows["train"].tolist())  # mixed


def test_folder_archive_and_archive_in_a_folder_hold_the_same(tmp_path: Path) -> None:
    made = plain()
    first = load_arrays(write(tmp_path / "folder", **made))
    np.savez_compressed(tmp_path / "own.npz", **made)
    (tmp_path / "other").mkdir()
    np.savez(tmp_path / "other/own.npz", **made)
    for path in (tmp_path / "own.npz", tmp_path / "other"):
        second = load_arrays(path)
        for split, columns in first.splits.items():
            for key, column in columns.items():
                np.testing.assert_array_equal(column, second.splits[split][key])


def test_numbers_of_every_type_and_order_become_float32(tmp_path: Path) -> None:
    pictures = RNG.integers(0, 256, size=(N, 4, 4, 3)).astype(np.uint8)
    fortran = np.asfortranarray(RNG.normal(size=(N, 3)))
    folder = write(tmp_path, pictures=pictures, fortran=fortran, bits=pictures[:, 0, :, 0] > 9)
    dataset = load_arrays(folder)
    rows = rows_of(dataset, "test")
    for name, array in {"pictures": pictures, "fortran": fortran}.items():
        assert dataset.splits["test"][name].dtype == np.float32
        np.testing.assert_array_equal(dataset.splits["test"][name], array[rows].astype(np.float32))
    assert set(np.unique(dataset.splits["test"]["bits"])) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("shape", "kind", "row"),
    [
        ((7,), "vector", (7,)),
        ((30, 3), "series", (30, 3)),
        ((15, 40), "series", (15, 40)),
        ((16, 40), "image", (16, 40, 1)),
        ((4, 5, 1), "image", (4, 5, 1)),
        ((4, 5, 3), "image", (4, 5, 3)),
        ((2, 4, 5, 3), "video", (2, 4, 5, 3)),
    ],
)
def test_shapes_decide_on_kinds(
    shape: tuple[int, ...], kind: str, row: tuple[int, ...], tmp_path: Path
) -> None:
    folder = write(tmp_path, thing=RNG.normal(size=(N, *shape)))
    dataset = load_arrays(folder)
    assert dataset.kinds == {"sound": "vector", "thing": kind, "touch": "series"}
    assert dataset.splits["train"]["thing"].shape[1:] == row
    outline = arrays.peek(folder)
    assert outline.shapes["thing"] == row
    assert outline.kinds == dataset.kinds


@pytest.mark.parametrize(
    ("shape", "kind", "row"),
    [
        ((16, 40), "series", (16, 40)),
        ((9, 3), "image", (9, 3, 1)),
        ((9, 3), "spectrogram", (9, 3, 1)),
        ((9, 30, 1), "spectrogram", (9, 30, 1)),
    ],
)
def test_kinds_may_be_told(
    shape: tuple[int, ...], kind: str, row: tuple[int, ...], tmp_path: Path
) -> None:
    folder = write(tmp_path, thing=RNG.normal(size=(N, *shape)))
    dataset = load_arrays(folder, kinds={"thing": kind})
    assert dataset.kinds["thing"] == kind
    assert dataset.splits["train"]["thing"].shape[1:] == row


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (LABELS + 7, None, LABELS),
        (LABELS.astype(np.uint8), None, LABELS),
        (np.array(["calm", "angry", "sad", "happy"])[LABELS], None, np.array([1, 0, 3, 2])[LABELS]),
        (np.array([b"b", b"a", b"d", b"c"])[LABELS], None, np.array([1, 0, 3, 2])[LABELS]),
        (np.array(["x", "y"])[LABELS % 2], ["y", "x"], 1 - LABELS % 2),
        (LABELS % 2, ["no", "yes"], LABELS % 2),
    ],
    ids=["integers", "uint8", "texts", "bytes", "texts of classes", "integers of classes"],
)
def test_labels(labels: Any, classes: Any, expected: Any, tmp_path: Path) -> None:
    folder = write(tmp_path, labels=labels, classes=classes)
    dataset = load_arrays(folder)
    assert dataset.num_classes == len(set(expected.tolist()))
    for split in dataset.splits:
        np.testing.assert_array_equal(
            dataset.splits[split]["label"], expected[rows_of(dataset, split)]
        )


def test_a_split_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = _listen(monkeypatch)
    split = np.array(["test", "validation", "train", "train", "train"])[np.arange(N) // 4 % 5]
    dataset = load_arrays(write(tmp_path, split=split))
    for name in dataset.splits:
        assert sorted(rows_of(dataset, name).tolist()) == np.flatnonzero(split == name).tolist()
    assert said == []


def test_a_fold_is_tested_on_and_the_next_one_validates(tmp_path: Path) -> None:
    folds = np.array([1, 2, 3, 5, 8])[np.arange(N) // 4 % 5]
    folder = write(tmp_path, fold=folds)
    for fold, following in ((1, 2), (3, 5), (8, 1)):
        dataset = load_arrays(folder, fold=fold)
        assert set(folds[rows_of(dataset, "test")].tolist()) == {fold}
        assert set(folds[rows_of(dataset, "validation")].tolist()) == {following}
        rest = {1, 2, 3, 5, 8} - {fold, following}
        assert set(folds[rows_of(dataset, "train")].tolist()) == rest


def test_groups_stay_together_in_a_split_that_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = _listen(monkeypatch)
    for groups in (np.arange(N) // 4 + 100, np.char.mod("g%d", np.arange(N) // 4)):
        dataset = load_arrays(write(tmp_path, groups=groups))
        parts = {split: groups[rows_of(dataset, split)].tolist() for split in dataset.splits}
        assert [len(values) for values in parts.values()] == [24, 8, 8]
        assert len({*parts["train"]} | {*parts["test"]} | {*parts["validation"]}) == 10
        for split, values in parts.items():
            others = {value for other in parts if other != split for value in parts[other]}
            assert not {*values} & others
            assert dataset.splits[split]["group"].tolist() == [values.index(v) for v in values]
    assert said == [f"{tmp_path} has no split: groups are drawn 60/20/20 with seed 0"] * 2


def test_groups_of_several_splits_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = _listen(monkeypatch)
    folds = np.arange(N) // 4 % 5
    load_arrays(write(tmp_path, fold=folds, groups=np.where(np.arange(N) < 6, 0, np.arange(N))))
    assert said == [f"{tmp_path}: 1 of 35 groups are in more than one split"]


def test_the_layout_of_av_mnist_as_others_publish_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = _listen(monkeypatch)
    dataset = load_arrays(write_published(tmp_path))
    assert dataset.kinds == {"audio": "spectrogram", "image": "image"}
    assert dataset.splits["train"]["audio"].shape == (27, 20, 16, 1)
    rows = {split: rows_of(dataset, split, "image") for split in dataset.splits}
    assert [len(numbers) for numbers in rows.values()] == [27, 3, 12]
    assert sorted([*rows["train"], *rows["validation"]]) == list(range(30))
    assert sorted(rows["test"].tolist()) == list(range(1000, 1012))
    for split, numbers in rows.items():
        np.testing.assert_array_equal(dataset.splits[split]["label"], numbers % 1000 % 3)
        np.testing.assert_array_equal(rows_of(dataset, split, "audio"), numbers)
    assert len(said) == 1
    assert "10% of the training rows" in said[0]


def test_peek_tells_what_loading_gives(tmp_path: Path) -> None:
    folder = write(tmp_path, groups=np.arange(N) // 2)
    outline = arrays.peek(folder)
    dataset = load_arrays(folder)
    assert outline.num_classes == dataset.num_classes
    assert tuple(outline.kinds) == dataset.modalities
    for split, columns in dataset.splits.items():
        assert outline.num_rows[split] == len(columns["label"])
        for modality, shape in outline.shapes.items():
            assert columns[modality].shape[1:] == shape


def test_first_rows_are_those_of_the_whole(tmp_path: Path) -> None:
    folder = write(tmp_path)
    whole, part = load_arrays(folder), load_arrays(folder, num_train=7, num_eval=3)
    for split, count in (("train", 7), ("validation", 8), ("test", 3)):
        for key, column in part.splits[split].items():
            assert len(column) == count
            np.testing.assert_array_equal(column, whole.splits[split][key][:count])
    for argument, count, available in (("num_train", 25, 24), ("num_eval", 9, 8)):
        with pytest.raises(DataError, match=f"^{argument}={count}: .* the {available} rows"):
            load_arrays(folder, **{argument: count})


def test_no_preparation_is_needed(tmp_path: Path) -> None:
    report = prepare(
        "arrays", data_dir=tmp_path, manual_dir=None, num_workers=None, max_missing=1.0
    )
    assert report == "arrays need no preparation: experiments read --manual_dir as it is"
    assert not list(tmp_path.iterdir())


def with_bad(*values: float) -> NDArray[Any]:
    """Vectors with some entries replaced."""
    column = RNG.normal(size=(N, 5))
    column[3, : len(values)] = values
    return column


SPLIT = np.array(["train", "validation", "test"])[np.arange(N) % 3]
REFUSED: list[tuple[Arrays, Arrays, str]] = [
    ({"labels": None}, {}, "{path} has no labels; save labels.npy, or `labels` in the .npz, (N,)"),
    (
        {"labels": LABELS[:-1]},
        {},
        "{sound} has 40 rows, but {labels} has 39; save the same rows in the same order",
    ),
    ({"groups": LABELS[1:]}, {}, "{groups} has 39 rows, but {labels} has 40; save the same rows"),
    (
        {"sound": with_bad(np.nan, np.inf, -np.inf)},
        {},
        "{sound}: 3 entries are NaN or infinite as float32; replace them, or leave their rows out",
    ),
    ({"sound": with_bad(1e300)}, {}, "{sound}: 1 entries are NaN or infinite as float32; replace"),
    ({"sound": np.ones((N, 5))}, {}, "{sound}: all training rows are 1 everywhere; leave the mod"),
    (
        {"sound": np.array([{}] * N)},
        {},
        "{sound} holds Python objects, which are not loaded; save numbers, or texts by array.as",
    ),
    ({"labels": np.array(["a"] * N, object)}, {}, "{labels} holds Python objects, which are not"),
    ({"sound": np.empty((N, 0))}, {}, "{sound} is empty, shape (40, 0); save rows along the"),
    ({"sound": np.array(3.0)}, {}, "{sound} is empty, shape (); save rows along the first axis"),
    ({"sound": np.full((N, 5), "a")}, {}, "{sound} is <U1, not numbers; save it as float32"),
    ({"sound": np.ones((N, 5), complex)}, {}, "{sound} is complex128, not numbers; save it as"),
    ({"touch": None}, {}, "{path} has too few modalities (sound); fusion takes two or more"),
    ({"touch": None, "sound": None}, {}, "{path} has too few modalities (none); fusion takes two"),
    ({"label": LABELS}, {}, "{path} holds 'label', which no modality may be called; rename it, or"),
    ({"a b": LABELS}, {}, "{path} holds 'a b'; rename it to letters, digits, '_' and '-'"),
    ({"labels": 0 * LABELS}, {}, "{labels} has one class (0); at least two are needed"),
    ({"labels": LABELS / 2}, {}, "{labels} is float64, not integers or texts; save it so"),
    ({"labels": LABELS > 1}, {}, "{labels} is bool, not integers or texts; save it so"),
    ({"labels": LABELS[:, None]}, {}, "{labels} has shape (40, 1), not (N,); save one value a"),
    ({"labels": np.array([b"\xff", b"a"])[LABELS % 2]}, {}, "{labels} holds bytes that are not"),
    (
        {"labels": np.where(np.arange(N) == 1, 9, LABELS), "split": SPLIT},
        {},
        "{path}: class '9' has no training rows; leave it out, or change the split",
    ),
    (
        {"classes": ["a", "b", "c", "d", "e"]},
        {},
        "{path}: class 'e' has no training rows; leave it out, or change the split",
    ),
    (
        {"classes": ["a", "b", "c"]},
        {},
        "{labels} holds 3, which is none of the 3 classes of {classes}; add it there, or leave",
    ),
    (
        {"classes": ["a", "b"], "labels": np.array(["a", "z"])[LABELS % 2]},
        {},
        "{labels} holds 'z', which is none of the 2 classes of {classes}; add it there",
    ),
    ({"classes": ["a", "b", "c", "a"]}, {}, "{classes} holds a name twice; save each once"),
    ({"classes": [1, 2, 3, 4]}, {}, "{classes} is int64, not texts; save it so"),
    (
        {"split": np.where(SPLIT == "test", "train", SPLIT)},
        {},
        "{path}: split 'test' has no rows; save split.npy (N,) with train, validation and test",
    ),
    (
        {"split": np.where(SPLIT == "test", "dev", SPLIT)},
        {},
        "{split} holds 'dev'; write train, validation, test",
    ),
    ({"split": LABELS}, {}, "{split} is int64, not texts; save it so"),
    ({"split": SPLIT, "fold": LABELS}, {}, "{path} holds both split and fold; leave one of them"),
    (
        {"fold": LABELS + 1},
        {},
        "fold=0: no such fold in {fold}; choose from 1, 2, 3, 4",
    ),
    ({"fold": LABELS % 2}, {}, "{path}: split 'train' has no rows; save split.npy"),
    ({"fold": LABELS / 2}, {}, "{fold} is float64, not integers; save it so"),
    ({}, {"fold": 2}, "fold=2: {path} holds no folds; save fold.npy (N,)"),
    ({"groups": 0 * LABELS}, {}, "{path}: split 'validation' has no rows; save split.npy (N,)"),
    ({"groups": LABELS / 2}, {}, "{groups} is float64, not integers or texts; save it so"),
    (
        {},
        {"kinds": {"sound": "smell"}},
        "kinds=sound:smell: unknown 'smell'; choose from vector,series,image,spectrogram,video",
    ),
    (
        {},
        {"kinds": {"smell": "image"}},
        "kinds=smell:image: {path} has no 'smell'; choose from sound,touch",
    ),
    (
        {},
        {"kinds": {"sound": "image"}},
        "kinds=sound:image: {sound} has shape (40, 5), not (N, H, W), (N, H, W, 1) or (N, H, W, 3)",
    ),
    (
        {"touch": np.ones((N, 4, 5, 3))},
        {"kinds": {"touch": "spectrogram"}},
        "kinds=touch:spectrogram: {touch} has shape (40, 4, 5, 3), not (N, F, T) or (N, F, T, 1)",
    ),
    ({}, {"kinds": {"touch": "video"}}, "kinds=touch:video: {touch} has shape (40, 9, 3), not (N,"),
    ({"touch": np.ones((N, 3, 4, 5))}, {}, "{touch} has shape (40, 3, 4, 5), of no kind; save vec"),
    ({"touch": np.ones((N, 2, 4, 5, 1))}, {}, "{touch} has shape (40, 2, 4, 5, 1), of no kind"),
    ({"touch": np.ones(N)}, {}, "{touch} has shape (40,), of no kind; save vectors (N, D)"),
]


@pytest.mark.parametrize("is_archive", [False, True], ids=["folder", "archive"])
@pytest.mark.parametrize(("changes", "options", "message"), REFUSED, ids=[r[2] for r in REFUSED])
def test_what_does_not_fit_is_refused_in_one_line(
    changes: Arrays, options: Arrays, message: str, is_archive: bool, tmp_path: Path
) -> None:
    names = ("sound", "touch", *arrays.RESERVED)
    path = tmp_path / "own.npz" if is_archive else tmp_path
    if is_archive:
        np.savez(path, **plain(**changes))
        named = {name: f"{path}: {name}" for name in names}
    else:
        write(tmp_path, **changes)
        named = {name: f"{path / name}.npy" for name in names}
    with pytest.raises(DataError) as caught:
        load_arrays(path, **options)
    text = str(caught.value)
    assert text.startswith(message.format(path=path, **named))
    assert "\n" not in text
    argument = text.partition("=")[0]
    assert caught.value.argument == (argument if argument in ("fold", "kinds") else None)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("damage_fn", "reason"),
    [
        (_cut, "shape (40, 5), but 1595 bytes of entries"),
        (lambda path: path.write_bytes(b""), ""),
        (lambda path: path.write_text("sound, touch\n1, 2\n"), ""),
        (lambda path: path.write_bytes(path.read_bytes()[:30]), ""),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"shape", b"shap!")), ""),
    ],
    ids=["truncated", "empty", "text", "half a header", "other header"],
)
def test_damaged_files_are_refused(
    damage_fn: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    path = write(tmp_path) / "sound.npy"
    damage_fn(path)
    with pytest.raises(DataError) as caught:
        arrays.peek(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"{path} is not a whole array ({reason}")
    assert text.endswith("); save it again")
    assert "\n" not in text


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9, 0.99])
def test_damaged_archives_are_refused(share: float, tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez_compressed(path, **plain())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r"own\.npz is not a whole array \(.*\); save it again$"):
        arrays.peek(path)
    if 0 < share < 0.9:
        flipped = bytearray(whole)
        place = int(share * len(whole))
        flipped[place : place + 20] = bytes(255 - byte for byte in flipped[place : place + 20])
        path.write_bytes(flipped)
        with pytest.raises(DataError, match=r"own\.npz.* is not a whole array"):
            load_arrays(path)


class TestLayouts:
    def test_that_are_mixed_are_refused(self, tmp_path: Path) -> None:
        folder = write(tmp_path)
        np.savez(folder / "own.npz", **plain())
        with pytest.raises(DataError, match=r"holds both own\.npz and labels\.npy; leave one"):
            arrays.peek(folder)
        np.savez(folder / "other.npz", **plain())
        with pytest.raises(DataError, match=r"holds both other\.npz and own\.npz; leave one"):
            arrays.peek(folder)

    def test_of_which_one_is_that_of_others_are_refused(self, tmp_path: Path) -> None:
        write(write_published(tmp_path))
        with pytest.raises(DataError, match=r"holds both labels\.npy and train_labels\.npy or"):
            arrays.peek(tmp_path)

    @pytest.mark.parametrize("name", ["train_labels.npy", "audio/test_data.npy"])
    def test_with_a_file_missing_are_refused(self, name: str, tmp_path: Path) -> None:
        (write_published(tmp_path) / name).unlink()
        with pytest.raises(DataError, match=f"^{tmp_path / name} is missing; save train and test"):
            arrays.peek(tmp_path)

    def test_with_parts_of_other_shapes_are_refused(self, tmp_path: Path) -> None:
        folder = write_published(tmp_path)
        np.save(folder / "image/test_data.npy", np.ones((12, 6, 5, 1)))
        with pytest.raises(DataError, match=r"test_data\.npy has rows of shape \(6, 5, 1\), but "):
            arrays.peek(folder)
        np.save(folder / "image/test_data.npy", np.ones((11, 6, 6, 1)))
        with pytest.raises(DataError, match=r"test_data\.npy has 11 rows, but .* has 12; save"):
            arrays.peek(folder)

    def test_that_are_not_there_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"^manual_dir=\S+gone: no such folder or \.npz file"):
            load_arrays(tmp_path / "gone")
        with pytest.raises(DataError, match="^manual_dir=None: arrays are your own; name their"):
            load("arrays", data_dir=tmp_path)
        with pytest.raises(DataError, match="has no labels; save"):
            arrays.peek(tmp_path)


@needs_real_data("mfeat/mfeat.npz")
def test_views_of_real_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    said = _listen(monkeypatch)
    dataset = load_arrays(real_data("mfeat"))
    assert dataset.modalities == ("fac", "fou", "kar", "mor", "pix", "zer")
    assert set(dataset.kinds.values()) == {"vector"}
    assert [len(columns["label"]) for columns in dataset.splits.values()] == [1200, 400, 400]
    # Rows lie in the order of their classes, but the first few are of several.
    assert len(set(dataset.splits["test"]["label"][:20].tolist())) > 5
    assert len(said) == 1


def _listen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said while data are loaded."""
    said: list[str] = []

    def keep(message: str, *values: object) -> None:
        said.append(message % values)

    monkeypatch.setattr(logging, "warning", keep)
    return said
