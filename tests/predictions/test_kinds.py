"""Probabilities, told from logits and made such."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from numpy.testing import assert_array_equal

from jacfuse_jax.predictions import npy
from jacfuse_jax.predictions.arrays import open_arrays
from jacfuse_jax.predictions.kinds import check_probs, log_of_probs, look_like_probs
from jacfuse_jax.programs import InputError

LOGITS = 5 * np.random.default_rng(0).normal(size=(40, 309))
PROBS = scipy.special.softmax(LOGITS, axis=1)


@pytest.fixture
def on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(npy, "_CHUNK_ENTRIES", 7 * 309)

    def write_and_open(array):
        np.save(tmp_path / "audio.npy", array)
        [opened] = open_arrays(
            tmp_path / "audio.npy", ["logits"], bare="logits", scratch_fn=NotImplemented
        ).values()
        return opened._replace(dtype=array.dtype)  # .npy does not know bfloat16

    return write_and_open


def with_row(array, row, value):
    array = array.copy()
    array[row] = value
    return array


@pytest.mark.parametrize("floating", ["float64", "float32", "float16", "bfloat16"])
class TestFloating:
    def test_probabilities_look_like_it(self, floating, on_disk):
        assert look_like_probs(on_disk(PROBS.astype(jnp.dtype(floating))))
        one_hot = np.eye(309)[:40].astype(jnp.dtype(floating))
        assert look_like_probs(on_disk(one_hot))

    def test_their_logarithms_pass_as_such(self, floating, on_disk):
        with np.errstate(divide="ignore"):
            for probs in (PROBS, np.full_like(PROBS, 1 / 309), np.eye(309)[:40]):
                log_probs = on_disk(np.log(probs).astype(jnp.dtype(floating)))
                check_probs(log_probs, "log_probabilities")
                assert not look_like_probs(log_probs)

    def test_logarithms_are_those_of_float64(self, floating):
        probs = PROBS.astype(jnp.dtype(floating))
        probs[0] = 0
        log_probs = log_of_probs(probs)
        exact = probs.astype(np.float64)
        assert_array_equal(log_probs[exact > 0], np.log(exact[exact > 0]))
        # Zeros come right below whatever is not rounded to zero.
        assert np.exp(log_probs[0]).astype(probs.dtype).max() > 0
        assert (np.exp(log_probs[0]) / 4).astype(probs.dtype).max() == 0


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        (LOGITS, False),
        (PROBS, True),
        (with_row(PROBS, 39, LOGITS[0]), False),
        (with_row(PROBS, 39, PROBS[0] / 2), False),
        (with_row(PROBS, 39, np.inf), False),
        (with_row(PROBS, [3, 39], np.nan), True),
        (PROBS * np.nan, False),
        (PROBS - PROBS.mean(axis=1, keepdims=True) + 1 / 309, True),
    ],
)
def test_every_row_counts_that_is_known(logits, expected, on_disk):
    assert look_like_probs(on_disk(logits)) == expected


def test_logits_are_told_by_their_first_rows(tmp_path):
    shape = (200_000_000, 309)  # 247 GB that were never written: rows of zeros
    with (tmp_path / "audio.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )
        file.truncate(file.tell() + 4 * shape[0] * shape[1])
    [logits] = open_arrays(
        tmp_path / "audio.npy", ["logits"], bare="logits", scratch_fn=NotImplemented
    ).values()
    assert not look_like_probs(logits)


@pytest.mark.parametrize(
    ("array", "kind", "message"),
    [
        (with_row(PROBS, 23, PROBS[0] / 2), "probabilities", r"row 23 of .* sum to 0\.5; say"),
        (with_row(PROBS, 8, -PROBS[0]), "probabilities", r"row 8 of .* begin at -0\.\d+ and sum"),
        (np.log(PROBS), "probabilities", "row 0 of .*audio.npy probabilities begin at -"),
        (LOGITS * 100, "log_probabilities", r"row 0 of .* sum to (inf|\d+e\+\d+); say what it is"),
        (PROBS, "log_probabilities", r"row 0 of .* begin at 1 and sum to 310"),
    ],
)
def test_what_is_none_is_refused(array, kind, message, on_disk):
    with pytest.raises(InputError, match=f"--inputs_are={kind}: in {message}"):
        check_probs(on_disk(array), kind)
    check_probs(on_disk(PROBS), "probabilities")
