"""Ten-second clips of YouTube videos in which what is heard is seen."""

from data_pipelines.vggsound.builder import DEFAULT_CONFIG, VggSound, VggSoundConfig
from data_pipelines.vggsound.clips import read_clips, split_clips
from data_pipelines.vggsound.prepared import prepare

__all__ = [
    "DEFAULT_CONFIG",
    "VggSound",
    "VggSoundConfig",
    "prepare",
    "read_clips",
    "split_clips",
]
