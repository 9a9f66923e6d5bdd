"""Reads MNIST's IDX files and refuses any that is not what it should be."""

import gzip
import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import DataError

_LABELS_MAGIC = 2049  # unsigned bytes, one dimension
_IMAGES_MAGIC = 2051  # unsigned bytes, three dimensions
_REMEDY = "fetch the file again from its public home"


def read_images(path: Path, sha256: str | None) -> NDArray[np.uint8]:
    """Reads a gzipped IDX file of 28 x 28 images.

    Args:
      path: the .gz file.
      sha256: digest of the decompressed bytes in hexadecimal; None skips the check.

    Returns:
      (N, 28, 28) pixels, N as the header says.

    Raises:
      DataError: missing, not gzip, truncated, wrong magic number, size or digest.
    """
    images = _read_idx(path, _IMAGES_MAGIC, "images", sha256)
    if images.shape[1:] != (28, 28):
        size = " x ".join(map(str, images.shape[1:]))
        raise DataError(f"{path}: images are {size}, expected 28 x 28; {_REMEDY}")
    return images


def read_labels(path: Path, sha256: str | None) -> NDArray[np.uint8]:
    """Reads a gzipped IDX file of labels.

    Args:
      path: the .gz file.
      sha256: digest of the decompressed bytes in hexadecimal; None skips the check.

    Returns:
      (N,) labels in 0..9, N as the header says.

    Raises:
      DataError: missing, not gzip, truncated, wrong magic number, size or digest, a label above 9.
    """
    labels = _read_idx(path, _LABELS_MAGIC, "labels", sha256)
    if (labels > 9).any():
        raise DataError(f"{path}: label {labels.max()} is not a digit 0..9; {_REMEDY}")
    return labels


def _read_idx(path: Path, magic: int, kind: str, sha256: str | None) -> NDArray[np.uint8]:
    """Decompresses an IDX file of unsigned bytes and checks header, size and digest."""
    content = _decompress(path)
    num_dims = magic & 0xFF
    header_size = 4 * (1 + num_dims)
    found = int.from_bytes(content[:4], "big")
    if found != magic:
        raise DataError(f"{path}: magic number {found}, expected {magic} of IDX {kind}; {_REMEDY}")
    if len(content) < header_size:
        raise DataError(f"{path}: the IDX header is cut off; {_REMEDY}")
    shape = struct.unpack_from(f">{num_dims}I", content, 4)
    expected = int(np.prod(shape, dtype=object))
    if len(content) - header_size != expected:
        raise DataError(
            f"{path}: the header promises {shape[0]} {kind} ({expected} bytes) but"
            f" {len(content) - header_size} bytes follow; {_REMEDY}"
        )
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{path}: the content differs from the published MNIST file; {_REMEDY}")
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)


def _decompress(path: Path) -> bytes:
    """Returns the whole content of a gzip file."""
    try:
        return gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {_REMEDY}") from None
    except gzip.BadGzipFile:
        raise DataError(f"{path}: not a gzip file; {_REMEDY}") from None
    except (EOFError, zlib.error):
        raise DataError(f"{path}: truncated or damaged gzip file; {_REMEDY}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from None
