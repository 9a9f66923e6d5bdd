"""scikit-learn's handwritten digits, whose two halves serve as two modalities.

scikit-learn is imported by the functions that call it: other data sets do without.
"""

import numpy as np
from numpy.typing import NDArray

SPLIT_SIZES = {"train": 1097, "validation": 200, "test": 500}
# The splits are part of the data set: the same for every experiment, whatever its own seed.
_SPLIT_SEED = 0
_MAX_PIXEL = 16.0


def read_splits() -> dict[str, dict[str, NDArray[np.generic]]]:
    """Returns the 1,797 digits in three stratified splits; nothing is downloaded.

    Returns:
      {split: {"upper": (N, 4, 8, 1), "lower": (N, 4, 8, 1), "label": (N,)}} for "train",
      "validation" and "test", N = 1097, 200, 500. Rows 0-3 and 4-7 of the image, float32 in [0, 1];
      labels int32 in 0..9.
    """
    images, labels = _images_and_labels()
    # Rows that are left over once test and validation are drawn are the training rows.
    rest, test = _stratified(np.arange(len(labels)), labels, SPLIT_SIZES["test"])
    train, validation = _stratified(rest, labels, SPLIT_SIZES["validation"])
    rows = {"train": train, "validation": validation, "test": test}
    return {
        split: {
            "upper": images[indices, :4],
            "lower": images[indices, 4:],
            "label": labels[indices],
        }
        for split, indices in rows.items()
    }


def _images_and_labels() -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Returns images (1797, 8, 8, 1) in [0, 1] and labels (1797,)."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = (np.asarray(pixels) / _MAX_PIXEL).astype(np.float32).reshape(-1, 8, 8, 1)
    return images, np.asarray(labels).astype(np.int32)


def _stratified(
    rows: NDArray[np.intp], labels: NDArray[np.int32], num_held_out: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Splits rows into (kept, held out) with the class frequencies of the whole in both."""
    from sklearn.model_selection import train_test_split

    kept, held_out = train_test_split(
        rows, test_size=num_held_out, random_state=_SPLIT_SEED, stratify=labels[rows]
    )
    return np.asarray(kept), np.asarray(held_out)
