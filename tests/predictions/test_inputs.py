"""Readers of predictions: every format, and whatever can be wrong with a file."""

import itertools
import zipfile

import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from numpy.testing import assert_allclose, assert_array_equal

from jacfuse_jax.predictions.arrays import open_arrays
from jacfuse_jax.predictions.inputs import Names, open_predictions
from jacfuse_jax.predictions.layers import HEADS, head_spectrum
from jacfuse_jax.programs import InputError
from tests.predictions.formats import WRITERS, write_parquet

RNG = np.random.default_rng(0)
NUM_ROWS, NUM_CLASSES = 20, 4
LOGITS = RNG.normal(size=(NUM_ROWS, NUM_CLASSES)).astype(np.float32)
IDS = RNG.permutation(100)[:NUM_ROWS]
LABELS = RNG.integers(NUM_CLASSES, size=NUM_ROWS)
KERNEL = RNG.normal(size=(6, NUM_CLASSES)).astype(np.float32)

SHAPED = [kind for kind in WRITERS if kind != "parquet"]  # whose arrays may have any shape


@pytest.fixture(params=list(WRITERS))
def kind(request):
    return request.param


class TestEveryFormat:
    def test_holds_what_was_written(self, kind, write):
        predictions = write(kind, logits=LOGITS, ids=IDS, labels=LABELS)
        assert_array_equal(predictions.logits.read(), LOGITS)
        assert_array_equal(predictions.ids.to_numpy(), IDS)
        assert_array_equal(predictions.labels, LABELS)

    def test_is_read_in_any_order(self, kind, write):
        predictions = write(kind, logits=LOGITS)
        rows = np.array([7, 3, 3, NUM_ROWS - 1, 0])
        assert_array_equal(predictions.logits.read(rows), LOGITS[rows])
        assert predictions.ids is predictions.labels is None

    @pytest.mark.parametrize("columns", [{"label": LABELS}, {"label": LABELS, "labels": LABELS}])
    def test_names_labels_in_the_singular(self, kind, columns, write):
        with pytest.raises(InputError, match=f"audio.{kind} holds `label`; name it `labels`, "):
            write(kind, logits=LOGITS, **columns)

    def test_names_ids_otherwise(self, kind, write):
        columns = {"ID": IDS, "labels": LABELS, "label": LABELS, "speaker": IDS // 2, "class": IDS}
        names = Names(ids="class", labels="label")
        predictions = write(kind, logits=LOGITS, **columns, names=names)
        assert predictions.ids_name == "class"
        assert_array_equal(predictions.ids.to_numpy(), IDS)
        assert_array_equal(predictions.labels, LABELS)
        assert sorted(predictions.unused) == ["ID", "labels", "speaker"]

    def test_may_have_candidates_for_ids(self, kind, write):
        columns = {
            "labels": np.arange(4),
            "class_prior": np.arange(4),
            "uid": np.array([3, -1, -2, 0]),
            "repeats": np.array([3, 1, 1, 0]),
            "offset": np.arange(4) / 3,
            "is_speech": np.array([True, False, True, False]),
            "features": LOGITS[:4],
        }
        predictions = write(kind, logits=LOGITS[:4], **columns)
        assert predictions.ids is predictions.ids_name is None
        assert list(predictions.candidates) == ["uid"]
        assert predictions.candidates["uid"]().to_pylist() == [3, -1, -2, 0]
        unused = ["features", "is_speech", "offset", "repeats", "uid"]
        assert sorted(predictions.unused) == unused
        names = Names(by_position=True)
        assert write(kind, "b", logits=LOGITS[:4], **columns, names=names).candidates == {}
        # What is called ids is meant.
        assert write(kind, "c", logits=LOGITS[:4], ids=IDS[:4], **columns).candidates == {}

    @pytest.mark.parametrize(
        ("kind", "floating"),
        [
            *itertools.product(WRITERS, ["float16", "float32", "float64"]),
            ("safetensors", "bfloat16"),
        ],
    )
    def test_may_be_of_any_floating_type(self, kind, floating, write):
        logits = LOGITS.astype(jnp.dtype(floating))
        assert_array_equal(write(kind, logits=logits).logits.read(), logits)

    @pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != "safetensors"])
    def test_may_have_texts_as_ids(self, kind, write):
        texts = np.array([f"clip {number}" for number in IDS])
        assert write(kind, logits=LOGITS, ids=texts).ids.to_pylist() == texts.tolist()

    def test_has_two_classes_and_one_row(self, kind, write):
        assert_array_equal(write(kind, logits=LOGITS[:1, :2]).logits.read(), LOGITS[:1, :2])

    def test_has_no_rows(self, kind, tmp_path, scratch_fn):
        path = tmp_path / f"audio.{kind}"
        if kind == "parquet":
            pq.write_table(pa.schema({"logits": pa.list_(pa.float32())}).empty_table(), path)
        else:
            WRITERS[kind](path, {"logits": LOGITS[:0]})
        with pytest.raises(InputError, match="logits.* is empty"):
            open_predictions(path, scratch_fn=scratch_fn)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"logits": LABELS[:, None].repeat(3, 1)}, "save .*float32"),
            ({"logits": LOGITS[:, :1]}, r"has shape \(20, 1\), not \(N, K\) of K >= 2 classes"),
            ({"ids": np.where(IDS > 50, 7, IDS)}, "1 ids occur more than once, 7; give every row"),
            ({"ids": IDS / 7}, "ids are double; save int64 or text"),
            ({"labels": LABELS / 1}, "labels are double, 0 of them null; save an integer a row"),
            ({"labels": LABELS > 0}, "labels are bool"),
            ({"labels": LABELS + 1}, "labels run from 1 to 4, classes from 0 to 3"),
            ({"labels": LABELS - 1}, "labels run from -1 to 2, classes from 0 to 3"),
        ],
        ids=lambda x: "" if isinstance(x, str) else next(iter(x)),
    )
    def test_holds_what_does_not_fit(self, kind, changes, message, write):
        with pytest.raises(InputError, match=message) as caught:
            write(kind, **({"logits": LOGITS, "ids": IDS, "labels": LABELS} | changes))
        assert f"audio.{kind}" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_holds_no_logits(self, kind, write):
        with pytest.raises(InputError, match=rf"audio.{kind} .*no (array|column) `logits`"):
            write(kind, logit=LABELS)

    @pytest.mark.parametrize("kind", SHAPED)
    @pytest.mark.parametrize("name", ["ids", "labels"])
    def test_has_columns_of_other_lengths(self, kind, name, write):
        with pytest.raises(InputError, match=f"20 rows of logits, but 19 {name}"):
            write(kind, logits=LOGITS, **{name: IDS[1:]})

    @pytest.mark.parametrize("kind", SHAPED)
    @pytest.mark.parametrize("name", ["logits", "ids", "labels"])
    def test_holds_other_shapes(self, kind, name, write):
        arrays = {"logits": LOGITS, "ids": IDS, "labels": LABELS}
        arrays[name] = arrays[name][..., None]
        with pytest.raises(InputError, match=rf"{name}(.npy)? (has|must have) shape"):
            write(kind, **arrays)


class TestDamaged:
    @pytest.fixture(params=["npy", *WRITERS])
    def path(self, request, tmp_path):
        path = tmp_path / f"audio.{request.param}"
        if request.param == "npy":
            np.save(path, LOGITS)
        else:
            WRITERS[request.param](path, {"logits": LOGITS, "ids": IDS})
        return path / "logits.npy" if path.is_dir() else path

    def error_of(self, path, scratch_fn):
        with pytest.raises(InputError) as caught:
            open_predictions(
                path.parent if path.parent.suffix == ".folder" else path, scratch_fn=scratch_fn
            )
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(str(path))
        return str(caught.value)

    @pytest.mark.parametrize("content", [b"", b"x", b"no array\n" * 100], ids=len)
    def test_by_other_content(self, content, path, scratch_fn):
        path.write_bytes(content)
        message = self.error_of(path, scratch_fn)
        assert " is not a whole " in message
        assert message.endswith("; save it again")

    @pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
    def test_by_truncation(self, share, path, scratch_fn):
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        assert " is not a whole " in self.error_of(path, scratch_fn)

    @pytest.mark.parametrize("kind", WRITERS)
    def test_by_any_byte(self, kind, tmp_path, scratch_fn):
        path = tmp_path / f"audio.{kind}"
        texts = np.array([f"clip {number}" for number in IDS])
        WRITERS[kind](path, {"logits": LOGITS, "ids": IDS if kind == "safetensors" else texts})
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        rng = np.random.default_rng(0)
        messages: list[str] = []
        for number in range(400):
            file = files[number % len(files)]
            content = file.read_bytes()
            damaged = bytearray(content)
            # Descriptions stand at either end; what damages an entry can be seen by no one.
            damaged[rng.integers(-300, 300) % len(content)] = rng.integers(256)
            file.write_bytes(damaged)
            try:
                predictions = open_predictions(path, scratch_fn=scratch_fn)
                predictions.logits.read()
                assert predictions.ids is None or predictions.ids.to_pylist()
            except InputError as error:
                messages.append(str(error))
            file.write_bytes(content)
        assert len(messages) > 50
        assert "\n" not in "".join(messages)

    @pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind.endswith("npz")])
    def test_entries_of_an_archive(self, kind, tmp_path, scratch_fn):
        path = tmp_path / f"audio.{kind}"
        WRITERS[kind](path, {"logits": LOGITS})
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
        assert "is not a whole .npz file" in self.error_of(path, scratch_fn)

    def test_an_archive_of_something_else(self, tmp_path, scratch_fn):
        with zipfile.ZipFile(tmp_path / "audio.npz", "w") as archive:
            archive.writestr("logits", b"text")
        message = self.error_of(tmp_path / "audio.npz", scratch_fn)
        assert "is not a whole .npz file" in message

    @pytest.mark.parametrize(
        "member",
        ["../logits.npy", "/etc/logits.npy", "a\\..\\logits.npy", "\\logits.npy", "a/../b"],
    )
    def test_an_archive_that_leaves_its_folder(self, member, tmp_path, scratch_fn):
        path = tmp_path / "audio.npz"
        np.savez(path, logits=LOGITS)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(member, b"")
        message = self.error_of(path, scratch_fn)
        assert message == f"{path} holds {member!r}, outside of its folder; rename it"

    def test_an_archive_that_repeats_a_name(self, tmp_path, scratch_fn):
        path = tmp_path / "audio.npz"
        np.savez(path, logits=LOGITS)
        with (
            zipfile.ZipFile(path, "a") as archive,
            pytest.warns(UserWarning, match="Duplicate name"),
        ):
            archive.writestr("logits.npy", b"")
        message = self.error_of(path, scratch_fn)
        assert message == f"{path} holds 'logits.npy' 2 times; save it once"

    def test_pages_of_parquet(self, tmp_path, scratch_fn):
        path = tmp_path / "audio.parquet"
        write_parquet(path, {"logits": RNG.normal(size=(2000, 8))}, compression="gzip")
        content = bytearray(path.read_bytes())
        content[100:2000] = bytes(1900)
        path.write_bytes(content)
        assert "is not a whole Parquet file" in self.error_of(path, scratch_fn)


class Malicious:
    """Pickled; whoever loads it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class TestCode:
    @pytest.mark.parametrize("name", ["logits", "ids"])
    @pytest.mark.parametrize("kind", ["npz", "folder"])
    def test_is_never_executed(self, kind, name, tmp_path, write):
        arrays = {"logits": LOGITS, "ids": IDS}
        arrays[name] = np.full(arrays[name].shape, Malicious(tmp_path / "executed"))
        with pytest.raises(InputError, match=f"{name}(.npy)? holds Python objects, which are not"):
            write(kind, **arrays)
        assert not (tmp_path / "executed").exists()


class TestNumpy:
    def test_a_single_file_holds_logits(self, tmp_path, scratch_fn):
        np.save(tmp_path / "audio.npy", LOGITS)
        predictions = open_predictions(tmp_path / "audio.npy", scratch_fn=scratch_fn)
        assert_array_equal(predictions.logits.read(), LOGITS)

    @pytest.mark.parametrize("array", [LOGITS.astype(">f4"), np.asfortranarray(LOGITS)])
    def test_order_of_bytes_and_axes(self, array, write):
        logits = write("folder", logits=array, ids=IDS.astype(">i4")).logits
        assert_array_equal(logits.read(), LOGITS)
        assert_array_equal(logits.read(np.array([5, 2])), LOGITS[[5, 2]])

    @pytest.mark.parametrize("array", [IDS.astype(complex), IDS.astype("V8")])
    def test_ids_of_no_use(self, array, write):
        with pytest.raises(InputError, match="save int64 or text"):
            write("folder", logits=LOGITS, ids=array)

    def test_more_rows_than_memory_are_opened_at_once(self, tmp_path, scratch_fn):
        shape = (200_000_000, 309)  # 247 GB that were never written
        with (tmp_path / "audio.npy").open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + 4 * shape[0] * shape[1])
        logits = open_predictions(tmp_path / "audio.npy", scratch_fn=scratch_fn).logits
        assert_array_equal(logits.read(np.array([shape[0] - 1, 0])), np.zeros((2, 309)))

    def test_unknown_ending(self, tmp_path, scratch_fn):
        (tmp_path / "audio.pt").write_bytes(b"")
        with pytest.raises(InputError, match="the ending '.pt' is unknown; take .npz, .npy, "):
            open_predictions(tmp_path / "audio.pt", scratch_fn=scratch_fn)


class TestSafetensors:
    def test_unknown_type(self, tmp_path, scratch_fn):
        logits = np.zeros((3, 4), jnp.float8_e4m3fn)
        safetensors.numpy.save_file({"logits": logits}, tmp_path / "audio.safetensors")
        with pytest.raises(InputError, match="logits is F8_E4M3; save it as F32"):
            open_predictions(tmp_path / "audio.safetensors", scratch_fn=scratch_fn)


class TestParquet:
    @pytest.mark.parametrize(
        "column_type",
        [
            pa.list_(pa.float32()),
            pa.list_(pa.float32(), NUM_CLASSES),
            pa.large_list(pa.float64()),
            pa.list_(pa.float16()),
        ],
        ids=str,
    )
    def test_lists_of_any_kind(self, column_type, tmp_path, scratch_fn):
        column = pa.array(LOGITS.astype(np.float16).tolist()).cast(column_type)
        path = tmp_path / "audio.parquet"
        pq.write_table(pa.table({"logits": column}), path, row_group_size=7)
        logits = open_predictions(path, scratch_fn=scratch_fn).logits
        assert logits.dtype == column_type.value_type.to_pandas_dtype()
        assert_array_equal(logits.read(), LOGITS.astype(np.float16))

    def test_more_rows_than_are_read_at_once(self, write):
        logits = RNG.normal(size=(3000, 2))
        assert_array_equal(write("parquet", logits=logits).logits.read(), logits)

    @pytest.mark.parametrize(
        "column_type", [pa.dictionary(pa.int32(), pa.string()), pa.string_view(), pa.binary()]
    )
    def test_ids_of_any_kind(self, column_type, tmp_path, scratch_fn):
        path, ids = tmp_path / "audio.parquet", pa.array(["a", "b", "c"]).cast(column_type)
        pq.write_table(pa.table({"ids": ids, "logits": list(LOGITS[:3])}), path, row_group_size=2)
        opened = open_predictions(path, scratch_fn=scratch_fn)
        assert opened.ids is not None
        assert opened.ids.to_pylist() == ["a", "b", "c"]

    @pytest.mark.parametrize("name", ["ids", "logits"])
    def test_two_columns_of_one_name(self, name, tmp_path, scratch_fn):
        path, logits = tmp_path / "audio.parquet", pa.array(LOGITS.tolist())
        columns = [("logits", logits), ("ids", pa.array(IDS))]
        columns.append((name, dict(columns)[name]))
        names, arrays = zip(*columns, strict=True)
        pq.write_table(pa.table(list(arrays), list(names)), path)
        with pytest.raises(InputError, match=f"has more than one column `{name}`; keep one"):
            open_predictions(path, scratch_fn=scratch_fn)

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"ids": [1, None]}, "1 ids are null"),
            ({"labels": [1, None]}, "labels are int64, 1 of them null"),
            ({"ids": pa.array([2**63, 1], pa.uint64())}, "ids are uint64; save int64 or text"),
            ({"ids": [b"\xff", b"a"]}, "ids are binary; save int64 or text"),
            ({"ids": ["", ""]}, "1 ids occur more than once, ''; give every row its own"),
            ({"ids": [[1], [2]]}, r"ids are list<.*>; save int64 or text"),
            ({"logits": [[1.0, 2.0], None]}, "null, hold a null or differ in length"),
            ({"logits": [[1.0, 2.0], [1.0]]}, "null, hold a null or differ in length"),
            ({"logits": [[1.0, 2.0], [1.0, None]]}, "null, hold a null or differ in length"),
            ({"logits": [[], []]}, "logits is a column of list<.*null>"),
            ({"logits": pa.array([[], []], pa.list_(pa.float32()))}, "logits is empty"),
            ({"logits": [1.0, 2.0]}, "logits is a column of double; save a list of float32 a row"),
            ({"logits": [[1, 2], [3, 4]]}, "logits is a column of list<.*int64>"),
        ],
    )
    def test_what_does_not_fit(self, columns, message, tmp_path, scratch_fn):
        path = tmp_path / "audio.parquet"
        pq.write_table(pa.table({"logits": [[1.0, 2.0], [3.0, 4.0]]} | columns), path)
        with pytest.raises(InputError, match=message):
            open_predictions(path, scratch_fn=scratch_fn)


class TestHead:
    @pytest.fixture
    def spectrum_of(self, tmp_path, scratch_fn):
        def read_spectrum(*, dtype="float64", **arrays):
            safetensors.numpy.save_file(arrays, tmp_path / "head.safetensors")
            path = tmp_path / "head.safetensors"
            heads = open_arrays(path, HEADS, bare="kernel", scratch_fn=scratch_fn)
            return head_spectrum(heads, NUM_CLASSES, np.dtype(dtype))

        return read_spectrum

    @pytest.mark.parametrize(
        "arrays",
        [
            {"kernel": KERNEL},
            {"weight": np.ascontiguousarray(KERNEL.T)},
            {"gram": KERNEL.T @ KERNEL},
        ],
        ids=lambda arrays: next(iter(arrays)),
    )
    def test_gives_the_same_gram_matrix(self, arrays, spectrum_of):
        g, V = spectrum_of(**arrays)
        C = np.eye(NUM_CLASSES) - 1 / NUM_CLASSES
        assert_allclose((V * g[None]) @ V.T, C @ KERNEL.T @ KERNEL @ C, atol=1e-5)

    def test_none_is_the_identity(self):
        g, V = head_spectrum({}, 3, np.dtype("float64"))
        assert_allclose((V * g[None]) @ V.T, np.eye(3) - 1 / 3, atol=1e-6)

    @pytest.mark.parametrize("floating", ["float16", "bfloat16", "float32"])
    def test_takes_a_gram_matrix_that_was_rounded(self, floating, spectrum_of):
        kernel = KERNEL[:1]  # all other eigenvalues are zero, and below when they are rounded
        g, V = spectrum_of(gram=(kernel.T @ kernel).astype(jnp.dtype(floating)))
        centred = kernel - kernel.mean()
        atol = 4 * NUM_CLASSES * float(jnp.finfo(floating).eps) * np.abs(kernel).max() ** 2
        assert_allclose((V * g[None]) @ V.T, centred.T @ centred, atol=atol)

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"kernel": KERNEL.T.copy()}, r"kernel has shape \(4, 6\), but K = 4; a `kernel` is"),
            ({"weight": KERNEL}, r"weight has shape \(6, 4\), but K = 4; .*, as torch has it"),
            ({"gram": KERNEL}, r"gram must be \(K, K\) and symmetric, got shape \(6, 4\)"),
            ({"gram": KERNEL[:4]}, r"gram must be \(K, K\) and symmetric, got shape \(4, 4\)"),
            ({"gram": -np.eye(4)}, "gram has the eigenvalue -1, where none may be negative; save"),
            ({"kernel": KERNEL[0]}, r"kernel has shape \(4,\), but K = 4"),
            ({"kernel": KERNEL.astype(int)}, "kernel is int64, not floating; save it as float32"),
            ({"kernel": KERNEL * np.nan}, "kernel is not finite"),
            ({"kernel": KERNEL, "gram": KERNEL}, "(kernel|gram), .*(kernel|gram): keep one"),
        ],
    )
    def test_does_not_fit(self, arrays, message, spectrum_of):
        with pytest.raises(InputError, match=message):
            spectrum_of(**arrays)

    @pytest.mark.parametrize(
        ("arrays", "dtype", "remedy"),
        [
            ({"kernel": 1e25 * KERNEL}, "float32", ", or save float64 logits and set JAX_ENABLE"),
            ({"weight": 1e45 * KERNEL.T.astype(float)}, "float32", ", or save float64 logits"),
            ({"gram": 1e300 * np.eye(4)}, "float32", "$"),
            ({"gram": 1e300 * np.eye(4)}, "float64", "$"),
            ({"kernel": 1e200 * KERNEL.astype(float)}, "float64", "$"),
        ],
    )
    def test_is_too_large(self, arrays, dtype, remedy, spectrum_of):
        [(name, head)] = arrays.items()
        message = (
            f"head.safetensors: {name} has entries up to {np.abs(head).max():.3g}, too large to "
            f"compute with in {dtype}; scale it down{remedy}"
        ).replace("+", r"\+")
        with pytest.raises(InputError, match=message):
            spectrum_of(dtype=dtype, **{name: np.ascontiguousarray(head)})
