"""Every data set by its name in tensorflow-datasets: importing this module registers the builders.

    import data_pipelines.tfds_builders
    import tensorflow_datasets as tfds

    builder = tfds.builder("digits", data_dir="/tmp/data")
    builder.download_and_prepare()
    rows = builder.as_data_source("train")

Files are array_record, which needs no TensorFlow, unless `file_format` says otherwise. Raw files in
a folder are named with `download_config=tfds.download.DownloadConfig(manual_dir=...)`.
`data_pipelines.prepare` makes the same files, and besides carries on after a kill, lets two
processes prepare at once, and explains what is wrong in one line.
"""

from data_pipelines.av_mnist.builder import AvMnist
from data_pipelines.digits.builder import Digits
from data_pipelines.ravdess.builder import Ravdess
from data_pipelines.vggsound.builder import VggSound

__all__ = ["AvMnist", "Digits", "Ravdess", "VggSound"]
