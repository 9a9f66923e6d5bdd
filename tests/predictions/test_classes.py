"""Classes that have names: found in files, aligned, intersected, united."""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import scipy.special
from numpy.testing import assert_allclose, assert_array_equal

from jacfuse_jax.predictions.class_names import read_classes
from jacfuse_jax.predictions.classes import align_classes, align_logits, align_prior
from jacfuse_jax.programs import InputError
from tests.predictions.formats import WRITERS, write_named, write_parquet

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 3)).astype(np.float32)
TEXTS = ("sea", "a,b", "é")


class TestReadClasses:
    @pytest.mark.parametrize("classes", [TEXTS, (7, -1, 3)], ids=["texts", "integers"])
    @pytest.mark.parametrize("kind", WRITERS)
    def test_of_every_format(self, kind, classes, tmp_path):
        path = tmp_path / f"audio.{kind}"
        write_named(kind, path, {"logits": LOGITS}, classes)
        assert read_classes(path) == classes

    @pytest.mark.parametrize("kind", ["npy", *WRITERS])
    def test_that_are_not_there(self, kind, tmp_path):
        path = tmp_path / f"audio.{kind}"
        if kind == "npy":
            np.save(path, LOGITS)
        else:
            WRITERS[kind](path, {"logits": LOGITS})
        assert read_classes(path) is None

    def test_of_attrs_of_pandas(self, tmp_path):
        frame = pd.DataFrame({"logits": list(LOGITS)})
        frame.attrs = {"classes": list(TEXTS), "source": "here"}
        frame.to_parquet(tmp_path / "audio.parquet")
        assert read_classes(tmp_path / "audio.parquet") == TEXTS
        frame.attrs = {"source": "here"}
        frame.to_parquet(tmp_path / "audio.parquet")
        assert read_classes(tmp_path / "audio.parquet") is None

    def test_of_an_array_of_safetensors(self, tmp_path):
        path = tmp_path / "audio.safetensors"
        arrays = {"logits": LOGITS, "classes": np.array([4, 2, 3])}
        safetensors.numpy.save_file(arrays, path)
        assert read_classes(path) == (4, 2, 3)
        safetensors.numpy.save_file(arrays, path, {"classes": "[4, 2, 3]"})
        with pytest.raises(InputError, match="holds classes as an array and as metadata; keep one"):
            read_classes(path)

    def test_of_parts_that_differ(self, tmp_path):
        folder = tmp_path / "audio"
        folder.mkdir()
        for i in range(2):
            write_named("parquet", folder / f"{i}.parquet", {"logits": LOGITS}, TEXTS)
        assert read_classes(folder) == TEXTS
        write_named("parquet", folder / "1.parquet", {"logits": LOGITS}, TEXTS[::-1])
        with pytest.raises(InputError, match="audio: its parts differ in their classes; write all"):
            read_classes(folder)
        write_parquet(folder / "1.parquet", {"logits": LOGITS})
        with pytest.raises(InputError, match="audio: its parts differ in their classes; write all"):
            read_classes(folder)

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (["a", "b", "a"], "1 classes occur more than once, 'a'; give every class its own"),
            ([0.0, 1.0, 2.0], "classes are double; save int64 or text"),
            ([[1, 2, 3]], r"classes(.npy)? must have shape \(N,\), got \(1, 3\)"),
            (np.array(["a", None]), "holds Python objects, which are not loaded; save numbers, or"),
            (np.zeros(0, int), r"classes(.npy)? is empty, shape \(0,\)"),
        ],
    )
    @pytest.mark.parametrize("kind", ["npz", "folder"])
    def test_that_are_none_in_an_array(self, kind, array, message, tmp_path):
        WRITERS[kind](tmp_path / f"a.{kind}", {"logits": LOGITS, "classes": np.asarray(array)})
        with pytest.raises(InputError, match=message):
            read_classes(tmp_path / f"a.{kind}")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a,b,c", "classes must be a list of texts or of integers, in JSON"),
            ('{"a": 0}', "classes must be a list of texts"),
            ('["a", 1]', "classes must be a list of texts"),
            (f"[{2**70}]", "classes must be a list of texts"),
            (r'["\ud800"]', "classes must be a list of texts"),
            ("[" * 100_000, "classes must be a list of texts"),
            ("[0.5, 1]", "classes are double; save int64 or text"),
            ("[true, false]", "classes are bool; save int64 or text"),
            ('["a", null]', "1 classes are null"),
            ('["a", "a"]', "1 classes occur more than once, 'a'; give every class its own"),
        ],
    )
    @pytest.mark.parametrize("kind", ["parquet", "safetensors"])
    def test_that_are_none_in_json(self, kind, text, message, tmp_path):
        path = tmp_path / f"audio.{kind}"
        if kind == "parquet":
            table = pa.table({"logits": list(LOGITS)})
            pq.write_table(table.replace_schema_metadata({"classes": text}), path)
        else:
            safetensors.numpy.save_file({"logits": LOGITS}, path, {"classes": text})
        with pytest.raises(InputError, match=message) as caught:
            read_classes(path)
        assert str(caught.value).startswith(f"{path}")
        assert "\n" not in str(caught.value)


class TestAlignClasses:
    @pytest.mark.parametrize("how", [None, "intersect", "unite"])
    def test_in_the_order_of_the_first(self, how):
        own = {"a": ("x", "y", "z"), "b": ("z", "x", "y"), "c": ("x", "y", "z")}
        aligned = align_classes(own, how)
        assert aligned.names == ("x", "y", "z")
        assert_array_equal(aligned.places(own["b"]), [1, 2, 0])
        assert aligned.remarks == ["b: classes are in another order, and were aligned by name"]

    @pytest.fixture
    def own(self):
        return {"a": ("x", "y", "z", "u"), "b": ("v", "z", "x"), "c": ("x", "w", "v", "z")}

    def test_intersects(self, own):
        aligned = align_classes(own, "intersect")
        assert aligned.names == ("x", "z")
        assert aligned.every == ("x", "y", "z", "u", "v", "w")
        assert aligned.remarks == [
            "a: 2 of 4 classes are left out, which others lack: 'y', 'u'",
            "b: classes are in another order, and were aligned by name",
            "b: 1 of 3 classes are left out, which others lack: 'v'",
            "c: 2 of 4 classes are left out, which others lack: 'w', 'v'",
        ]

    def test_unites(self, own):
        aligned = align_classes(own, "unite")
        assert aligned.names == ("x", "y", "z", "u", "v", "w")
        assert_array_equal(aligned.places(own["b"]), [2, -1, 1, -1, 0, -1])
        assert aligned.remarks == [
            "a lacks 2 of 6 classes, of which it says the class prior: 'v', 'w'",
            "b: classes are in another order, and were aligned by name",
            "b lacks 3 of 6 classes, of which it says the class prior: 'y', 'u', 'w'",
            "c: classes are in another order, and were aligned by name",
            "c lacks 2 of 6 classes, of which it says the class prior: 'y', 'u'",
        ]

    def test_refuses_others(self, own):
        message = (
            "classes differ: a lacks 2 of 6: 'v', 'w'; b lacks 3 of 6: 'y', 'u', 'w'; c lacks 2 of "
            "6: 'y', 'u'; rename them, or give --classes=intersect or unite"
        )
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            align_classes(own, None)
        many = {"a": tuple(range(9)), "b": tuple(range(4))}
        with pytest.raises(InputError, match=r"^classes differ: b lacks 5 of 9: 4, 5, 6, \.\.\.; "):
            align_classes(many, None)

    def test_refuses_what_leaves_no_choice(self):
        own = {"a": ("x", "y"), "b": ("x", "z")}
        with pytest.raises(InputError, match="--classes=intersect: 1 classes are in all of a, b$"):
            align_classes(own, "intersect")


def log_softmax(z):
    return z - scipy.special.logsumexp(z, axis=1, keepdims=True)


class TestAlignLogits:
    @pytest.mark.parametrize("num_classes", [2, 309])
    def test_permutes(self, num_classes, dtype):
        z = RNG.normal(size=(4, num_classes)).astype(dtype)
        order = RNG.permutation(num_classes)
        aligned = align_logits(z, order, None)
        assert_array_equal(aligned, z[:, order])
        assert aligned.dtype == dtype
        assert align_logits(z, None, None) is z

    def test_leaves_out(self, dtype):
        z = LOGITS.astype(dtype)
        z[1, 1], z[2, 1], z[3] = np.inf, -np.inf, [-np.inf, 1, -np.inf]
        aligned = align_logits(z, np.array([2, 0]), None)
        assert aligned.dtype == dtype
        is_bad = np.arange(6) == 1  # was no row of logits before
        assert np.isnan(aligned[is_bad]).all()
        assert_array_equal(aligned[~is_bad], z[~is_bad][:, [2, 0]])

    def test_says_the_prior_of_what_it_lacks(self):
        z = LOGITS.copy()
        z[1, 0], z[2, 0], z[3], z[4] = np.inf, -np.inf, -np.inf, np.nan
        prior = np.array([0.1, 0.4, 0.2, 0.05, 0.25])
        aligned = align_logits(z, np.array([2, -1, 0, 1, -1]), prior)
        good = [0, 2, 5]
        probs = scipy.special.softmax(z[good].astype(np.float64), axis=1)
        share = 0.1 + 0.2 + 0.05
        expected = np.stack(
            [
                share * probs[:, 2],
                np.full(3, 0.4),
                share * probs[:, 0],
                share * probs[:, 1],
                np.full(3, 0.25),
            ],
            axis=1,
        )
        assert_allclose(np.exp(aligned[good]), expected, rtol=1e-14, atol=0)
        assert np.isnan(aligned[[1, 3, 4]]).any(axis=1).all()

    def test_adds_nothing_to_the_odds_of_what_it_lacks(self):
        prior = np.array([0.1, 0.4, 0.2, 0.05, 0.25])
        evidence = align_logits(LOGITS, np.array([2, -1, 0, 1, -1]), prior) - np.log(prior)
        assert_allclose(evidence[:, [1, 4]], 0, atol=1e-15)
        # Between two classes that it knows it says what it says among its own.
        own_prior = prior[[2, 3, 0]] / prior[[2, 3, 0]].sum()
        own = log_softmax(LOGITS.astype(np.float64)) - np.log(own_prior)
        assert_allclose(evidence[:, [2, 3, 0]], own, rtol=1e-12)

    def test_knows_a_uniform_prior(self):
        places = np.array([0, 1, 2, -1])
        assert_array_equal(
            align_logits(LOGITS, places, None), align_logits(LOGITS, places, np.full(4, 0.25))
        )


class TestAlignPrior:
    PRIOR = np.array([1, 2, 5])

    def test_by_name(self):
        aligned = align_classes({"a": ("x", "y"), "b": ("z", "y")}, "unite")
        counts = align_prior(self.PRIOR, ("z", "x", "y"), aligned, source="prior")
        assert_array_equal(counts, [2, 5, 1])

    def test_of_more_classes_where_inputs_are_cut(self):
        own = {"a": ("x", "y", "z"), "b": ("z", "x")}
        aligned = align_classes(own, "intersect")
        counts = align_prior(self.PRIOR, ("z", "y", "x"), aligned, source="prior")
        assert_array_equal(counts, [5, 1])

    def test_without_names(self):
        alike = align_classes({"a": ("x", "y", "z"), "b": ("x", "y", "z")}, None)
        for classes in (None, alike):
            assert align_prior(self.PRIOR, None, classes, source="prior") is self.PRIOR

    @pytest.mark.parametrize(
        ("own", "names", "how", "message"),
        [
            (None, ("x", "y", "z"), None, "prior names its classes, but no input does; name them"),
            (
                {"a": ("x", "y", "z"), "b": ("z", "x", "y")},
                None,
                None,
                "prior does not name its classes, and inputs have other ones, or another order; n",
            ),
            ({"a": ("x", "y", "w")}, ("x", "y", "z"), None, "prior lacks 1 classes: 'w'$"),
            (
                {"a": ("x", "y")},
                ("x", "y", "z"),
                "unite",
                "prior has 1 classes that no input has: 'z'$",
            ),
            ({"a": ("x", "y")}, ("x", "y"), None, r"prior has 2 classes, but shape \(3,\)"),
        ],
    )
    def test_that_does_not_fit(self, own, names, how, message):
        with pytest.raises(InputError, match=message):
            align_prior(self.PRIOR, names, own and align_classes(own, how), source="prior")
