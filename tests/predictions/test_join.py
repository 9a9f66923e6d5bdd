"""Rows of several inputs that belong together."""

import re

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal

from jacfuse_jax.predictions import inputs, npy
from jacfuse_jax.predictions.inputs import Names, open_predictions
from jacfuse_jax.predictions.join import join
from jacfuse_jax.programs import InputError
from tests.predictions.formats import WRITERS

RNG = np.random.default_rng(0)
NUM_ROWS, NUM_CLASSES = 20, 4
LOGITS = RNG.normal(size=(NUM_ROWS, NUM_CLASSES)).astype(np.float32)
IDS = RNG.permutation(100)[:NUM_ROWS]
LABELS = RNG.integers(NUM_CLASSES, size=NUM_ROWS)


class TestJoin:
    def test_by_id_in_any_order(self, write):
        order = RNG.permutation(NUM_ROWS)
        joined = join(
            {
                "audio": write("npz", logits=LOGITS, ids=IDS),
                "video": write("safetensors", logits=2 * LOGITS[order], ids=IDS[order]),
                "image": write("parquet", logits=3 * LOGITS[::-1], ids=IDS[::-1].astype(np.int16)),
            }
        )
        assert_array_equal(joined.ids.to_numpy(), IDS)
        assert joined.remarks == []
        logits = joined.read(np.array([4, 2]), np.float64)
        for factor, name in enumerate(("audio", "video", "image"), 1):
            assert_array_equal(logits[name], factor * LOGITS[[4, 2]])
            assert logits[name].dtype == np.float64

    @pytest.fixture
    def overlapping(self, write):
        """Audio of ids 0 to 11, labelled, row 6 NaN; video of ids 5 to 19."""
        audio = LOGITS[:12].copy()
        audio[6] = np.nan
        ids = np.arange(NUM_ROWS)
        return {
            "audio": write("npz", "a", logits=audio, ids=ids[:12], labels=LABELS[:12]),
            "video": write("npz", "v", logits=LOGITS[5:], ids=ids[5:]),
        }

    def test_keeps_what_any_has_and_says_what_is_missing(self, overlapping):
        joined = join(overlapping)
        ids = np.arange(NUM_ROWS)
        assert_array_equal(joined.ids.to_numpy(), ids)
        assert_array_equal(joined.labels, np.where(ids < 12, LABELS, -1))
        has = {"audio": (ids < 12) & (ids != 6), "video": ids >= 5}
        for name, z in joined.read(ids, np.float32).items():
            assert_array_equal(joined.present[name], has[name])
            assert_array_equal(z[has[name]], LOGITS[has[name]])
        lines = (
            "audio is missing in 8 of 20 rows, whose ids are not in .*a.npz: 12, 13, 14, ...; it",
            "audio is missing in 1 of 20 rows, which are NaN in .*a.npz: 6; it is fused without",
            "video is missing in 5 of 20 rows, whose ids are not in .*v.npz: 0, 1, 2, ...; it is",
        )
        for line, remark in zip(lines, joined.remarks, strict=True):
            assert re.match(line, remark)

    def test_drops_what_lacks_something(self, overlapping):
        joined = join(overlapping, "drop")
        kept = np.array([5, 7, 8, 9, 10, 11])
        assert_array_equal(joined.ids.to_numpy(), kept)
        assert_array_equal(joined.labels, LABELS[kept])
        for z in joined.read(np.arange(6), np.float32).values():
            assert_array_equal(z, LOGITS[kept])
        assert len(joined.remarks) == 3
        assert all(remark.endswith("; such rows are left out") for remark in joined.remarks)

    def test_refuses_what_lacks_something(self, overlapping, write):
        message = "--missing=error: audio is missing in 8 of 20 rows, .*; give --missing=fuse, or"
        with pytest.raises(InputError, match=message):
            join(overlapping, "error")
        nothing = write("npz", "n", logits=LOGITS[:12] * np.nan, ids=np.arange(12))
        with pytest.raises(InputError, match="--missing=drop leaves no row: video is missing in 5"):
            join({"video": overlapping["video"], "image": nothing}, "drop")
        whole = join({m: write("npz", m, logits=LOGITS, ids=IDS) for m in "av"}, "error")
        assert whole.remarks == []

    @pytest.mark.parametrize("kind", WRITERS)
    def test_rows_of_nan_by_position(self, kind, write, monkeypatch):
        monkeypatch.setattr(npy, "_CHUNK_ENTRIES", 3 * NUM_CLASSES)
        video = LOGITS.copy()
        video[[0, 7, 19]] = np.nan
        joined = join({"a": write(kind, "a", logits=LOGITS), "v": write(kind, "v", logits=video)})
        assert_array_equal(np.flatnonzero(~joined.present["v"]), [0, 7, 19])
        assert joined.present["a"].all()

    @pytest.mark.parametrize("kind", WRITERS)
    def test_rows_that_are_partly_nan_are_named(self, kind, write, monkeypatch):
        monkeypatch.setattr(npy, "_CHUNK_ENTRIES", 3 * NUM_CLASSES)
        logits = LOGITS.copy()
        logits[8, 1] = logits[9, 2] = np.nan
        with pytest.raises(InputError, match=rf"a.{kind}.* row 8 has NaN in 1 of 4 entries"):
            join({"audio": write(kind, "a", logits=logits)})

    def test_labels_of_several_inputs_add_up(self, write):
        ids = np.arange(NUM_ROWS)
        joined = join(
            {
                "audio": write("npz", "a", logits=LOGITS[:9], ids=ids[:9], labels=LABELS[:9]),
                "video": write("npz", "v", logits=LOGITS[4:], ids=ids[4:], labels=LABELS[4:]),
            }
        )
        assert_array_equal(joined.labels, LABELS)

    def test_by_position_without_ids(self, write):
        joined = join({m: write("npz", m, logits=LOGITS, labels=LABELS) for m in "av"})
        assert_array_equal(joined.ids.to_numpy(), np.arange(NUM_ROWS))
        assert_array_equal(joined.labels, LABELS)

    @pytest.mark.parametrize("kind", WRITERS)
    def test_other_classes(self, kind, write):
        audio, video = write("npz", "a", logits=LOGITS), write(kind, "v", logits=LOGITS[:, 1:])
        message = rf"must have the same classes, got logits of .*v.{kind}': \(20, 3\)}}$"
        with pytest.raises(InputError, match=message):
            join({"audio": audio, "video": video})

    @pytest.mark.parametrize(
        ("audio", "video", "message"),
        [
            ({}, {"logits": LOGITS[1:]}, "without ids inputs must have the same rows"),
            (
                {"ids": IDS},
                {},
                "inputs share no column of ids: .*a.npz has ids; .*v.npz has none; name",
            ),
            ({"ids": IDS}, {"ids": IDS + 100}, "no id is in all of .*a.npz, .*v.npz"),
            ({"ids": IDS}, {"ids": IDS.astype(str)}, "ids are int64 in .*a.npz, but large_string"),
            (
                {"labels": LABELS, "ids": IDS},
                {"labels": np.where(np.arange(NUM_ROWS) < 2, 3 - LABELS, LABELS), "ids": IDS},
                rf"disagree about 2 of 20 labels, of id {IDS[0]}, {IDS[1]}$",
            ),
            (
                {"labels": LABELS, "ids": np.array([f"{number} a" for number in IDS])},
                {"labels": 3 - LABELS, "ids": np.array([f"{number} a" for number in IDS])},
                rf"of id '{IDS[0]} a', '{IDS[1]} a', '{IDS[2]} a', \.\.\.$",
            ),
        ],
    )
    def test_what_does_not_belong_together(self, audio, video, message, write):
        with pytest.raises(InputError, match=message):
            join(
                {
                    "audio": write("npz", "a", **({"logits": LOGITS} | audio)),
                    "video": write("npz", "v", **({"logits": LOGITS} | video)),
                }
            )


TEXTS = np.array([f"clip {number}" for number in IDS])
ORDER = RNG.permutation(NUM_ROWS)


class TestIdsOfAnyName:
    @pytest.mark.parametrize(
        ("kind", "name", "ids"),
        [
            ("parquet", "video_id", TEXTS),
            ("npz", "filename", TEXTS.astype("S")),
            ("safetensors", "uid", IDS),
            ("folder", "ID", TEXTS),
            ("compressed.npz", "id", IDS.astype(np.uint64)),
        ],
    )
    def test_one_that_all_share_is_used(self, kind, name, ids, write):
        others = {"split": ids[::-1] if kind == "npz" else np.zeros(NUM_ROWS, int)}
        joined = join(
            {
                "audio": write(kind, "a", logits=LOGITS, **{name: ids}, **others),
                "video": write(kind, "v", logits=LOGITS[ORDER], **{name: ids[ORDER]}),
            }
        )
        assert joined.ids_name == name
        logits = joined.read(np.arange(NUM_ROWS), np.float32)
        assert_array_equal(logits["audio"], LOGITS)
        assert_array_equal(logits["video"], LOGITS)
        assert [str(x) for x in joined.ids.to_pylist()] == ids.astype(str).tolist()

    @pytest.mark.parametrize(
        ("audio", "video", "message"),
        [
            (
                ["uid", "ID"],
                ["ID", "uid"],
                "more than one column may be ids: .*a.npz has uid, ID; ",
            ),
            (
                ["uid"],
                ["ID"],
                "share no column of ids: .*a.npz has uid; .*v.npz has ID; name one by",
            ),
            (["uid"], [], "v.npz has none; name one by --ids_column, or give --join=position"),
            (["ids"], ["ID"], "a.npz has ids; .*v.npz has ID; name"),
        ],
    )
    def test_several_or_others_are_refused(self, audio, video, message, write):
        columns = [dict.fromkeys(names, IDS) for names in (audio, video)]
        with pytest.raises(InputError, match=message):
            join(
                {
                    "audio": write("npz", "a", logits=LOGITS, **columns[0]),
                    "video": write("npz", "v", logits=LOGITS, **columns[1]),
                }
            )
        names = Names(by_position=True)
        inputs = {
            "audio": write("npz", "b", logits=LOGITS, names=names, **columns[0]),
            "video": write("npz", "w", logits=LOGITS, names=names, **columns[1]),
        }
        joined = join(inputs)
        assert joined.ids_name is None
        assert_array_equal(joined.ids.to_numpy(), np.arange(NUM_ROWS))

    def test_a_named_one_is_used_whatever_else_there_is(self, write):
        joined = join(
            {
                name: write(
                    "npz",
                    name,
                    logits=LOGITS[order],
                    ids=IDS,
                    uid=IDS[order],
                    names=Names(ids="uid"),
                )
                for name, order in (("audio", np.arange(NUM_ROWS)), ("video", ORDER))
            }
        )
        assert joined.ids_name == "uid"
        assert_array_equal(joined.read(np.arange(NUM_ROWS), np.float32)["video"], LOGITS)

    @pytest.mark.parametrize("name", ["ids", "uid"])
    def test_a_named_one_must_be_there(self, name, write):
        with pytest.raises(
            InputError, match=rf"no array `{name}`, only logits; --ids_column names"
        ):
            write("npz", logits=LOGITS, names=Names(ids=name))

    @pytest.mark.parametrize("kind", ["npz", "parquet"])
    @pytest.mark.parametrize("last", [0, 6])
    def test_one_that_repeats_is_none(self, kind, last, write, monkeypatch):
        monkeypatch.setattr(inputs, "_COLUMN_ROWS", 4)
        texts = np.array([str(number) for number in (0, 1, 2, 3, 4, 5, 6, 7, last)])
        assert write(kind, logits=LOGITS[:9], uid=texts).candidates == {}

    def test_one_of_python_objects_is_not_overlooked(self, write):
        with pytest.raises(InputError, match="uid holds Python objects, which are not loaded; sav"):
            write("npz", logits=LOGITS, uid=TEXTS.astype(object))


class TestPandas:
    @pytest.fixture
    def write_frame(self, tmp_path, scratch_fn):
        def write_and_open(name, frame):
            path = tmp_path / f"{name}.parquet"
            frame.to_parquet(path)
            return open_predictions(path, scratch_fn=scratch_fn)

        return write_and_open

    @pytest.mark.parametrize(
        ("index", "name"),
        [(pd.Index(TEXTS, name="clip"), "clip"), (pd.Index(IDS), "__index_level_0__")],
        ids=["named", "unnamed"],
    )
    def test_index_is_ids(self, index, name, write_frame):
        frame = pd.DataFrame({"logits": list(LOGITS), "labels": LABELS}, index=index)
        joined = join({"a": write_frame("a", frame), "v": write_frame("v", frame.iloc[ORDER])})
        assert joined.ids_name == name
        assert_array_equal(joined.read(np.arange(NUM_ROWS), np.float32)["v"], LOGITS)
        assert_array_equal(joined.labels, LABELS)

    def test_index_that_counts_is_none(self, write_frame):
        frame = pd.DataFrame({"logits": list(LOGITS)})
        audio = write_frame("a", frame)
        assert audio.candidates == {}
        # The rows of the other one were sorted anew, and remember where they were.
        with pytest.raises(InputError, match="a.parquet has none; .*v.parquet has __index_level_0"):
            join({"a": audio, "v": write_frame("v", frame.iloc[ORDER])})

    @pytest.mark.parametrize(
        "index",
        [
            pd.Index(IDS // 2, name="clip"),
            pd.date_range("2000-01-01", periods=NUM_ROWS, name="clip"),
            pd.MultiIndex.from_arrays([IDS // 2, IDS % 2], names=["clip", "part"]),
        ],
        ids=["repeats", "times", "levels"],
    )
    def test_index_of_no_use_is_not_overlooked(self, index, write_frame):
        frame = pd.DataFrame({"logits": list(LOGITS)}, index=index)
        with pytest.raises(
            InputError, match=r"the pandas index clip(, part)? is not one integer or"
        ):
            write_frame("a", frame)
        frame["uid"] = TEXTS
        assert list(write_frame("b", frame).candidates) == ["uid"]
