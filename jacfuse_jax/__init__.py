"""Training-free robust late fusion of classifiers, one per modality.

`jacfuse_jax.models` and `jacfuse_jax.training` need flax and orbax and are imported by name, as is
`jacfuse_jax.selection`, which chooses rules on validation rows.
"""

from jacfuse_jax import (
    attacks,
    bounds,
    calibration,
    certificates,
    corruptions,
    detection,
    fusion,
    jacobians,
    linalg,
    metrics,
)
from jacfuse_jax._version import __version__

__all__ = [
    "__version__",
    "attacks",
    "bounds",
    "calibration",
    "certificates",
    "corruptions",
    "detection",
    "fusion",
    "jacobians",
    "linalg",
    "metrics",
]
