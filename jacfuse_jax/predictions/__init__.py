"""What classifiers of any framework predicted, in files: read, joined, fused, written.

`fuse_frames` does the same with data frames; it needs pandas, which is imported with it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jacfuse_jax.predictions.frames import fuse_frames

__all__ = ["fuse_frames"]


def __getattr__(name: str) -> Any:
    """Imports what takes long only once it is asked for: --help need not wait for it."""
    if name == "fuse_frames":
        from jacfuse_jax.predictions.frames import fuse_frames

        return fuse_frames
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
