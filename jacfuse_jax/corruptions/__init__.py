"""Corruptions of inputs, of five graded severities each.

All are pure functions of a batch (B, ...) that work under `jax.jit`; random ones take a key first.
Parameters may be traced, so one compiled corruption serves every severity of `SEVERITIES`. Sample b
of the result depends on sample b alone, but for `mismatched_pair`.
"""

from jacfuse_jax.corruptions._audio import (
    clipping,
    frequency_mask,
    gain,
    pink_noise,
    time_mask,
    white_noise,
)
from jacfuse_jax.corruptions._general import (
    bias,
    gaussian_noise,
    mismatched_pair,
    missing,
    missing_modality,
)
from jacfuse_jax.corruptions._image import (
    brightness,
    contrast,
    gaussian_blur,
    impulse_noise,
    occlusion,
    shot_noise,
)
from jacfuse_jax.corruptions._series import (
    dead_axis,
    drift,
    dropouts,
    rotation,
    saturation,
    stuck_value,
)
from jacfuse_jax.corruptions._severities import (
    GAUSSIAN_NOISE_STDDEV,
    MISSING_FRACTION,
    SEVERITIES,
    Grading,
)

__all__ = [
    "GAUSSIAN_NOISE_STDDEV",
    "MISSING_FRACTION",
    "SEVERITIES",
    "Grading",
    "bias",
    "brightness",
    "clipping",
    "contrast",
    "dead_axis",
    "drift",
    "dropouts",
    "frequency_mask",
    "gain",
    "gaussian_blur",
    "gaussian_noise",
    "impulse_noise",
    "mismatched_pair",
    "missing",
    "missing_modality",
    "occlusion",
    "pink_noise",
    "rotation",
    "saturation",
    "shot_noise",
    "stuck_value",
    "time_mask",
    "white_noise",
]
