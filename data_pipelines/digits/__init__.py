"""Handwritten digits cut into an upper and a lower half."""

from data_pipelines.digits.digits import read_splits

__all__ = ["read_splits"]
