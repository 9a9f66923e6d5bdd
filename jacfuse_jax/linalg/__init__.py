"""Linear algebra: Schur forms, Sylvester equations, the K x K systems of a recalibration."""

from jacfuse_jax.linalg._equations import SylvesterInfo
from jacfuse_jax.linalg._recalibration import recalibrate
from jacfuse_jax.linalg._recalibration_matrix import recalibration_matrix
from jacfuse_jax.linalg._schur import SchurInfo, schur
from jacfuse_jax.linalg._spectrum import GramSpectrum, gram_spectrum, spectrum_from_kernel
from jacfuse_jax.linalg._sylvester import solve_generalized, solve_sylvester

__all__ = [
    "GramSpectrum",
    "SchurInfo",
    "SylvesterInfo",
    "gram_spectrum",
    "recalibrate",
    "recalibration_matrix",
    "schur",
    "solve_generalized",
    "solve_sylvester",
    "spectrum_from_kernel",
]
