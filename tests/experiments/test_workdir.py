import dataclasses
import json

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments.run.flags import config_from_flags
from experiments.run.workdir import check_workdir, claimed, write_config
from jacfuse_jax.programs import InputError


def config_of(*arguments):
    with flagsaver.flagsaver():
        flags.FLAGS(["robust_fusion", *arguments])
        return config_from_flags()


def test_a_new_directory_that_got_nothing_is_removed_and_no_other(tmp_path):
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "a" / "new"):
        raise ZeroDivisionError
    assert not (tmp_path / "a" / "new").exists()
    with claimed(tmp_path / "kept"):
        (tmp_path / "kept" / "result").touch()
    assert (tmp_path / "kept" / "result").exists()
    (tmp_path / "old").mkdir()
    with claimed(tmp_path / "old"):
        pass
    assert (tmp_path / "old").exists()


def test_the_next_run_may_follow_in_the_same_process(tmp_path):
    for _ in range(2):
        with (
            claimed(tmp_path),
            pytest.raises(InputError, match="another run is at work there; wait"),
            claimed(tmp_path),
        ):
            pass


@pytest.fixture
def owned(tmp_path):
    """The directory of a run with three seeds."""
    arguments = ("--num_train=400", "--seed=4", "--num_seeds=3")
    config = config_of(f"--workdir={tmp_path}", *arguments)
    write_config(config, "digest", "cpu", wall_time_s=12.5)
    return config


@pytest.mark.parametrize(
    "changes",
    [
        {"confidences": (0.5,), "contaminations": (0.1,), "gammas": (0.2,), "num_attack": 7},
        {"methods": ("robust",), "perturbations": ("clean",), "perturbed": ("upper",)},
        {"threat_models": ("both",), "num_select": 5, "jacobian": "input", "attack_steps": 3},
        {"num_seeds": 1},
        {"seed": 6, "num_seeds": 1},
    ],
)
def test_flags_that_classifiers_do_not_depend_on_may_differ(owned, changes):
    changed = dataclasses.replace(owned, **changes)
    check_workdir(changed, "digest", classifiers_only=True)
    with pytest.raises(InputError, match="belongs to a run with other flags"):
        check_workdir(changed, "digest")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_train": 300},
        {"num_epochs": 1},
        {"batch_size": 1},
        {"seed": 3},
        {"seed": 7},
        {"dataset": "av_mnist"},
        {"fold": 1},
    ],
)
def test_flags_that_classifiers_depend_on_must_agree(owned, changes):
    (name,) = changes
    old = json.loads(json.dumps(dataclasses.asdict(owned), default=str))[name]
    with pytest.raises(InputError, match=f"--{name}={old}, now {changes[name]}\\); repeat those"):
        check_workdir(dataclasses.replace(owned, **changes), classifiers_only=True)


def test_what_a_run_took_adds_up_where_it_carries_on(tmp_path):
    config = config_of(f"--workdir={tmp_path}")
    path = tmp_path / "config.json"
    write_config(config, "digest", "cpu")
    assert json.loads(path.read_text())["num_gradients"] is None
    write_config(config, "digest", "cpu", wall_time_s=12.5, num_gradients=100)
    write_config(config, "digest", "cpu")
    written = json.loads(path.read_text())
    path.write_text(json.dumps(written | {"commit": "abc"}))
    write_config(config, "digest", "cpu", wall_time_s=2.0, num_gradients=11)
    again = json.loads(path.read_text())
    assert (again["wall_time_s"], again["num_gradients"]) == (14.5, 111)
    assert again["commit"] in ("abc", f"abc, {written['commit']}")
