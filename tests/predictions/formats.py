"""Predictions in every format, as other frameworks save them."""

import functools
import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy


def write_folder(path, arrays):
    path.mkdir()
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)


def write_archive(path, arrays, compression):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)


def write_parquet(path, arrays, **options):
    columns = {
        name: array if array.ndim == 1 else pa.array(list(array)) for name, array in arrays.items()
    }
    pq.write_table(pa.table(columns), path, **options)


WRITERS = {
    "folder": write_folder,
    "npz": lambda path, arrays: np.savez(path, **arrays),
    "compressed.npz": lambda path, arrays: np.savez_compressed(path, **arrays),
    "bzip2.npz": functools.partial(write_archive, compression=zipfile.ZIP_BZIP2),
    "lzma.npz": functools.partial(write_archive, compression=zipfile.ZIP_LZMA),
    "safetensors": lambda path, arrays: safetensors.numpy.save_file(arrays, path),
    "parquet": write_parquet,
}


def write_named(kind, path, arrays, classes):
    """With the names of classes where each format has them."""
    if kind == "safetensors":
        metadata = {"classes": json.dumps(list(classes))}
        safetensors.numpy.save_file(arrays, path, metadata)
    elif kind == "parquet":
        write_parquet(path, arrays)
        table = pq.read_table(path)
        metadata = {**(table.schema.metadata or {}), "classes": json.dumps(list(classes))}
        pq.write_table(table.replace_schema_metadata(metadata), path)
    else:
        WRITERS[kind](path, {**arrays, "classes": np.array(classes)})
