"""Checks of accuracies and errors."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def check_shares(**arrays: ArrayLike) -> list[NDArray[np.float64]]:
    """Returns arrays in float64; raises ValueError unless of one shape, not empty, in [0, 1]."""
    shares = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
    for name, array in shares.items():
        if not np.all((array >= 0) & (array <= 1)):  # NaN fails
            raise ValueError(f"{name} must be shares in [0, 1], not percent, got {arrays[name]}")
    shapes = {name: array.shape for name, array in shares.items()}
    if len(set(shapes.values())) > 1 or 0 in next(iter(shapes.values())):
        raise ValueError(f"shapes must be equal and not empty, got {shapes}")
    return list(shares.values())
