"""Robust late fusion as a scikit-learn classifier. No other package imports scikit-learn."""

from jacfuse_jax.sklearn._estimator import RobustLateFusion

__all__ = ["RobustLateFusion"]
