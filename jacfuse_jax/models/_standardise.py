"""What inputs are standardised by."""

from collections.abc import Sequence

import numpy as np


def check_standardisation(
    mean: float | Sequence[float], stddev: float | Sequence[float], size: int, *, of: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, each `size` numbers.

    Args:
      mean: one finite number, or one each.
      stddev: likewise, positive.
      size: how many.
      of: what they are of, for messages.

    Raises:
      ValueError: they are not.
    """
    numbers = {"mean": mean, "stddev": stddev}
    arrays = {name: np.asarray(given, float) for name, given in numbers.items()}
    for name, array in arrays.items():
        if array.shape not in ((), (size,)) or not np.isfinite(array).all():
            raise ValueError(
                f"{name} must be one finite number, or one for each of {size} {of}, got "
                f"{numbers[name]}"
            )
    if arrays["stddev"].min() <= 0:
        raise ValueError(f"stddev must be positive, got {stddev}")
    mean, stddev = (tuple(np.broadcast_to(a, (size,)).tolist()) for a in arrays.values())
    return mean, stddev
