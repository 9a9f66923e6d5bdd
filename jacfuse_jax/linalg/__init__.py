"""Linear algebra: the K x K systems of a recalibration."""

from jacfuse_jax.linalg.gram import (
    GramSpectrum,
    gram_spectrum,
    recalibrate,
    recalibration_matrix,
    spectrum_from_kernel,
)

__all__ = [
    "GramSpectrum",
    "gram_spectrum",
    "recalibrate",
    "recalibration_matrix",
    "spectrum_from_kernel",
]
