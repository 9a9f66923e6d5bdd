import itertools

import numpy as np
import pytest

from jacfuse_jax.training import iterate_batches, num_batches


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 8, 100])
@pytest.mark.parametrize("num_examples", [1, 2, 6, 7, 8, 21])
@pytest.mark.parametrize("shuffle_seed", [None, 0, (3, 1)])
def test_every_row_comes_exactly_once_in_batches_of_constant_shape(
    num_examples: int, batch_size: int, shuffle_seed: int | tuple[int, ...] | None
) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.normal(size=(num_examples, 2, 3)).astype(np.float32),
        "label": np.arange(num_examples, dtype=np.int32),
    }

    batches = list(iterate_batches(arrays, batch_size, shuffle_seed=shuffle_seed))

    assert len(batches) == num_batches(num_examples, batch_size) == -(-num_examples // batch_size)
    seen: list[int] = []
    for batch in batches:
        assert batch["image"].shape == (batch_size, 2, 3)
        assert batch["image"].dtype == np.float32
        assert batch["label"].dtype == np.int32
        assert batch["mask"].dtype == np.float32
        # Copies are rows like any other: image and label belong together in them, too.
        np.testing.assert_array_equal(batch["image"], arrays["image"][batch["label"]])
        seen += batch["label"][batch["mask"] == 1].tolist()
        assert set(batch["mask"].tolist()) <= {0.0, 1.0}
    assert sorted(seen) == list(range(num_examples))
    assert all(batch["mask"].all() for batch in batches[:-1])


@pytest.mark.parametrize("shuffle_seed", [None, 3])
@pytest.mark.parametrize(("num_examples", "batch_size"), [(7, 3), (7, 5), (2, 5), (1, 4), (6, 3)])
def test_the_last_batch_is_filled_up_from_the_start_of_the_epoch(
    num_examples: int, batch_size: int, shuffle_seed: int | None
) -> None:
    arrays = {"row": np.arange(num_examples)}

    batches = list(iterate_batches(arrays, batch_size, shuffle_seed=shuffle_seed))

    order = list(range(num_examples))
    if shuffle_seed is not None:
        order = np.random.default_rng(shuffle_seed).permutation(num_examples).tolist()
    seen = np.concatenate([batch["row"] for batch in batches]).tolist()
    assert seen == list(itertools.islice(itertools.cycle(order), len(seen)))
    mask = np.concatenate([batch["mask"] for batch in batches]).tolist()
    assert mask == [1] * num_examples + [0] * (len(seen) - num_examples)


def _order(shuffle_seed: int | tuple[int, ...] | None) -> list[int]:
    batches = iterate_batches({"row": np.arange(50)}, 8, shuffle_seed=shuffle_seed)
    return [row for batch in batches for row in batch["row"][batch["mask"] == 1].tolist()]


def test_order_is_kept_without_a_seed_and_repeats_with_one() -> None:
    assert _order(None) == list(range(50))
    assert _order(7) == np.random.default_rng(7).permutation(50).tolist()
    assert _order((7, 0)) == _order((7, 0)) != _order((7, 1))


def test_bad_input_is_refused_by_the_call_itself() -> None:
    rows = np.zeros(3)
    with pytest.raises(ValueError, match=r"equal length, got \{'a': 3, 'b': 2\}"):
        iterate_batches({"a": rows, "b": rows[:2]}, 2)
    with pytest.raises(ValueError, match="arrays must be present"):
        iterate_batches({}, 2)
    with pytest.raises(ValueError, match="at least one row"):
        iterate_batches({"a": rows[:0]}, 2)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        iterate_batches({"a": rows}, 0)
    with pytest.raises(ValueError, match='"mask" is added'):
        iterate_batches({"mask": rows}, 2)
