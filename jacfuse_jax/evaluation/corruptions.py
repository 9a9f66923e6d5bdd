"""The corruptions of the library, as they apply to kinds of modalities."""

from typing import Any

import jax
from numpy.typing import NDArray

from jacfuse_jax import corruptions
from jacfuse_jax.evaluation.names import (
    ANY_CORRUPTIONS,
    AUDIO_CORRUPTIONS,
    IMAGE_CORRUPTIONS,
    SERIES_CORRUPTIONS,
)

_OF_KIND = {
    "image": IMAGE_CORRUPTIONS,
    "video": IMAGE_CORRUPTIONS,
    "spectrogram": AUDIO_CORRUPTIONS,
    "series": SERIES_CORRUPTIONS,
}
# Spectrograms are (B, frequency, time, 1).
_AXES = {"pink_noise": 2, "time_mask": 2, "frequency_mask": 1}
_WITHOUT_KEY = ("gaussian_blur", "contrast", "brightness", "saturation")
_WITH_RANGE = (
    *("gaussian_noise", "bias", "shot_noise", "impulse_noise", "brightness"),
    *("white_noise", "pink_noise", "rotation", "drift"),
)
_WITH_FILL_VALUE = (
    *("missing", "missing_modality", "occlusion", "time_mask", "frequency_mask"),
    *("dead_axis", "dropouts"),
)
_WITH_MEAN = ("saturation",)
_WITH_STDDEV = ("saturation", "drift")


def applies(name: str, kind: str | None, shape: tuple[int, ...] = ()) -> bool:
    """Whether a corruption is one of this kind of modality.

    Args:
      name: of `names.CORRUPTIONS`.
      kind: "image", "video", "spectrogram" or "series"; of any other, such as "vector", only those
        that suit all apply.
      shape: of one input, where it is known: what is rotated has axes, three by three.
    """
    if name == "rotation" and shape and shape[-1] % 3:
        return False
    return name in ANY_CORRUPTIONS or name in _OF_KIND.get(kind or "", ())


def corrupt(
    name: str,
    key: jax.Array,
    x: jax.Array,
    strength: Any,
    *,
    valid_range: tuple[float, float],
    fill_value: NDArray[Any],
    stddev: NDArray[Any] | None = None,
) -> jax.Array:
    """Applies a corruption.

    Args:
      name: of `names.CORRUPTIONS`; static.
      key: of the random ones.
      x: (B, H, W, C); (B, T, C) for those of series.
      strength: value of the parameter that grades it, traced or not.
      valid_range: of the entries.
      fill_value: the mean input, (H, W, C), which missing entries read.
      stddev: (C,), of the channels of training inputs; some corruptions of series need it.

    Returns:
      The corrupted inputs, in the shape of `x`.

    Raises:
      ValueError: the standard deviations are needed and not known, or what the corruption raises.
    """
    kwargs: dict[str, Any] = {corruptions.SEVERITIES[name].parameter: strength}
    if name in _AXES:
        kwargs["axis"] = _AXES[name]
    if name in _WITH_RANGE:
        kwargs["valid_range"] = valid_range
    if name in _WITH_FILL_VALUE:
        kwargs["fill_value"] = fill_value
    if name in _WITH_MEAN:
        kwargs["mean"] = fill_value.mean(axis=tuple(range(fill_value.ndim - 1)))
    if name in _WITH_STDDEV:
        if stddev is None:
            raise ValueError(f"{name} needs `Models.stddevs`, of the channels of training inputs")
        kwargs["stddev"] = stddev
    keys = () if name in _WITHOUT_KEY else (key,)
    return getattr(corruptions, name)(*keys, x, **kwargs)
