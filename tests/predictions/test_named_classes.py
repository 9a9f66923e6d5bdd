"""The binary that fuses predictions whose classes have names, against runs and oracles without."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import scipy.special
from numpy.testing import assert_allclose, assert_array_equal

from jacfuse_jax.predictions import stream
from tests import reference
from tests.predictions.formats import WRITERS, write_named
from tests.predictions.runs import (
    AUDIO,
    KERNEL,
    LABELS,
    NUM_CLASSES,
    NUM_ROWS,
    RNG,
    VIDEO,
    error_of,
    fuse,
    write_inputs,
)
from tests.predictions.test_program import oracle

NAMES = ("sea", "dog", "cat", "owl", "fly")
ORDER = np.array([3, 0, 4, 2, 1])
IDS = np.arange(NUM_ROWS) + 100
REVERSED = np.arange(NUM_CLASSES)[::-1]


def pick(order, names=NAMES):
    """Names in another order."""
    return tuple(names[k] for k in order)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "fused.npz"


def read(path):
    with np.load(path) as file:
        return {name: file[name] for name in file}


def table_of(printed):
    """The metrics that were printed."""
    return [line for line in printed.splitlines() if line.startswith("|")]


@pytest.fixture
def flags_of(tmp_path):
    """Writes inputs whose classes have names; {modality: (order, arrays)} to their flags."""

    def write(flag="input", kind="npz", names=NAMES, **inputs):
        flags = []
        for name, (order, arrays) in inputs.items():
            path = tmp_path / f"{flag}_{name}.{kind}"
            write_named(kind, path, {"ids": IDS, **arrays}, pick(order, names))
            flags.append(f"--{flag}={name}={path}")
        return flags

    return write


class TestAnotherOrder:
    @pytest.mark.parametrize("perturbed", ["audio", "video"])
    @pytest.mark.parametrize("kind", WRITERS)
    def test_gives_the_same(self, kind, perturbed, flags_of, tmp_path, output, capsys):
        arguments = [f"--perturbed={perturbed}", "--contamination=0.2", f"--output={output}"]
        fuse(*write_inputs(tmp_path), *arguments)
        expected, table = read(output), table_of(capsys.readouterr().out)
        audio, video = {"logits": AUDIO}, {"logits": VIDEO[:, ORDER].copy()}
        if kind == "parquet":
            np.save(tmp_path / "kernel.npy", KERNEL)
            arguments += [f"--kernel=audio={tmp_path}/kernel.npy"] * (perturbed == "audio")
        else:
            audio["kernel"] = KERNEL
        # An integer is a position in the order of its own file.
        labels = {"labels": np.argsort(ORDER)[LABELS]}
        first = np.arange(NUM_CLASSES)
        flags = flags_of(kind=kind, audio=(first, audio), video=(ORDER, {**video, **labels}))
        fuse(*flags, *arguments)
        found = read(output)
        assert tuple(found.pop("classes")) == NAMES
        metadata = json.loads(str(found.pop("jacfuse_jax")))
        for name, array in found.items():
            assert_array_equal(array, expected[name])
        printed = capsys.readouterr().out
        assert table_of(printed) == table
        [remark] = metadata["class_remarks"]
        name = f"input_video.{kind}"
        assert remark == f"{name}: classes are in another order, and were aligned by name"
        assert remark in printed
        assert metadata["classes"] == list(NAMES)

    @pytest.mark.parametrize("head", ["kernel", "weight", "gram"])
    def test_permutes_the_last_layer(self, head, flags_of, tmp_path, output):
        arguments = ["--perturbed=video", "--contamination=0.2", f"--output={output}"]
        gram = KERNEL.T @ KERNEL
        first = np.arange(NUM_CLASSES)
        own = KERNEL[:, ORDER]
        heads = {"kernel": own, "weight": own.T, "gram": gram[ORDER][:, ORDER]}
        video = {"logits": VIDEO[:, ORDER], head: heads[head]}
        fuse(*flags_of(audio=(first, {"logits": AUDIO}), video=(ORDER, video)), *arguments)
        probs, norms = oracle(
            {"audio": AUDIO, "video": VIDEO},
            {"video": gram},
            np.full(NUM_CLASSES, 1 / NUM_CLASSES),
            gamma=0.1,
            contamination=0.2,
        )
        found = read(output)
        eps = 8 * NUM_CLASSES * float(np.finfo(np.float32).eps)
        assert_allclose(np.exp(found["log_probs"]), probs, rtol=0, atol=eps)
        assert_allclose(found["jacobian_norm"], norms, rtol=0, atol=eps * max(1, norms.max()))
        # A layer of its own may have an order of its own, or that of its modality.
        for order, names in ((REVERSED, pick(REVERSED)), (ORDER, None)):
            arrays: dict[str, Any] = {"kernel": KERNEL[:, order]}
            arrays |= {} if names is None else {"classes": names}
            np.savez(tmp_path / "head.npz", **arrays)
            flags = flags_of(
                audio=(first, {"logits": AUDIO}), video=(ORDER, {"logits": VIDEO[:, ORDER]})
            )
            fuse(*flags, f"--kernel=video={tmp_path}/head.npz", *arguments)
            assert_allclose(np.exp(read(output)["log_probs"]), probs, rtol=0, atol=eps)

    @pytest.mark.parametrize("num_classes", [2, 309])
    def test_of_few_and_many_classes(self, num_classes, tmp_path, output):
        names = np.array([f"class {k}" for k in range(num_classes)])
        order = RNG.permutation(num_classes)[::-1] if num_classes > 2 else np.array([1, 0])
        audio, video = (RNG.normal(size=(7, num_classes)).astype(np.float32) for _ in range(2))
        kernel = RNG.normal(size=(4, num_classes)).astype(np.float32)
        inputs = [f"--input={name}={tmp_path}/{name}.npz" for name in ("audio", "video")]
        arguments = [*inputs, "--perturbed=video", f"--output={output}"]
        np.savez(tmp_path / "audio.npz", logits=audio)
        np.savez(tmp_path / "video.npz", logits=video, kernel=kernel)
        fuse(*arguments)
        expected = read(output)
        np.savez(tmp_path / "audio.npz", logits=audio, classes=names)
        own, names = kernel[:, order], names[order]
        np.savez(tmp_path / "video.npz", logits=video[:, order], kernel=own, classes=names)
        fuse(*arguments)
        found = read(output)
        assert_array_equal(found["log_probs"], expected["log_probs"])
        assert_array_equal(found["jacobian_norm"], expected["jacobian_norm"])

    def test_in_chunks_of_float64(self, flags_of, output, monkeypatch):
        audio, video = AUDIO.astype(np.float64), VIDEO.astype(np.float64)
        monkeypatch.setattr(stream, "_CHUNK_ENTRIES", 7 * NUM_CLASSES)
        backwards = {"ids": IDS[::-1], "logits": video[::-1][:, ORDER]}
        flags = flags_of(audio=(REVERSED, {"logits": audio[:, REVERSED]}), video=(ORDER, backwards))
        fuse(*flags, f"--output={output}")
        found = read(output)
        assert found["log_probs"].dtype == np.float64
        prior = np.full(NUM_CLASSES, 1 / NUM_CLASSES)
        probs = reference.statistical_fusion({"audio": audio, "video": video}, prior)
        assert_allclose(np.exp(found["log_probs"]), probs[:, REVERSED], rtol=1e-13)
        assert tuple(found["classes"]) == pick(REVERSED)

    def test_of_labels_and_validation(self, flags_of, output):
        labels = np.array(NAMES)[LABELS]
        first = np.arange(NUM_CLASSES)
        flags = flags_of(
            audio=(first, {"logits": AUDIO}), video=(ORDER, {"logits": VIDEO[:, ORDER]})
        )
        flags += flags_of(
            "validation",
            video=(REVERSED, {"logits": VIDEO[:, REVERSED], "labels": labels}),
            audio=(first, {"logits": AUDIO}),
        )
        arguments = ["--perturbed=audio", "--gamma=1", "--contamination=auto"]
        fuse(*flags, *arguments, "--class_prior=labels", f"--output={output}")
        named = json.loads(str(read(output)["jacfuse_jax"]))
        flags = flags_of(
            audio=(first, {"logits": AUDIO, "labels": LABELS}), video=(first, {"logits": VIDEO})
        )
        flags += ["--classes=position", "--class_prior=labels"]
        fuse(*flags, *arguments, f"--output={output}")
        metadata = json.loads(str(read(output)["jacfuse_jax"]))
        assert named["rule"] == metadata["rule"]
        assert named["class_prior"] == metadata["class_prior"]


class TestOutput:
    @pytest.fixture
    def fused(self, flags_of, tmp_path, output):
        """What is fused in each format, in rows of which one is no prediction."""
        audio = AUDIO.copy()
        audio[3] = np.inf
        flags = flags_of(
            audio=(np.arange(NUM_CLASSES), {"logits": audio}),
            video=(ORDER, {"logits": VIDEO[:, ORDER]}),
        )
        for ending in ("npz", "csv", "parquet"):
            fuse(*flags, f"--output={tmp_path}/fused.{ending}")
        return read(output)

    def test_names_classes(self, fused, tmp_path):
        assert tuple(fused["classes"]) == NAMES
        assert fused["prediction"].dtype == np.int32
        expected = [None if k < 0 else NAMES[k] for k in fused["prediction"]]
        assert expected[3] is None
        table = pq.read_table(tmp_path / "fused.parquet")
        assert table["predicted_class"].to_pylist() == expected
        assert_array_equal(table["prediction"], fused["prediction"])
        assert json.loads(table.schema.metadata[b"classes"]) == list(NAMES)
        frame = pd.read_csv(tmp_path / "fused.csv", keep_default_na=False)
        assert frame["predicted_class"].tolist() == [name or "" for name in expected]
        assert list(frame)[-NUM_CLASSES:] == [f"log_probs_{name}" for name in NAMES]
        metadata = json.loads((tmp_path / "fused.csv.json").read_text())
        assert metadata["classes"] == list(NAMES)

    @pytest.mark.parametrize("ending", ["npz", "parquet"])
    def test_can_be_fused_again(self, ending, fused, flags_of, tmp_path):
        image = RNG.normal(size=AUDIO.shape)
        flags = flags_of(image=(REVERSED, {"logits": image[:, REVERSED]}))
        output = tmp_path / "twice.npz"
        fuse(*flags, f"--input=both={tmp_path}/fused.{ending}", f"--output={output}")
        probs = reference.statistical_fusion(
            {"both": fused["log_probs"], "image": image}, np.full(NUM_CLASSES, 1 / NUM_CLASSES)
        )
        good = np.arange(NUM_ROWS) != 3
        found = read(output)
        assert tuple(found["classes"]) == pick(REVERSED)
        assert_allclose(np.exp(found["log_probs"])[good], probs[good][:, REVERSED], atol=1e-6)

    def test_names_integers(self, flags_of, tmp_path):
        numbers = (30, 10, 50, 20, 40)
        first = np.arange(NUM_CLASSES)
        arrays = {"logits": AUDIO, "labels": np.array(numbers)[LABELS]}
        flags = flags_of(names=numbers, audio=(first, arrays))
        fuse(*flags, f"--output={tmp_path}/fused.parquet")
        table = pq.read_table(tmp_path / "fused.parquet")
        assert table["predicted_class"].to_pylist() == [numbers[k] for k in AUDIO.argmax(axis=1)]
        [remark] = json.loads(table.schema.metadata[b"jacfuse_jax"])["class_remarks"]
        assert remark.endswith("labels are classes, not positions, which end at 4")


# Audio knows the first four classes, video all but the second, in another order.
KNOWN = {"audio": np.array([0, 1, 2, 3]), "video": np.array([4, 2, 0, 3])}
LOGITS = {"audio": AUDIO, "video": VIDEO}


@pytest.fixture
def differing(flags_of):
    """Flags of audio, with texts as labels, and video, whose classes differ."""

    def write(**heads):
        return flags_of(
            **{
                name: (known, {"logits": LOGITS[name][:, known], **heads.get(name, {})})
                for name, known in KNOWN.items()
            }
        )

    return write


class TestIntersect:
    COMMON = np.array([0, 2, 3])

    @pytest.mark.parametrize("head", ["kernel", "weight", "gram"])
    def test_keeps_what_all_have(self, head, differing, output, tmp_path, capsys):
        known = KNOWN["audio"]
        own = KERNEL[:, known]
        heads = {"kernel": own, "weight": own.T, "gram": own.T @ own}
        flags = differing(
            audio={head: heads[head], "labels": LABELS % 4},
            video={"labels": np.array(NAMES)[np.where(LABELS < 4, LABELS, 0)]},
        )
        prior = np.array([1, 2, 3, 4, 5])
        np.savez(tmp_path / "prior.npz", class_prior=prior[::-1], classes=pick(REVERSED))
        fuse(
            *flags,
            *("--classes=intersect", "--perturbed=audio", "--contamination=0.2"),
            f"--class_prior={tmp_path}/prior.npz",
            f"--output={output}",
        )
        kernel = KERNEL[:, self.COMMON].astype(np.float64)
        probs, norms = oracle(
            {name: z[:, self.COMMON] for name, z in LOGITS.items()},
            {"audio": kernel.T @ kernel},
            prior[self.COMMON] / prior[self.COMMON].sum(),
            gamma=0.1,
            contamination=0.2,
        )
        found = read(output)
        assert tuple(found["classes"]) == pick(self.COMMON)
        eps = 8 * 3 * float(np.finfo(np.float32).eps)
        assert_allclose(np.exp(found["log_probs"]), probs, rtol=0, atol=eps)
        assert_allclose(found["jacobian_norm"], norms, rtol=0, atol=eps * max(1, norms.max()))
        printed = capsys.readouterr().out
        assert "input_audio.npz: 1 of 4 classes are left out, which others lack: 'dog'" in printed
        assert "input_video.npz: 1 of 4 classes are left out, which others lack: 'fly'" in printed

    def test_leaves_labels_out(self, differing, output, capsys):
        flags = differing(audio={"labels": np.array(NAMES)[LABELS]})
        fuse(*flags, "--classes=intersect", f"--output={output}")
        printed = capsys.readouterr().out
        is_common = np.isin(LABELS, self.COMMON)
        num_left_out = (~is_common).sum()
        assert f"labels: {num_left_out} are of classes that are left out, and not" in printed
        assert f"figures are of {is_common.sum()} rows, which have labels and" in printed
        names = read(output)["classes"][read(output)["prediction"]]
        correct = (names == np.array(NAMES)[LABELS])[is_common].mean()
        assert f"| result             | {100 * correct:.2f} " in printed


class TestUnite:
    @pytest.mark.parametrize("with_prior", [False, True])
    @pytest.mark.parametrize("contamination", [0, 0.3])
    def test_takes_the_prior_of_what_is_not_known(
        self, with_prior, contamination, differing, output, tmp_path, capsys
    ):
        prior = np.full(NUM_CLASSES, 1 / NUM_CLASSES)
        arguments = ["--classes=unite", "--perturbed=audio", f"--contamination={contamination}"]
        if with_prior:
            prior = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
            np.savez(tmp_path / "prior.npz", class_prior=prior[ORDER], classes=pick(ORDER))
            arguments.append(f"--class_prior={tmp_path}/prior.npz")
        fuse(
            *differing(video={"labels": np.array(NAMES)[LABELS]}),
            *arguments,
            f"--output={output}",
        )
        united = {}
        for name, known in KNOWN.items():
            probs = np.tile(prior, (NUM_ROWS, 1))
            own = scipy.special.softmax(LOGITS[name][:, known].astype(np.float64), axis=1)
            probs[:, known] = own * prior[known].sum()
            united[name] = np.log(probs)
            assert_allclose(probs.sum(axis=1), 1)
        probs, norms = oracle(
            united, {"audio": np.eye(NUM_CLASSES)}, prior, gamma=0.1, contamination=contamination
        )
        found = read(output)
        assert tuple(found["classes"]) == NAMES
        eps = 8 * NUM_CLASSES * float(np.finfo(np.float32).eps)
        assert_allclose(np.exp(found["log_probs"]), probs, rtol=0, atol=eps)
        assert_allclose(found["jacobian_norm"], norms, rtol=0, atol=eps * max(1, norms.max()))
        printed = capsys.readouterr().out
        lacks = "_audio.npz lacks 1 of 5 classes, of which it says the class prior: 'fly'"
        assert lacks in printed
        accuracy = 100 * (probs.argmax(axis=1) == LABELS).mean()
        assert f"| result             | {accuracy:.2f} " in printed

    def test_takes_probabilities(self, differing, flags_of, output):
        fuse(*differing(), "--classes=unite", f"--output={output}")
        expected = read(output)["log_probs"]
        flags = flags_of(
            **{
                name: (known, {"logits": scipy.special.softmax(LOGITS[name][:, known], axis=1)})
                for name, known in KNOWN.items()
            }
        )
        fuse(*flags, "--classes=unite", "--inputs_are=probabilities", f"--output={output}")
        assert_allclose(read(output)["log_probs"], expected, atol=1e-5)

    def test_says_nothing_where_it_said_nothing(self, differing, output):
        audio = AUDIO[:, :4].copy()
        audio[3, 1], audio[5], audio[7] = np.inf, -np.inf, np.nan
        fuse(
            *differing(audio={"logits": audio}),
            *("--classes=unite", "--perturbed=audio", "--gamma=1", "--contamination=0.1"),
            f"--output={output}",
        )
        known = KNOWN["video"]
        own = scipy.special.softmax(VIDEO[:, known].astype(np.float64), axis=1)
        probs = np.full((NUM_ROWS, NUM_CLASSES), 1 / NUM_CLASSES)
        probs[:, known] = own * 4 / 5
        silent = [3, 5, 7]
        found = np.exp(read(output)["log_probs"])
        assert_allclose(found[silent], probs[silent], atol=1e-6)
        assert np.abs(found - probs).max(axis=1)[[4, 6, 8]].min() > 1e-3

    def test_refuses_a_layer_that_lacks_classes(self, differing, output, tmp_path):
        heads = {"audio": {"kernel": KERNEL[:, :4]}}
        arguments = ["--classes=unite", "--perturbed=audio", f"--output={output}"]
        assert error_of(*differing(**heads), *arguments) == (
            f"--classes=unite: {tmp_path}/input_audio.npz lacks classes, so that its kernel does "
            "not tell the Jacobian; give --gamma=1, or --classes=intersect"
        )
        fuse(*differing(**heads), *arguments, "--gamma=1", "--contamination=0.1")
        metadata = json.loads(str(read(output)["jacfuse_jax"]))
        assert metadata["identity_gram"] == ["audio"]
        # Of a trusted modality no layer is looked at.
        fuse(*differing(**heads), "--classes=unite", "--perturbed=video", f"--output={output}")


class TestRefused:
    def test_classes_that_differ(self, differing, output, tmp_path):
        assert error_of(*differing(), f"--output={output}") == (
            f"classes differ: {tmp_path}/input_audio.npz lacks 1 of 5: 'fly'; "
            f"{tmp_path}/input_video.npz lacks 1 of 5: 'dog'; rename them, or give "
            "--classes=intersect or unite"
        )
        assert not output.exists()

    @pytest.mark.parametrize("flag", ["input", "validation"])
    def test_some_without_names(self, flag, flags_of, output, tmp_path):
        np.savez(tmp_path / "v.npz", logits=VIDEO, ids=IDS)
        first = np.arange(NUM_CLASSES)
        if flag == "input":
            flags = [*flags_of(audio=(first, {"logits": AUDIO})), f"--input=v={tmp_path}/v.npz"]
        else:
            flags = flags_of(audio=(first, {"logits": AUDIO}))
            flags.append(f"--validation=audio={tmp_path}/v.npz")
        message = error_of(*flags, f"--output={output}")
        assert message == (
            f"{tmp_path}/input_audio.npz holds `classes`, {tmp_path}/v.npz none, so that their "
            "order is unknown; save them with all, or give --classes=position"
        )
        fuse(*flags, "--classes=position", f"--output={output}")
        assert "classes" not in read(output)

    @pytest.mark.parametrize("how", ["intersect", "unite"])
    def test_none_with_names(self, how, tmp_path, output):
        flags = write_inputs(tmp_path)
        message = error_of(*flags, f"--classes={how}", f"--output={output}")
        assert message == f"--classes={how} needs `classes`, which no input has"

    def test_position_takes_them_as_they_lie(self, flags_of, output, capsys):
        first = np.arange(NUM_CLASSES)
        flags = flags_of(audio=(first, {"logits": AUDIO}), video=(ORDER, {"logits": VIDEO}))
        fuse(*flags, "--classes=position", f"--output={output}")
        assert "input_audio.npz: not used: classes\n" in capsys.readouterr().err
        prior = np.full(NUM_CLASSES, 1 / NUM_CLASSES)
        probs = reference.statistical_fusion(LOGITS, prior)
        assert_allclose(np.exp(read(output)["log_probs"]), probs, atol=1e-6)

    @pytest.mark.parametrize("kind", WRITERS)
    def test_classes_of_another_number(self, kind, tmp_path, output):
        path = tmp_path / f"a.{kind}"
        write_named(kind, path, {"logits": AUDIO}, NAMES[:4])
        message = error_of(f"--input=audio={path}", f"--output={output}")
        assert message == f"{path}: 4 classes, but logits of 5"

    def test_two_kinds(self, tmp_path, output):
        for name, classes in (("a", np.arange(5)), ("v", np.arange(5).astype(str))):
            np.savez(tmp_path / f"{name}.npz", logits=AUDIO, classes=classes)
        inputs = [f"--input={name}={tmp_path}/{name}.npz" for name in "av"]
        assert error_of(*inputs, f"--output={output}") == (
            f"classes are integers in {tmp_path}/a.npz, but texts in {tmp_path}/v.npz; save one "
            "kind"
        )

    def test_labels_that_are_no_class(self, flags_of, output, tmp_path):
        labels = np.array(NAMES)[LABELS]
        labels[7] = "cow"
        first = np.arange(NUM_CLASSES)
        flags = flags_of(audio=(first, {"logits": AUDIO, "labels": labels}))
        assert error_of(*flags, f"--output={output}") == (
            f"{tmp_path}/input_audio.npz: labels: row 7 is 'cow', none of the classes 'sea', "
            "'dog', 'cat', ...; correct it"
        )

    def test_texts_as_labels_of_classes_without_names(self, tmp_path, output):
        np.savez(tmp_path / "a.npz", logits=AUDIO, labels=np.array(NAMES)[LABELS])
        message = error_of(f"--input=audio={tmp_path}/a.npz", f"--output={output}")
        assert (
            "labels are string, 0 of them null; save an integer a row, or texts with `cl" in message
        )

    @pytest.mark.parametrize(
        ("named", "message"),
        [
            ({}, "does not name its classes, and inputs have other ones, or another order; name "),
            ({"classes": NAMES[:4]}, r"has 4 classes, but shape (5,)"),
            ({"classes": ("cow", *NAMES[1:])}, "lacks 1 classes: 'sea'"),
        ],
    )
    def test_a_prior(self, named, message, flags_of, output, tmp_path):
        np.savez(tmp_path / "prior.npz", class_prior=np.ones(5), **named)
        first = np.arange(NUM_CLASSES)
        flags = flags_of(
            audio=(first, {"logits": AUDIO}), video=(ORDER, {"logits": VIDEO[:, ORDER]})
        )
        prior = f"--class_prior={tmp_path}/prior.npz"
        assert f"{prior} {message}" in error_of(*flags, prior, f"--output={output}")

    @pytest.mark.parametrize("classes", [("cow", *NAMES[1:]), NAMES[:4]])
    def test_a_layer(self, classes, flags_of, output, tmp_path):
        head = tmp_path / "head.npz"
        np.savez(head, kernel=KERNEL, classes=classes)
        flags = flags_of(audio=(ORDER, {"logits": AUDIO}))
        arguments = [*flags, f"--kernel=audio={head}", "--perturbed=audio", f"--output={output}"]
        assert error_of(*arguments) == (
            f"--kernel=audio={head} names classes that are not those of "
            f"{tmp_path}/input_audio.npz; save the same with both"
        )

    def test_names_in_safetensors_that_are_no_list(self, output, tmp_path):
        path = tmp_path / "a.safetensors"
        safetensors.numpy.save_file({"logits": AUDIO}, path, {"classes": "sea, dog"})
        assert error_of(f"--input=audio={path}", f"--output={output}") == (
            f"{path}: classes must be a list of texts or of integers, in JSON"
        )
