"""Acted emotions: the video and the voice of 24 actors, split by actor."""

from data_pipelines.catalogue import NUM_FOLDS
from data_pipelines.ravdess.builder import DEFAULT_CONFIG, Ravdess, RavdessConfig
from data_pipelines.ravdess.folds import split_actors
from data_pipelines.ravdess.names import EMOTIONS, MAX_CLIPS_PER_ACTOR, ClipName
from data_pipelines.ravdess.prepared import prepare

__all__ = [
    "DEFAULT_CONFIG",
    "EMOTIONS",
    "MAX_CLIPS_PER_ACTOR",
    "NUM_FOLDS",
    "ClipName",
    "Ravdess",
    "RavdessConfig",
    "prepare",
    "split_actors",
]
