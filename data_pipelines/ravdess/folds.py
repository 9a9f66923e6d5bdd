"""Six folds in which no actor is in two splits and every actor is tested once."""

from data_pipelines.catalogue import NUM_FOLDS
from data_pipelines.errors import DataError
from data_pipelines.ravdess.names import NUM_ACTORS

_FOLD_SIZE = NUM_ACTORS // NUM_FOLDS


def split_actors(fold: int) -> dict[str, tuple[int, ...]]:
    """Returns which actors are in which split of a fold.

    The actors are cut into six groups of consecutive numbers, each of two men and two women. Group
    `fold` is tested, the next one (after the last, the first) validates, the other four train.

    Args:
      fold: 0 .. 5.

    Returns:
      {"train": 16 actors, "validation": 4, "test": 4}, each from 1 to 24, ascending.

    Raises:
      DataError: there is no such fold.
    """
    if not 0 <= fold < NUM_FOLDS:
        raise DataError(f"fold={fold}: choose from 0 to {NUM_FOLDS - 1}", "fold")
    test, validation = _group(fold), _group((fold + 1) % NUM_FOLDS)
    train = tuple(a for a in range(1, NUM_ACTORS + 1) if a not in test + validation)
    return {"train": train, "validation": validation, "test": test}


def _group(index: int) -> tuple[int, ...]:
    """Returns four consecutive actors."""
    return tuple(range(_FOLD_SIZE * index + 1, _FOLD_SIZE * (index + 1) + 1))
