"""What users can get wrong: one line that names flag or file, a non-zero exit, no traceback."""

import json

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import robust_fusion
from experiments.run import launch, start
from experiments.run.flags import config_from_flags
from jacfuse_jax.programs import InputError
from tests.experiments import runs


def error_of(*arguments):
    """The message with which the binary ends."""
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as caught:
        robust_fusion.main(launch.parse_flags(["robust_fusion", *arguments]))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--perturbed=smell", "--perturbed=smell: unknown 'smell'; choose from upper,lower"),
        ("--perturbed=", "--perturbed=: give at least one"),
        (
            "--methods=robust,magic",
            "--methods=robust,magic: unknown 'magic'; choose from unimodal,",
        ),
        (
            "--methods=mean,trimmed_mean",
            "--methods: trimmed_mean needs three modalities or more, got 2: upper, lower",
        ),
        ("--perturbations=fog", "--perturbations=fog: unknown 'fog'; choose from clean,"),
        ("--gammas=0.5,0", "--gammas=0.5,0: '0' is not a number in (0, 1]"),
        ("--gammas=nan", "--gammas=nan: 'nan' is not a number in (0, 1]"),
        ("--gammas=1.5", "--gammas=1.5: '1.5' is not a number in (0, 1]"),
        ("--gammas=small", "--gammas=small: 'small' is not a number in (0, 1]"),
        ("--gammas=", "--gammas=: give at least one"),
        ("--gammas=1e-50", "--gammas=1e-50: '1e-50' is not a number in (0, 1]"),
        ("--scales=-1", "--scales=-1: '-1' is not a number in [0, 1]"),
        ("--contaminations=2", "--contaminations=2: '2' is not a number in [0, 1]"),
        ("--temperings=1.1", "--temperings=1.1: '1.1' is not a number in [0, 1]"),
        (
            "--threat_models=known,worst",
            "--threat_models=known,worst: unknown 'worst'; choose from known,wrong",
        ),
        ("--threat_models=", "--threat_models=: give at least one"),
        ("--temperings=hot", "--temperings=hot: 'hot' is not a number in [0, 1]"),
        ("--temperings=", "--temperings=: give at least one"),
        ("--num_train=9999", "--num_train=9999: choose between 1 and the 1097 rows"),
        ("--num_eval=9999", "--num_eval=9999: choose between 1 and the 500 rows"),
        ("--num_train=3", "--num_train=3 leaves class"),
        ("--num_eval=1", "--num_eval=1: intervals need test rows of two groups; raise it"),
        ("--num_attack=1", "--num_attack=1: intervals need test rows of two groups; raise it"),
        (
            "--methods=statistical,learned_cascade",
            "--methods=learned_cascade: it is fitted to attacked validation rows; give",
        ),
        (
            "--methods=learned_cascade --num_select=9 --threat_models=both,unknown",
            "--methods=learned_cascade: it needs a modality that is trusted; give",
        ),
        (
            "--methods=statistical,learned_cascade --num_select=2",
            "--num_select=2: learned_cascade is fitted in folds, each of which must leave",
        ),
        (
            "--num_select=1",
            "--num_select=1: intervals need validation rows of two groups; raise it",
        ),
        ("--attack_share=nan", "--attack_share=nan: 'nan' is not a number in [0, 1]"),
        ("--max_missing=nan", "--max_missing=nan: 'nan' is not a number in [0, 1]"),
        (
            f"--weights=upper={__file__}",
            f"--weights=upper={__file__}: only classifiers of vggsound take weights",
        ),
        (
            f"--dataset=vggsound --weights=image={__file__}",
            f"--weights=image={__file__}: unknown 'image'; choose from video,audio",
        ),
        ("--dataset=vggsound --weights=video", "--weights=video: write <modality>=<file>"),
        (
            f"--dataset=vggsound --weights=video={__file__} --weights=video={__file__}",
            f"--weights=video={__file__}: video is given twice",
        ),
        (
            "--dataset=vggsound --weights=video=gone",
            "--weights=video=gone: no such file",
        ),
        ("--fold=6", "--fold=6: choose from 0 to 5"),
        ("--kinds=upper:image", "--kinds=upper:image: only modalities of arrays take kinds"),
        ("--dataset=arrays", "--manual_dir=None: arrays are your own; name their folder"),
        ("--dataset=arrays --manual_dir=/gone", "--manual_dir=/gone: no such folder or .npz file"),
        ("--num_epochs=0", "--num_epochs=0 trains nothing; give --weights of every modality"),
        ("--seed=4294967295 --num_seeds=2", "--seed=4294967295 --num_seeds=2: seeds must stay"),
    ],
)
def test_flags(argument, message, tmp_path):
    assert error_of(f"--workdir={tmp_path / 'run'}", *argument.split()).startswith(
        f"error: {message}"
    )
    assert not (tmp_path / "run").exists()  # a corrected command may use the same folder


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--num_seeds=0", "--num_seeds=0: 0 is not a positive integer"),
        ("--num_seeds=two", "--num_seeds=two: "),
        ("--num_select=-1", "--num_select=-1: -1 is not a non-negative integer"),
        ("--num_restarts=0", "--num_restarts=0: 0 is not a positive integer"),
        (
            "--attack_share=1.5",
            "--attack_share=1.5: '1.5' is not a number in [0, 1]",
        ),
        (
            "--attack_share=-0.1",
            "--attack_share=-0.1: '-0.1' is not a number in [0, 1]",
        ),
        ("--fold=-1", "--fold=-1: -1 is not a non-negative integer"),
        ("--kinds=upper", "--kinds=upper: 'upper' is not <modality>:<name>"),
        ("--kinds=a:smell", "--kinds=a:smell: unknown 'smell'; choose from vector,series,image,"),
        ("--num_workers=0", "--num_workers=0: 0 is not a positive integer"),
        ("--select_attack=missing", "--select_attack=missing: value should be one of <fgm|"),
        ("--gamma=1", "--gamma is no flag of this program (did you mean --gammas?)"),
        ("--nothing_like_it", "--nothing_like_it is no flag of this program"),
        ("--suite=huge", "--suite=huge: value should be one of <demo|full|quick|standard>"),
    ],
)
def test_flags_that_absl_refuses(argument, message):
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as caught:
        launch.parse_flags(["robust_fusion", argument])
    text = str(caught.value)
    assert text.startswith(f"error: {message}")
    assert text.endswith("(--help lists all flags)")
    assert "\n" not in text


def test_stray_argument():
    with pytest.raises(SystemExit, match="unexpected argument 'digits'; all settings are --flags"):
        robust_fusion.main(["robust_fusion", "digits"])


def test_raw_files_missing(tmp_path):
    message = error_of(
        f"--workdir={tmp_path / 'run'}",
        "--dataset=av_mnist",
        f"--data_dir={tmp_path / 'data'}",
        f"--manual_dir={tmp_path / 'nowhere'}",
    )
    assert str(tmp_path / "nowhere") in message


class TestWorkdir:
    def test_of_other_flags(self, tmp_path):
        flag = {"num_eval": 17, "workdir": "elsewhere", "seed": 0}
        (tmp_path / "config.json").write_text(json.dumps({"flags": flag}))
        message = error_of(f"--workdir={tmp_path}")
        assert f"{tmp_path}/config.json belongs to a run with other flags" in message
        assert "--num_eval=17, now None" in message
        assert "--num_seeds=None, now 1" in message
        assert "--seed=" not in message
        assert "--workdir=elsewhere" not in message

    @pytest.mark.parametrize("content", ["", "[]", '{"flags": 3}', "{}", "{"])
    def test_with_a_foreign_config(self, content, tmp_path):
        (tmp_path / "config.json").write_text(content)
        message = error_of(f"--workdir={tmp_path}")
        assert f"{tmp_path}/config.json is not a config of this program" in message

    @pytest.mark.parametrize("name", ["seed_0", "figures", "results.csv"])
    def test_with_results_of_unknown_origin(self, name, tmp_path):
        (tmp_path / name).mkdir()
        message = error_of(f"--workdir={tmp_path}")
        assert f"{tmp_path}/config.json is missing beside {name}" in message

    def test_of_an_earlier_version(self, tmp_path):
        (tmp_path / "seed_0/test/upper").mkdir(parents=True)
        (tmp_path / "seed_0/test/upper/fgm 3 robust gamma=0.1.npz").write_bytes(b"")
        message = error_of(f"--workdir={tmp_path}")
        assert f"--workdir={tmp_path} is of an earlier version, which named 'fgm 3 rob" in message

    def test_of_other_rows(self, tmp_path, monkeypatch):
        with flagsaver.flagsaver():
            flags.FLAGS(["robust_fusion", f"--workdir={tmp_path}"])
            config = config_from_flags()
        dataset = start.load(config)
        start.load(config)  # it is its own
        labels = dataset.splits["test"]["label"]
        labels[[0, 1]] = labels[[1, 0]]
        monkeypatch.setattr(start.datasets, "load", lambda *_, **__: dataset)
        with pytest.raises(InputError, match="belongs to a run on other rows of digits"):
            start.load(config)

    def test_that_is_a_file(self, tmp_path):
        (tmp_path / "file").write_text("")
        text = error_of(f"--workdir={tmp_path / 'file'}")
        assert text == f"error: --workdir={tmp_path / 'file'} is a file; name a folder"


@pytest.mark.parametrize(
    ("binary", "argument", "expected"),
    [
        (
            "robust_fusion",
            "--dataset=imagenet",
            "error: --dataset=imagenet: value should be one of <",
        ),
        ("robust_fusion", "--gammas=7", "error: --gammas=7: '7' is not a number in (0, 1]"),
        ("certified", "--confidences=2", "error: --confidences=2: '2' is not a number in [0, 1]"),
        ("extra_modality", "--gammas=0", "error: --gammas=0: '0' is not a number in (0, 1]"),
        ("attack_sanity", "--scales=2", "error: --scales=2: '2' is not a number in [0, 1]"),
    ],
)
@pytest.mark.slow
def test_binaries_end_without_a_traceback(binary, argument, expected, tmp_path):
    code, stdout, stderr = runs.run_process(tmp_path / "run", argument, binary=binary)
    assert code == 1
    assert not stdout
    assert stderr.startswith(expected)
    assert stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
