"""Labels of rows that are names of classes, or positions."""

import re

import pyarrow as pa
import pytest
from numpy.testing import assert_array_equal

from jacfuse_jax.predictions.classes import align_classes
from jacfuse_jax.predictions.labels import place_labels
from jacfuse_jax.programs import InputError

AUDIO, VIDEO = ("sea", "dog", "cat"), ("cat", "sea", "owl")


def place(labels, own, others=(), how=None):
    """Labels of the file b whose classes are `own`, where a has others."""
    aligned = align_classes({"a": others or own, "b": own}, how)
    return place_labels("b: labels", pa.chunked_array([labels]), own, aligned)


class TestTexts:
    @pytest.mark.parametrize(
        "column_type",
        [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int8(), pa.string())],
        ids=str,
    )
    def test_of_any_kind(self, column_type):
        labels = pa.array(["dog", "sea", "cat", "dog"]).cast(column_type)
        placed, remarks = place(labels, ("cat", "dog", "sea"), AUDIO)
        assert_array_equal(placed, [1, 0, 2, 1])
        assert remarks == []

    def test_of_classes_that_only_others_have(self):
        labels = pa.array(["dog", "owl", "sea"])
        placed, remarks = place(labels, VIDEO, AUDIO, "unite")
        assert_array_equal(placed, [1, 3, 0])
        assert remarks == []

    def test_of_classes_that_are_left_out(self):
        placed, remarks = place(pa.array(["dog", "owl", "sea", "cat"]), VIDEO, AUDIO, "intersect")
        assert_array_equal(placed, [-1, -1, 0, 1])
        assert remarks == ["b: labels: 2 are of classes that are left out, and not counted"]

    def test_of_no_class(self):
        labels = pa.array(["dog", "sea", "Dog", "fish"])
        message = "b: labels: row 2 is 'Dog', none of the classes 'sea', 'dog', 'cat'; correct it"
        with pytest.raises(InputError, match=f"^{message}$"):
            place(labels, AUDIO)

    @pytest.mark.parametrize(
        ("labels", "own", "message"),
        [
            (["dog", None], AUDIO, "string, 1 of them null, but classes texts; save such a one a"),
            (["1", "2"], (2, 1), "string, 0 of them null, but classes integers; save such a one a"),
            ([1.0, 2.0], (2, 1), "double, 0 of them null, but classes integers; save such"),
            ([1, None], (2, 1), "int64, 1 of them null, but classes integers; save such"),
            ([1.0, 2.0], AUDIO, "double, 0 of them null, but classes texts; save such"),
            ([["a"], ["b"]], AUDIO, "list<.*>, 0 of them null, but classes texts; save such"),
            ([1, None], AUDIO, "int64, 1 of them null; save an integer a row"),
        ],
    )
    def test_or_what_does_not_fit(self, labels, own, message):
        with pytest.raises(InputError, match=f"^b: labels are {message}"):
            place(pa.array(labels), own)


class TestIntegers:
    def test_are_positions_in_their_own_file(self):
        placed, remarks = place(pa.array([0, 1, 2, 0], pa.int16()), ("cat", "dog", "sea"), AUDIO)
        assert_array_equal(placed, [2, 1, 0, 2])
        assert remarks == []
        placed, _ = place(pa.array([0, 1, 2]), VIDEO, AUDIO, "intersect")
        assert_array_equal(placed, [1, 0, -1])

    @pytest.mark.parametrize("label", [-1, 3])
    def test_that_are_no_positions(self, label):
        with pytest.raises(InputError, match=f"{label}, classes from 0 to 2|from {label} to 0"):
            place(pa.array([0, label]), AUDIO)

    def test_are_classes_and_positions_where_classes_count(self):
        placed, remarks = place(pa.array([0, 2, 1]), (0, 1, 2), (2, 0, 1))
        assert_array_equal(placed, [1, 0, 2])
        assert remarks == []

    def test_are_classes_where_they_cannot_be_positions(self):
        placed, remarks = place(pa.array([3, 1, 2]), (1, 2, 3), (3, 2, 1))
        assert_array_equal(placed, [0, 2, 1])
        assert remarks == ["b: labels are classes, not positions, which end at 2"]

    def test_are_positions_where_they_cannot_be_classes(self):
        placed, remarks = place(pa.array([2, 0, 1]), (1, 2, 3), (3, 2, 1))
        assert_array_equal(placed, [0, 2, 1])
        assert remarks == ["b: labels are positions of classes: 0 is no class"]

    def test_are_refused_where_they_may_be_either(self):
        message = (
            "b: labels may be classes or their positions, since both are integers, and classes do "
            "not count from 0; save both as texts"
        )
        for classes in ((1, 2, 3), (2, 1, 0)):
            with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
                place(pa.array([1, 2]), classes)

    def test_that_are_neither(self):
        with pytest.raises(InputError, match="labels: row 1 is 0, none of the classes 1, 2, 3; "):
            place(pa.array([3, 0, 1]), (1, 2, 3))
