"""What the rows of an array are, by their shape."""

from collections.abc import Mapping

from data_pipelines.arrays.files import ArrayFile
from data_pipelines.arrays.layouts import Layout
from data_pipelines.errors import DataError

KIND_NAMES = ("vector", "series", "image", "spectrogram", "video")
"""All kinds, see `catalogue.KINDS`."""
_MIN_PIXELS = 16  # of either side of a picture without channels
_FITTING = {
    "vector": "(N, D)",
    "series": "(N, T, C)",
    "image": "(N, H, W), (N, H, W, 1) or (N, H, W, 3)",
    "spectrogram": "(N, F, T) or (N, F, T, 1)",
    "video": "(N, T, H, W, 3)",
}


def choose_kinds(layout: Layout, kinds: Mapping[str, str]) -> dict[str, str]:
    """Chooses what the rows of every modality are.

    (N, D) are vectors, (N, H, W, 1 or 3) images, (N, T, H, W, 3) videos. (N, A, B) are images where
    A and B are 16 or more, otherwise series of B channels. The modality "audio" of AV-MNIST as
    others publish it is a spectrogram where it could be an image.

    Args:
      layout: arrays of a data set.
      kinds: {modality: one of `KIND_NAMES`}, of those whose shape does not tell.

    Returns:
      {modality: kind} in the order of the layout.

    Raises:
      DataError: an unknown modality or kind, a kind that does not fit the shape, or a shape of no
        kind.
    """
    for modality, kind in kinds.items():
        if modality not in layout.modalities:
            raise DataError(
                f"kinds={modality}:{kind}: {layout.path} has no {modality!r}; choose from "
                f"{','.join(layout.modalities)}",
                "kinds",
            )
        if kind not in KIND_NAMES:
            raise DataError(
                f"kinds={modality}:{kind}: unknown {kind!r}; choose from {','.join(KIND_NAMES)}",
                "kinds",
            )
    chosen: dict[str, str] = {}
    for modality, (file, *_) in layout.modalities.items():
        if modality in kinds:
            chosen[modality] = kinds[modality]
            if not _fits(kinds[modality], file.shape):
                raise DataError(
                    f"kinds={modality}:{kinds[modality]}: {file} has shape {file.shape}, not "
                    f"{_FITTING[kinds[modality]]}; choose another kind, or save it so",
                    "kinds",
                )
        else:
            chosen[modality] = kind = _guess(file)
            if layout.is_published and (modality, kind) == ("audio", "image"):
                chosen[modality] = "spectrogram"
    return chosen


def row_shape(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a row, a channel added to pictures that have none.

    Args:
      kind: of the array.
      shape: of the array.
    """
    return (*shape[1:], 1) if kind in ("image", "spectrogram") and len(shape) == 3 else shape[1:]


def _fits(kind: str, shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape may be of a kind."""
    if kind in ("image", "spectrogram"):
        channels = (1, 3) if kind == "image" else (1,)
        return len(shape) == 3 or (len(shape) == 4 and shape[3] in channels)
    if kind == "video":
        return len(shape) == 5 and shape[4] == 3
    return len(shape) == {"vector": 2, "series": 3}[kind]


def _guess(file: ArrayFile) -> str:
    """The kind of an array."""
    if len(file.shape) == 3:
        return "image" if min(file.shape[1:]) >= _MIN_PIXELS else "series"
    for kind in ("vector", "image", "video"):
        if _fits(kind, file.shape):
            return kind
    raise DataError(
        f"{file} has shape {file.shape}, of no kind; save vectors (N, D), series (N, T, C), images "
        "(N, H, W, 1 or 3) or videos (N, T, H, W, 3), channels last"
    )
