"""What no corruption of a modality, or none within a budget, can overturn."""

from jacfuse_jax.certificates._arbitrary import (
    CERTIFIED,
    Certificate,
    CertifiedAccuracy,
    CertifiedRule,
    certified_accuracy,
    certify_modality,
)
from jacfuse_jax.certificates._budget import certified_radius

__all__ = [
    "CERTIFIED",
    "Certificate",
    "CertifiedAccuracy",
    "CertifiedRule",
    "certified_accuracy",
    "certified_radius",
    "certify_modality",
]
