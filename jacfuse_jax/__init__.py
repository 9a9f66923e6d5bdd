"""Training-free robust late fusion of classifiers, one per modality."""

from jacfuse_jax._version import __version__

__all__ = ["__version__"]
