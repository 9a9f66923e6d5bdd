"""Pairs of a reduced MNIST image and the spectrogram of a recording of the same digit."""

from data_pipelines.av_mnist.builder import DEFAULT_CONFIG, AvMnist, AvMnistConfig
from data_pipelines.av_mnist.prepared import prepare, read_split

__all__ = [
    "DEFAULT_CONFIG",
    "AvMnist",
    "AvMnistConfig",
    "prepare",
    "read_split",
]
