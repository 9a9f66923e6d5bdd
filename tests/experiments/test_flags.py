import dataclasses
import json
import shlex

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments.run.command import command_of
from experiments.run.config import Config
from experiments.run.flags import config_from_flags
from experiments.run.start import rules_of
from experiments.run.suites import SUITES
from jacfuse_jax.programs import InputError


def config_of(*arguments):
    with flagsaver.flagsaver():
        flags.FLAGS(["robust_fusion", *arguments])
        return config_from_flags()


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_gives_its_values_to_flags_that_are_not_given(name):
    plain = config_of("--dataset=av_mnist")
    suite = config_of("--dataset=av_mnist", f"--suite={name}")
    changed = SUITES[name]
    assert set(changed) <= {*Config.__dataclass_fields__}
    for field in Config.__dataclass_fields__:
        expected = changed[field] if field in changed else getattr(plain, field)
        assert getattr(suite, field) == expected


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_has_methods_for_two_modalities(name):
    rules = rules_of(config_of("--dataset=av_mnist", f"--suite={name}"), ("image", "audio"))
    kinds = {rule.kind for rule in rules}
    assert kinds >= {"statistical", "robust"}
    assert ("dempster_shafer" in kinds) == (name in ("standard", "full"))
    assert "trimmed_mean" not in kinds  # of three modalities or more


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("dataset", ["digits", "ravdess", "vggsound"])
def test_a_suite_takes_all_rows_of_data_sets_of_other_sizes(name, dataset):
    config = config_of(f"--suite={name}", f"--dataset={dataset}")
    assert config.num_train is config.num_eval is None
    assert config.num_attack == SUITES[name]["num_attack"]


def test_flags_that_are_given_win_over_the_suite_wherever_they_stand():
    before = config_of("--num_attack=7", "--gammas=0.5,0.2", "--suite=quick")
    after = config_of("--suite=quick", "--num_attack=7", "--gammas=0.5,0.2")
    assert before == after
    assert (after.num_attack, after.gammas) == (7, (0.5, 0.2))
    assert after.attack_steps == SUITES["quick"]["attack_steps"]


def test_flags_given_at_their_defaults_win_too():
    assert config_of("--suite=quick", "--num_attack=2000").num_attack == 2000


def test_a_suite_does_not_outlive_its_run():
    before = config_of()
    config_of("--suite=quick")
    assert config_of() == before


def test_modalities_and_epochs_are_those_of_the_data_set():
    digits, av_mnist = config_of(), config_of("--dataset=av_mnist")
    assert (digits.perturbed, av_mnist.perturbed) == (("upper", "lower"), ("image", "audio"))
    assert (digits.num_epochs, av_mnist.num_epochs) == (30, 12)
    assert config_of("--dataset=av_mnist", "--perturbed=audio,audio").perturbed == ("audio",)


def test_weights_are_files_of_modalities(tmp_path):
    files = {"video": tmp_path / "a=b.safetensors", "audio": tmp_path / "c"}
    for file in files.values():
        file.touch()
    given = [f"--weights={modality}={file}" for modality, file in files.items()]
    config = config_of("--dataset=vggsound", *given, "--num_epochs=0")
    assert config.weights == {**files}
    assert config.num_epochs == 0


def test_only_images_of_av_mnist_are_attacked_after_they_are_reduced():
    assert config_of("--dataset=av_mnist").attack_at == "raw"
    assert config_of("--dataset=av_mnist/clean", "--attack_at=reduced").attack_at == "reduced"
    with pytest.raises(InputError, match=r"--attack_at=reduced: only images of av_mnist"):
        config_of("--dataset=digits", "--attack_at=reduced")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ((), []),
        (("--suite=standard", "--dataset=av_mnist/balanced"), ["suite", "dataset"]),
        (("--suite=quick", "--dataset=av_mnist", "--seed=3"), ["suite", "dataset", "seed"]),
        (("--suite=standard", "--num_epochs=8", "--perturbed=upper"), None),
        (("--dataset=ravdess", "--fold=2", "--gammas=1e-6,0.5", "--max_missing=0.5"), None),
        (("--dataset=av_mnist", "--num_train=500", "--manual_dir=/a/private place"), None),
    ],
)
def test_the_command_of_a_run_repeats_it(arguments, shown):
    config = config_of(*arguments)
    command = command_of(json.loads(json.dumps(dataclasses.asdict(config), default=str)))
    python, *repeated = shlex.split(command)
    assert [python, *repeated[:2]] == ["python", "-m", "experiments.robust_fusion"]
    assert "private" not in command
    means = {"manual_dir": config.manual_dir, "max_missing": config.max_missing}
    assert dataclasses.replace(config_of(*repeated[2:]), **means) == config
    if shown is not None:
        assert [word.partition("=")[0] for word in repeated[2:]] == [f"--{name}" for name in shown]
