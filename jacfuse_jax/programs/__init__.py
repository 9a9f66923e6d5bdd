"""What command lines share: errors of the user's, flags, files that are whole, memory and disks."""

from jacfuse_jax.programs.errors import InputError

__all__ = ["InputError"]
