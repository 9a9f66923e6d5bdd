"""Arrays of one's own, in a folder or an archive."""

from data_pipelines.arrays.kinds import KIND_NAMES
from data_pipelines.arrays.layouts import RESERVED
from data_pipelines.arrays.outline import Outline, peek
from data_pipelines.arrays.rows import read

__all__ = ["KIND_NAMES", "RESERVED", "Outline", "peek", "read"]
