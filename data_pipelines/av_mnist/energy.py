"""Removes most of the energy of images, so that they alone do not settle the digit."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sklearn.decomposition import PCA

KEPT_ENERGY = 0.25
"""Share of the training images' variance that is kept."""
_ROUNDING = 1e-9  # share of the variance of float32 images that is no direction of theirs


def fit_subspace(train_images: NDArray[np.uint8]) -> "PCA":
    """Finds the fewest leading principal components that hold 25% of the variance.

    Args:
      train_images: (N, 28, 28) pixels of the training split alone, not all of them equal.

    Returns:
      Mean and components of pixels / 255.
    """
    from sklearn.decomposition import PCA  # takes a second to load, for a preparation alone

    # For leading components the covariance matrix is as accurate as an SVD of the images, and takes
    # a fraction of the time.
    pca = PCA(n_components=KEPT_ENERGY, svd_solver="covariance_eigh")
    return pca.fit(_rows(train_images))


def project(subspace: "PCA", images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns mean + V V^T (x - mean) for x = pixels / 255, V the components.

    Args:
      subspace: from `fit_subspace`.
      images: (N, 28, 28) pixels.

    Returns:
      (N, 28, 28, 1); values may leave [0, 1].
    """
    kept = subspace.inverse_transform(subspace.transform(_rows(images)))
    return kept.astype(np.float32).reshape(-1, 28, 28, 1)


def span(reduced: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Finds the subspace that reduced images lie in: projecting onto it reduces any image.

    Args:
      reduced: (N, 28, 28, 1), from `project`; more than the subspace has dimensions.

    Returns:
      A point of it, (784,), and an orthonormal basis of its directions, (784, r).
    """
    from sklearn.decomposition import PCA

    rows = reduced.reshape(len(reduced), -1).astype(np.float64)
    pca = PCA(svd_solver="full").fit(rows)
    rank = int((pca.explained_variance_ratio_ > _ROUNDING).sum())
    components = np.asarray(pca.components_, np.float32)
    return pca.mean_.astype(np.float32), components[:rank].T


def _rows(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Pixels in [0, 1], an image a row."""
    return images.reshape(len(images), -1) / 255.0
