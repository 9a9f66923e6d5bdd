import jax
import numpy as np
import pytest

from experiments import attack_sanity
from experiments.measuring import attack_sanity as measuring
from jacfuse_jax.evaluation.gradient_sanity import check_gradients
from jacfuse_jax.evaluation.rules import HEADS, Trained, predict, regime_of
from jacfuse_jax.evaluation.sanity import Subject, check_attacks
from tests.evaluation import tiny
from tests.experiments import runs

NUM_FEATURES = 6
WEIGHTS = np.random.default_rng(0).normal(size=(NUM_FEATURES, 3)).astype(np.float32)


def linear(inputs):
    return jax.nn.log_softmax(inputs["image"] @ WEIGHTS.astype(inputs["image"].dtype))


def without_gradient(inputs):
    return linear(jax.lax.stop_gradient(inputs))


def saturated(inputs):
    return jax.nn.log_softmax(1e4 * linear(inputs))


def reading_its_neighbour(inputs):
    return jax.nn.log_softmax(linear(inputs) + 0.1 * linear(inputs)[::-1])


def dead_far_away(inputs):
    """Beyond 0.02 from the sample its units are dead: no gradient, and right."""
    clean = inputs["clean"]
    is_far = np.float32(0.02) < abs(inputs["image"] - clean).max(axis=-1, keepdims=True)
    return jax.numpy.where(is_far, linear({"image": clean}), linear(inputs))


def make_subject(log_prob_fn):
    x = np.random.default_rng(1).uniform(size=(300, NUM_FEATURES)).astype(np.float32)
    labels = np.asarray(linear({"image": x}).argmax(axis=1))
    return Subject(log_prob_fn, {"image": x, "clean": x}, labels, "image", (0.0, 1.0), None)


def failed(checks, count):
    assert len(checks) == count
    assert all(np.isfinite(check.value) for check in checks)
    assert all(check.passed == (check.value <= check.limit + 1e-9) for check in checks)
    return {check.name for check in checks if not check.passed}


def failed_of_attacks(log_prob_fn):
    checks = check_attacks(
        make_subject(log_prob_fn),
        epsilons=(0.01, 0.1),
        num_steps=40,
        num_queries=100,
        batch_size=64,
        key=jax.random.key(0),
    )
    return failed(checks, 8)


def failed_of_gradients(log_prob_fn):
    checks = check_gradients(make_subject(log_prob_fn), batch_size=64, key=jax.random.key(1))
    return failed(checks, 4)


def test_a_linear_classifier_passes_every_check():
    assert failed_of_attacks(linear) == failed_of_gradients(linear) == set()


def test_masked_gradients_are_found_out():
    of_attacks = failed_of_attacks(without_gradient)
    assert "gradients beat attacks without them" in of_attacks
    assert "budgets are kept" not in of_attacks
    assert failed_of_gradients(without_gradient) == {
        "gradients match finite differences",
        "gradients do not vanish",
    }


def test_units_that_die_where_the_attack_goes_are_found_out():
    names = failed_of_attacks(dead_far_away)
    assert "no attack is weaker with a larger epsilon" in names


def test_saturation_is_found_out():
    assert "gradients do not vanish" in failed_of_gradients(saturated)


def test_samples_that_know_each_other_are_found_out():
    names = failed_of_gradients(reading_its_neighbour)
    assert "samples do not depend on their batch" in names


@pytest.mark.slow
def test_a_run_writes_and_shows_a_row_for_every_check(tmp_path):
    flags = (*runs.SMALL, "--num_attack=16", "--perturbed=upper", "--methods=unimodal")
    stdout, _ = runs.run(tmp_path, *flags, binary=attack_sanity)
    rows = runs.read_rows(tmp_path, "attack_sanity.csv")
    assert [row["target"] for row in rows] == ["unimodal:upper"] * 12
    for row in rows:
        assert row["passed"] == str(float(row["value"]) <= float(row["limit"]))
        assert row["detail"]
    passed = {row["check"] for row in rows if row["passed"] == "True"}
    assert {"budgets are kept", "gradients match finite differences"} <= passed
    ((headers, cells),) = runs.read_tables(stdout)
    assert headers == ["perturbed", "target", *(f"({index})" for index in range(1, 13))]
    marks = ["" if row["passed"] == "True" else " !" for row in rows]
    figures = [f"{float(row['value']):.3g}{m}" for row, m in zip(rows, marks, strict=True)]
    assert cells == ["upper", "unimodal:upper", *figures]
    for index, row in enumerate(rows, 1):
        limit = f"at most {float(row['limit']):.3g}"
        assert f"({index}) {row['check']}: {row['detail']}; {limit}" in stdout.splitlines()
    assert f"{marks.count(' !')} of 12 checks failed, marked by !" in stdout


class TestPredictionUnderAttack:
    """What is attacked is what the experiment evaluates, in the dtype of the inputs."""

    MODELS = tiny.make_models(
        regimes=("standard", *Trained.names), head_names=HEADS, with_subspaces=True
    )
    ROWS = tiny.make_rows(MODELS, 7)

    @pytest.mark.parametrize("name", tiny.NAMES)
    def test_is_that_of_the_rule(self, name):
        rule = tiny.make_rule(name)  # of the image, where it is of one modality
        regime = regime_of(rule)
        log_prob_fn = measuring._make_log_prob_fn(self.MODELS, regime, "image", rule)
        trusted = {"audio": self.ROWS.outputs[regime]["audio"]}
        inputs = {"image": self.ROWS.inputs["image"], **measuring._flatten(trusted)}
        expected = predict(
            rule,
            tiny.observe_all(self.ROWS),
            evidence=self.MODELS.evidence,
            believed=("image",),
        )
        np.testing.assert_allclose(log_prob_fn(inputs), expected, rtol=1e-9, atol=1e-9)
        assert log_prob_fn(inputs).dtype == np.float64
        single = jax.tree.map(np.float32, inputs)
        assert log_prob_fn(single).dtype == np.float32
        np.testing.assert_allclose(log_prob_fn(single), expected, rtol=1e-3, atol=1e-3)
