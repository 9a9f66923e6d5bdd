"""What can be wrong with the flags of the binary that fuses predictions, alone and together."""

import io
import pickle

import numpy as np
import pytest

from jacfuse_jax.predictions import __main__ as program
from jacfuse_jax.predictions.flags import OUTPUT_ENDINGS
from jacfuse_jax.predictions.outputs import FORMATS
from tests.predictions.runs import AUDIO, KERNEL, LABELS, error_of, write_inputs


def npy(array):
    """The content of a file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture
def files(tmp_path):
    return write_inputs(tmp_path)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "fused.npz"


class TestClassPrior:
    @pytest.mark.parametrize(
        "array",
        [
            np.ones(4),
            np.array([1, 1, 1, 0, 1]),
            np.array([1, 1, np.nan, 1, 1]),
            np.ones((5, 1)),
            np.array(list("abcde")),
        ],
    )
    def test_that_does_not_fit(self, array, files, tmp_path, output):
        np.save(tmp_path / "prior.npy", array)
        message = error_of(
            *files,
            "--perturbed=audio",
            f"--class_prior={tmp_path}/prior.npy",
            f"--output={output}",
        )
        assert message == f"--class_prior={tmp_path}/prior.npy must hold 5 positive numbers"

    def test_too_small_for_the_dtype(self, files, tmp_path, output):
        np.save(tmp_path / "prior.npy", [1, 1, 1, 1e-46, 1])
        prior_flag = f"--class_prior={tmp_path}/prior.npy"
        message = error_of(*files, "--perturbed=audio", prior_flag, f"--output={output}")
        assert message == (
            f"{prior_flag}: the share 2.5e-47 of class 3 is zero in float32; give it a larger one"
        )

    def test_is_not_replaced(self, files, tmp_path):
        np.savez(tmp_path / "prior.npz", class_prior=np.ones(5))
        before = (tmp_path / "prior.npz").read_bytes()
        message = error_of(
            *files,
            "--perturbed=audio",
            f"--class_prior={tmp_path}/prior.npz",
            f"--output={tmp_path}/new/../prior.npz",
        )
        assert message.endswith("prior.npz would replace an input; choose another name")
        assert (tmp_path / "prior.npz").read_bytes() == before

    def test_from_labels_that_lack_a_class(self, tmp_path, output):
        np.savez(tmp_path / "a.npz", logits=AUDIO[:2], labels=[0, 2])
        message = error_of(
            f"--input=audio={tmp_path}/a.npz",
            "--perturbed=audio",
            "--class_prior=labels",
            f"--output={output}",
        )
        assert message.startswith("--class_prior=labels: no label is 1; give uniform, or a file")


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("--perturbed=smell", "--perturbed=smell: unknown 'smell'; choose from audio,video"),
            ("--perturbed=", "--perturbed=: give at least one"),
            ("--gamma=0", "--gamma=0: '0' is not a number in (0, 1], nor auto"),
            ("--gamma=1e-50", "--gamma=1e-50: '1e-50' is not a number in (0, 1], nor auto"),
            ("--gamma=small", "--gamma=small: 'small' is not a number in (0, 1], nor auto"),
            (
                "--contamination=1.5",
                "--contamination=1.5: '1.5' is not a number in [0, 1], nor auto",
            ),
            (
                "--contamination=nan",
                "--contamination=nan: 'nan' is not a number in [0, 1], nor",
            ),
            ("--input=audio={}/audio.npz", "--input=audio={}/audio.npz: audio is given twice"),
            ("--input={}/audio.npz", "--input={}/audio.npz: write <modality>=<file>"),
            ("--input=smell={}/no.npz", "--input=smell={}/no.npz: no such file or folder"),
            (
                "--kernel=smell={}/audio.npz",
                "--kernel=smell={}/audio.npz: no --input is called smell",
            ),
            (
                "--kernel=video={}/video.safetensors",
                "--kernel=video={}/video.safetensors would not be used, since video is not in",
            ),
            (
                "--kernel=audio={}/audio.npz",
                "--kernel=audio={}/audio.npz: {}/audio.npz holds its kernel",
            ),
            (
                "--kernel=video={}/video.safetensors --perturbed=video",
                "--kernel=video={}/video.safetensors holds none of kernel, weight, gram",
            ),
            ("--validation=audio={}/audio.npz", "--validation must be given of audio, video, each"),
            ("--class_prior={}/no.npy", "--class_prior={}/no.npy is neither uniform nor labels"),
            ("--class_prior=unifrom", "--class_prior=unifrom is neither uniform nor labels nor a"),
            ("--class_prior={}/audio.npz", "--class_prior={}/audio.npz holds no array `class_pr"),
            (
                "--join=position --ids_column=uid",
                "--ids_column=uid would not be used with --join=position; leave one out",
            ),
            (
                "--ids_column=uid",
                "{}/audio.npz has no array `uid`, only logits, ids, ",
            ),
            (
                "--logits_column=logit",
                "{}/audio.npz has no array `logit`, only logits, i",
            ),
            ("--labels_column=target", "--labels_column=target is in no input"),
            ("--output=", "--output is missing"),
            ("--output={}", "--output={} must be a file that ends in .parquet, .csv, .npz"),
            ("--output={}/fused.txt", "--output={}/fused.txt must be a file that ends in .parquet"),
            ("--output={}/audio.npz", "--output={}/audio.npz would replace an input; choose"),
            (
                "--output={}/audio.npz/fused.npz",
                "--output={}/audio.npz/fused.npz: its folder cannot be made (File exists)",
            ),
        ],
    )
    def test_flags(self, arguments, message, files, tmp_path):
        arguments = arguments.replace("{}", str(tmp_path)).split()
        defaults = ("--perturbed=audio", f"--output={tmp_path}/fused.npz")
        assert error_of(*files, *defaults, *arguments).startswith(
            message.replace("{}", str(tmp_path))
        )
        assert not (tmp_path / "fused.npz").exists()

    @pytest.mark.parametrize("flag", ["--gamma=0.1", "--gamma=auto", "--contamination=0.3"])
    def test_flags_that_nothing_perturbed_has_a_use_for(self, flag, files, output):
        message = error_of(*files, flag, f"--output={output}")
        assert message.startswith(f"{flag} needs --perturbed; name modalities, or leave both out")

    def test_output_among_its_inputs(self, tmp_path):
        (tmp_path / "audio").mkdir()
        np.save(tmp_path / "audio" / "logits.npy", AUDIO)
        output = tmp_path / "audio" / "fused.parquet"
        message = error_of(f"--input=audio={tmp_path}/audio", f"--output={output}")
        assert (
            message == f"--output={output} would lie in the input {tmp_path}/audio; choose another"
        )

    def test_every_format_of_the_output_has_a_writer(self):
        assert tuple(FORMATS) == OUTPUT_ENDINGS

    @pytest.mark.parametrize("flag", ["--class_prior=", "--kernel=audio=", "--validation=audio="])
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is not a whole .npy file"),
            (npy(KERNEL)[:-1], "is not a whole .npy file"),
            (b"no array\n" * 100, "is not a whole .npy file"),
            (pickle.dumps(KERNEL), "is not a whole .npy file"),
            (npy(np.full(5, None)), "holds Python objects, which are not loaded; save"),
        ],
        ids=["empty", "truncated", "text", "pickle", "objects"],
    )
    def test_content_of_files(self, flag, content, message, tmp_path, output):
        np.save(tmp_path / "audio.npy", AUDIO)
        (tmp_path / "bad.npy").write_bytes(content)
        found = error_of(
            f"--input=audio={tmp_path}/audio.npy",
            "--perturbed=audio",
            f"{flag}{tmp_path}/bad.npy",
            f"--output={output}",
        )
        assert found.startswith(f"{tmp_path}/bad.npy {message}")

    def test_kernel_too_large(self, files, tmp_path, output):
        np.savez(tmp_path / "head.npz", kernel=KERNEL / np.abs(KERNEL).max() * 1e25)
        kernel_flag = f"--kernel=video={tmp_path}/head.npz"
        message = error_of(*files, kernel_flag, "--perturbed=video", f"--output={output}")
        assert message.startswith(f"{tmp_path}/head.npz: kernel has entries up to 1e+25, too large")

    def test_no_input(self, output):
        message = error_of("--perturbed=audio", f"--output={output}")
        assert message.startswith("--input is missing; give --input=<modality>=<file>")

    def test_stray_argument(self):
        with pytest.raises(SystemExit, match="unexpected argument 'audio.npz'; all settings are"):
            program.main(["predictions", "audio.npz"])

    def test_no_labels(self, tmp_path, output):
        np.save(tmp_path / "audio.npy", AUDIO)
        defaults = (
            f"--input=audio={tmp_path}/audio.npy",
            "--perturbed=audio",
            f"--output={output}",
        )
        for flag in ("contamination=auto", "gamma=auto", "class_prior=labels"):
            message = error_of(*defaults, f"--{flag}")
            assert message == f"--{flag} needs `labels`, and no --input has any"

    def test_nothing_finite_to_choose_on(self, tmp_path, output):
        np.savez(tmp_path / "a.npz", logits=AUDIO * np.nan, labels=LABELS)
        message = error_of(
            f"--input=audio={tmp_path}/a.npz",
            "--perturbed=audio",
            "--gamma=auto",
            f"--output={output}",
        )
        assert message == ("--gamma=auto: audio is missing in each labelled row")

    def test_classes_that_differ(self, tmp_path, output):
        np.save(tmp_path / "audio.npy", AUDIO)
        np.save(tmp_path / "clean.npy", AUDIO[:, 1:])
        np.save(tmp_path / "kernel.npy", KERNEL[:, 1:])
        defaults = (
            f"--input=audio={tmp_path}/audio.npy",
            "--perturbed=audio",
            f"--output={output}",
        )
        message = error_of(*defaults, f"--validation=audio={tmp_path}/clean.npy")
        assert message == "--validation has 4 classes, --input 5"
        message = error_of(*defaults, f"--input=video={tmp_path}/clean.npy")
        assert message.startswith("inputs must have the same classes, got logits of shapes {")
        message = error_of(*defaults, f"--kernel=audio={tmp_path}/kernel.npy")
        assert message.startswith(f"{tmp_path}/kernel.npy has shape (7, 4), but K = 5; a `kernel`")
