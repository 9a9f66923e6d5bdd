"""Pairs of a reduced MNIST image and the spectrogram of the same digit, spoken in noise."""

from data_pipelines.av_mnist.builder import CONFIGS, DEFAULT_CONFIG, AvMnist, AvMnistConfig
from data_pipelines.av_mnist.energy import span
from data_pipelines.av_mnist.prepared import prepare, read_split

__all__ = [
    "CONFIGS",
    "DEFAULT_CONFIG",
    "AvMnist",
    "AvMnistConfig",
    "prepare",
    "read_split",
    "span",
]
