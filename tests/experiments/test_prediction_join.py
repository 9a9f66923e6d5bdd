"""Rows of several inputs that belong together."""

import contextlib
import tempfile
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from experiments.config import ConfigError
from experiments.prediction_files import open_predictions
from experiments.prediction_join import join
from tests.experiments.prediction_formats import WRITERS

RNG = np.random.default_rng(0)
NUM_ROWS, NUM_CLASSES = 20, 4
LOGITS = RNG.normal(size=(NUM_ROWS, NUM_CLASSES)).astype(np.float32)
IDS = RNG.permutation(100)[:NUM_ROWS]
LABELS = RNG.integers(NUM_CLASSES, size=NUM_ROWS)


@pytest.fixture
def write(tmp_path):
    """Writes arrays in a format and opens them."""
    with contextlib.ExitStack() as stack:

        def make_scratch() -> Any:
            return stack.enter_context(tempfile.TemporaryFile(dir=tmp_path))

        def write_and_open(kind, name="audio", /, **arrays):
            path = tmp_path / f"{name}.{kind}"
            WRITERS[kind](path, arrays)
            return open_predictions(path, scratch_fn=make_scratch)

        yield write_and_open


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
        assert joined.left_out == []
        logits = joined.read(np.array([4, 2]), np.float64)
        for factor, name in enumerate(("audio", "video", "image"), 1):
            assert_array_equal(logits[name], factor * LOGITS[[4, 2]])
            assert logits[name].dtype == np.float64

    def test_keeps_what_all_have_and_names_the_rest(self, write):
        joined = join(
            {
                "audio": write(
                    "npz", "a", logits=LOGITS[:12], ids=np.arange(12), labels=LABELS[:12]
                ),
                "video": write("npz", "v", logits=LOGITS[5:], ids=np.arange(5, NUM_ROWS)),
            }
        )
        assert_array_equal(joined.ids.to_numpy(), np.arange(5, 12))
        assert_array_equal(joined.labels, LABELS[5:12])
        assert_array_equal(joined.read(np.arange(7), np.float32)["video"], LOGITS[5:12])
        audio, video = joined.left_out
        assert audio.endswith(
            "a.npz: 5 of 12 rows are left out, since another input lacks their ids: 0, 1, 2, ..."
        )
        assert video.endswith(
            "v.npz: 8 of 15 rows are left out, since another input lacks their ids: 12, 13, 14, ..."
        )

    def test_by_position_without_ids(self, write):
        joined = join({m: write("npz", m, logits=LOGITS, labels=LABELS) for m in "av"})
        assert_array_equal(joined.ids.to_numpy(), np.arange(NUM_ROWS))
        assert_array_equal(joined.labels, LABELS)

    @pytest.mark.parametrize("kind", WRITERS)
    def test_other_classes(self, kind, write):
        audio, video = write("npz", "a", logits=LOGITS), write(kind, "v", logits=LOGITS[:, 1:])
        message = rf"must have the same classes, got logits of .*v.{kind}': \(20, 3\)}}$"
        with pytest.raises(ConfigError, match=message):
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
        with pytest.raises(ConfigError, match=message):
            join(
                {
                    "audio": write("npz", "a", **({"logits": LOGITS} | audio)),
                    "video": write("npz", "v", **({"logits": LOGITS} | video)),
                }
            )
