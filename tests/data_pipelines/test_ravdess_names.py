from collections import Counter

import pytest

from data_pipelines.errors import DataError
from data_pipelines.ravdess import EMOTIONS, NUM_FOLDS, ClipName, split_actors


def test_a_name_is_read_field_by_field() -> None:
    # The example of the publishers: sound alone, speech, fearful, normal, "dogs", first, woman 12.
    name = ClipName.parse("03-01-06-01-02-01-12")
    assert name == ClipName(
        modality=3, vocal_channel=1, emotion=6, intensity=1, statement=2, repetition=1, actor=12
    )
    assert EMOTIONS[name.emotion - 1] == "fearful"
    assert str(name) == "03-01-06-01-02-01-12"
    with pytest.raises(AttributeError):
        name.actor = 3  # type: ignore[misc] # the checker forbids it, too


def test_the_ends_of_all_ranges_are_legal() -> None:
    for text in ("01-01-01-01-01-01-01", "03-02-08-02-02-02-24"):
        assert str(ClipName.parse(text)) == text


@pytest.mark.parametrize(
    "name",
    [
        "",
        "readme",
        "03-01-06-01-02-01",
        "03-01-06-01-02-01-12-01",
        "3-1-6-1-2-1-12",
        "03-01-06-01-02-01-12.wav",
        " 03-01-06-01-02-01-12",
        "03-01-06-01-02-01-12\n",
        "03-01-06-01-02-01-１２",
        "03_01_06_01_02_01_12",
        "03-01-06-01-02-01--1",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"is not a RAVDESS name: seven numbers of two") as caught:
        ClipName.parse(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("00-01-06-01-02-01-12", "modality 00 is not from 01 to 03"),
        ("04-01-06-01-02-01-12", "modality 04 is not from 01 to 03"),
        ("03-03-06-01-02-01-12", "vocal_channel 03 is not from 01 to 02"),
        ("03-01-09-01-02-01-12", "emotion 09 is not from 01 to 08"),
        ("03-01-06-03-02-01-12", "intensity 03 is not from 01 to 02"),
        ("03-01-06-01-00-01-12", "statement 00 is not from 01 to 02"),
        ("03-01-06-01-02-03-12", "repetition 03 is not from 01 to 02"),
        ("03-01-06-01-02-01-25", "actor 25 is not from 01 to 24"),
        ("03-01-06-01-02-01-00", "actor 00 is not from 01 to 24"),
        ("03-01-01-02-02-01-12", "neutral has no strong intensity"),
    ],
)
def test_fields_out_of_range_are_named(name: str, problem: str) -> None:
    with pytest.raises(DataError, match=f"^'{name}' is not a RAVDESS name: {problem}; use"):
        ClipName.parse(name)


def test_folds_share_no_actor_and_test_everyone_once() -> None:
    tested: list[int] = []
    validated: list[int] = []
    for fold in range(NUM_FOLDS):
        actors = split_actors(fold)
        assert list(actors) == ["train", "validation", "test"]
        assert [len(split) for split in actors.values()] == [16, 4, 4]
        assert sorted(sum(actors.values(), ())) == list(range(1, 25))
        for split in actors.values():
            assert list(split) == sorted(split)
            assert Counter(actor % 2 for actor in split) == {0: len(split) / 2, 1: len(split) / 2}
        tested += actors["test"]
        validated += actors["validation"]
    assert sorted(tested) == sorted(validated) == list(range(1, 25))
    assert split_actors(0)["test"] == (1, 2, 3, 4)
    assert split_actors(5)["validation"] == (1, 2, 3, 4)


@pytest.mark.parametrize("fold", [-1, 6])
def test_folds_that_do_not_exist_are_refused(fold: int) -> None:
    with pytest.raises(DataError, match=rf"^fold={fold}: choose from 0 to 5"):
        split_actors(fold)
