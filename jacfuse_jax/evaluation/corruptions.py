"""The corruptions of the library, as they apply to kinds of modalities."""

from typing import Any

import jax
from numpy.typing import NDArray

from jacfuse_jax import corruptions
from jacfuse_jax.evaluation.names import ANY_CORRUPTIONS, AUDIO_CORRUPTIONS, IMAGE_CORRUPTIONS

_OF_KIND = {
    "image": IMAGE_CORRUPTIONS,
    "video": IMAGE_CORRUPTIONS,
    "spectrogram": AUDIO_CORRUPTIONS,
}
# Spectrograms are (B, frequency, time, 1).
_AXES = {"pink_noise": 2, "time_mask": 2, "frequency_mask": 1}
_WITHOUT_KEY = ("gaussian_blur", "contrast", "brightness")
_WITH_RANGE = (
    *("gaussian_noise", "bias", "shot_noise", "impulse_noise", "brightness"),
    *("white_noise", "pink_noise"),
)
_WITH_FILL_VALUE = ("missing", "missing_modality", "occlusion", "time_mask", "frequency_mask")


def applies(name: str, kind: str | None) -> bool:
    """Whether a corruption is one of this kind of modality.

    Args:
      name: of `names.CORRUPTIONS`.
      kind: "image", "video" or "spectrogram"; of any other only those that suit all apply.
    """
    return name in ANY_CORRUPTIONS or name in _OF_KIND.get(kind or "", ())


def corrupt(
    name: str,
    key: jax.Array,
    x: jax.Array,
    strength: Any,
    *,
    valid_range: tuple[float, float],
    fill_value: NDArray[Any],
) -> jax.Array:
    """Applies a corruption.

    Args:
      name: of `names.CORRUPTIONS`; static.
      key: of the random ones.
      x: (B, H, W, C).
      strength: value of the parameter that grades it, traced or not.
      valid_range: of the entries.
      fill_value: what a missing entry reads, (H, W, C).

    Returns:
      (B, H, W, C).
    """
    kwargs: dict[str, Any] = {corruptions.SEVERITIES[name].parameter: strength}
    if name in _AXES:
        kwargs["axis"] = _AXES[name]
    if name in _WITH_RANGE:
        kwargs["valid_range"] = valid_range
    if name in _WITH_FILL_VALUE:
        kwargs["fill_value"] = fill_value
    keys = () if name in _WITHOUT_KEY else (key,)
    return getattr(corruptions, name)(*keys, x, **kwargs)
