import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacfuse_jax import attacks, fusion
from jacfuse_jax.evaluation import corruptions
from jacfuse_jax.evaluation.input_checks import InputCheck
from jacfuse_jax.evaluation.names import ATTACKS, L0_ATTACKS, L2_ATTACKS
from jacfuse_jax.evaluation.outcomes import certified_rows
from jacfuse_jax.evaluation.perturb import make_perturb_fn
from jacfuse_jax.evaluation.rules import HEADS, Trained, Unimodal, predict, regime_of
from jacfuse_jax.evaluation.targets import OWN, STRENGTHS, Step, Target, applies, branch_of
from tests.evaluation import tiny

KEY = jax.random.key(3)
NUM_STEPS = 2
NUM_ENTRIES = 6  # a tenth of them, the budget of missing entries, is one
SEVERITY = 4
# The attacks by name, as they are to be called.
DIRECT = {
    "fgm": attacks.fgm,
    "pgd": partial(attacks.pgd, num_steps=NUM_STEPS),
    "pgd_l2": partial(attacks.pgd, num_steps=NUM_STEPS, norm="l2"),
    "apgd": partial(attacks.apgd, num_steps=NUM_STEPS, loss="margin"),
    "apgd_l2": partial(attacks.apgd, num_steps=NUM_STEPS, loss="margin", norm="l2"),
    "apgd_ce": partial(attacks.apgd, num_steps=NUM_STEPS, loss="cross_entropy"),
    "apgd_dlr": partial(attacks.apgd, num_steps=NUM_STEPS, loss="dlr"),
    "apgd_targeted": partial(attacks.apgd, num_steps=NUM_STEPS, loss="targeted_dlr"),
    "apgd_ensemble": partial(attacks.apgd, num_steps=NUM_STEPS, loss="margin"),
    "square": partial(attacks.square, num_queries=25 * NUM_STEPS),
    "random_search": partial(attacks.random_search, num_queries=25 * NUM_STEPS),
    "hop_skip_jump": partial(attacks.hop_skip_jump, num_iterations=NUM_STEPS),
    "adversarial_missing": partial(attacks.adversarial_missing, num_steps=NUM_STEPS),
}


def attack_directly(name, log_prob_fn, models, rows, attacked, severity=SEVERITY, **options):
    """The library's attack on a prediction of the inputs, in one batch of all rows."""
    strength = dict.fromkeys(attacked, STRENGTHS[name][severity - 1])
    if name in L0_ATTACKS:
        budget = {"fraction": strength, "fill_value": {m: models.fill_values[m] for m in attacked}}
    else:
        budget = {"epsilon": strength, "valid_range": dict.fromkeys(attacked, (0.0, 1.0))}
    keys = () if name == "fgm" else (attack_key(severity),)
    inputs = {m: jnp.asarray(rows.inputs[m]) for m in attacked}
    if name.startswith(("pgd", "apgd")):
        options["initial"] = inputs
    return jax.jit(
        lambda x: DIRECT[name](log_prob_fn, x, jnp.asarray(rows.labels), *keys, **budget, **options)
    )(inputs)


def attack_key(severity):
    """Of the first block's first stage's first batch."""
    key = jax.random.fold_in(jax.random.fold_in(KEY, 0), severity)
    return jax.random.fold_in(jax.random.fold_in(key, 0), 0)


def what_is_kept(models, rows, target, found) -> Any:
    """Images that an attack found, of rows that it helps; rows lost before are not attacked."""
    log_prob_fn = make_log_prob_fn(models, rows, target._replace(surrogate=""))
    clean = jnp.asarray(rows.inputs["image"])
    leads = []
    for x in (clean, found):
        log_probs = np.array(log_prob_fn({"image": x}))
        of_label = log_probs[np.arange(len(clean)), rows.labels]
        log_probs[np.arange(len(clean)), rows.labels] = -np.inf
        leads.append(log_probs.max(axis=1) - of_label)
    helps = leads[1] > leads[0]
    if target != OWN:
        helps &= leads[0] < 0
        helps &= ~certified_rows(target.rule, target.believed, ("image",), rows, models.evidence)
    return np.where(helps[:, None, None, None], found, clean)


def make_log_prob_fn(models, rows, target):
    """The prediction of a target as a function of the perturbed inputs."""
    regime = regime_of(target.rule)

    def log_prob_fn(inputs):
        observed = tiny.observe_all(rows)
        outputs = {
            **rows.outputs[regime],
            **{
                m: tiny.classify(models.classifiers[regime][m].parameters, x)
                for m, x in inputs.items()
            },
        }
        logits = {m: output.logits for m, output in outputs.items()}
        heads = {n: h.log_probs_fn(h.parameters, outputs) for n, h in models.heads.items()}
        grams = {
            m: jax.vmap(lambda x, m=m: gram_at(models.classifiers[regime][m].parameters, x))(x)
            for m, x in inputs.items()
            if rows.grams
        }
        return predict(
            target.rule,
            observed._replace(logits={regime: logits}, heads=heads, grams={**rows.grams, **grams}),
            evidence=models.evidence,
            believed=target.believed or tuple(inputs),
            surrogate=target.surrogate,
        )

    return log_prob_fn


def gram_at(kernel, x):
    jac = kernel.T * (1 + x.reshape(1, -1) / 2)
    return jac @ jac.T


def perturb(models, rows, steps, batch_size=None, *, num_restarts=1):
    """What the function makes of each step, all of them in one program."""
    perturb_fn = make_perturb_fn(
        models,
        attack_steps=NUM_STEPS,
        num_restarts=num_restarts,
        batch_size=batch_size or len(rows.labels),
        with_grams=bool(rows.grams),
    )
    branches = tiny.branches_of(*steps)
    return [perturb_fn([step], branches, KEY, rows, [[]])[0] for step in steps]


@pytest.fixture(scope="module")
def models():
    return tiny.make_models(regimes=("standard", *Trained.names), head_names=HEADS)


@pytest.fixture(scope="module")
def rows(models):
    return tiny.make_rows(models, 8)


def norms(name, delta):
    flat = np.asarray(delta).reshape(len(delta), -1)
    if name in L0_ATTACKS:
        return (flat != 0).mean(axis=1)
    return np.linalg.norm(flat, ord=2 if name in L2_ATTACKS else np.inf, axis=1)


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_on_the_own_classifier_is_the_librarys_attack_on_it(name, models, rows):
    # At a boundary, along which HopSkipJump walks, rounding decides which way: it gets some room.
    severity = 5 if name == "hop_skip_jump" else SEVERITY
    (observed,) = perturb(models, rows, [Step(("image",), name, severity, OWN)])
    kernel = models.classifiers["standard"]["image"].parameters

    def log_prob_fn(inputs):
        return jax.nn.log_softmax(tiny.classify(kernel, inputs["image"]).logits)

    expected = attack_directly(name, log_prob_fn, models, rows, ("image",), severity)["image"]
    actual = tiny.inputs_of(models, "image", observed.logits["standard"]["image"])
    if name == "hop_skip_jump":
        fooled = [
            log_prob_fn({"image": x}).argmax(axis=1) != rows.labels for x in (actual, expected)
        ]
        np.testing.assert_array_equal(*fooled)
    else:
        np.testing.assert_allclose(actual, expected, atol=1e-8)
    budget = 1 / NUM_ENTRIES if name in L0_ATTACKS else STRENGTHS[name][severity - 1]
    delta = np.where(np.abs(actual - rows.inputs["image"]) > 1e-9, actual - rows.inputs["image"], 0)
    assert 0 < norms(name, delta).max() <= budget + 1e-9
    assert actual.min() >= -1e-9
    assert actual.max() <= 1 + 1e-9
    assert set(observed.logits) == set(models.classifiers)
    assert all(list(logits) == ["image"] for logits in observed.logits.values())


@pytest.mark.parametrize("name", ["pgd", "apgd_l2", "adversarial_missing", "square"])
def test_attack_on_both_perturbs_both_each_within_its_own_budget(name, models, rows):
    both = ("image", "audio")
    (observed,) = perturb(models, rows, [Step(both, name, SEVERITY, OWN)])

    def log_prob_fn(inputs):
        return sum(
            jax.nn.log_softmax(tiny.classify(models.classifiers["standard"][m].parameters, x)[0])
            for m, x in inputs.items()
        )

    expected = attack_directly(name, log_prob_fn, models, rows, both)
    for modality in both:
        actual = tiny.inputs_of(models, modality, observed.logits["standard"][modality])
        np.testing.assert_allclose(actual, expected[modality], atol=1e-8)
        distances = norms(name, expected[modality] - rows.inputs[modality])
        budget = 1 / NUM_ENTRIES if name in L0_ATTACKS else STRENGTHS[name][SEVERITY - 1]
        assert 0 < distances.max() <= budget * (1 + 1e-9)


def every_target():
    """All rules without input checks, under several beliefs, with their surrogates."""
    # Input checks have programs of their own.
    rules = [tiny.make_rule(name) for name in tiny.NAMES[1:]]
    targets = [OWN, *(Target(r, ("image",)) for r in rules if not isinstance(r, InputCheck))]
    targets.append(Target(tiny.robust(), ("audio",)))
    targets.append(Target(tiny.robust(0.01), ("image",)))
    mixed = tiny.make_rule("contaminated_robust")
    targets.append(Target(mixed, tiny.MODALITIES, "stop_gradient"))
    targets.append(Target(tiny.robust(), ("image",), "stop_gradient"))
    targets.append(Target(tiny.robust(), ("image",), "iterated"))
    return targets


@pytest.mark.slow
def test_each_target_is_attacked_itself_though_all_share_one_program(models):
    rows = tiny.make_rows(models, 40)
    targets = every_target()
    steps = [Step(("image",), "fgm", SEVERITY, target) for target in targets]
    found = perturb(models, rows, steps)
    inputs = []
    for target, observed in zip(targets, found, strict=True):
        actual = tiny.inputs_of(models, "image", observed.logits["standard"]["image"])
        log_prob_fn = make_log_prob_fn(models, rows, target)
        expected = attack_directly("fgm", log_prob_fn, models, rows, ("image",))["image"]
        expected = what_is_kept(models, rows, target, expected)
        np.testing.assert_allclose(actual, expected, atol=1e-7, err_msg=target.name)
        inputs.append(np.asarray(expected))
        # Whatever was attacked, all classifiers and heads say what they make of it.
        for regime, of_regime in models.classifiers.items():
            kernel = of_regime["image"].parameters
            logits = tiny.classify(kernel, expected).logits
            np.testing.assert_allclose(observed.logits[regime]["image"], logits, atol=1e-6)
        outputs = {
            **rows.outputs["standard"],
            "image": tiny.classify(models.classifiers["standard"]["image"].parameters, expected),
        }
        for name, head in models.heads.items():
            log_probs = head.log_probs_fn(head.parameters, outputs)
            np.testing.assert_allclose(observed.heads[name], log_probs, atol=1e-6)
    # Signs of gradients tell targets apart, but for few.
    assert len({array.round(9).tobytes() for array in inputs}) >= len(targets) - 4


def test_targets_that_differ_in_parameters_alone_share_a_branch():
    targets = [Target(tiny.robust(gamma), ("image",)) for gamma in (0.5, 0.1)]
    branches = [branch_of(Step(("image",), "pgd", 1, target)) for target in targets]
    assert branches[0] == branches[1]
    others = [targets[0]._replace(surrogate="iterated"), targets[0]._replace(believed=("audio",))]
    for other in (*others, OWN):
        assert branch_of(Step(("image",), "pgd", 1, other)) != branches[0]


@pytest.mark.slow
def test_input_jacobians_are_attacked_through_and_their_grams_returned(models):
    rows = tiny.make_rows(models, 5, with_grams=True)
    targets = [Target(tiny.robust(), tiny.MODALITIES), OWN]
    found = perturb(models, rows, [Step(("image",), "pgd_l2", 3, t) for t in targets])
    for target, observed in zip(targets, found, strict=True):
        inputs = tiny.inputs_of(models, "image", observed.logits["standard"]["image"])
        log_prob_fn = make_log_prob_fn(models, rows, target)
        expected = attack_directly("pgd_l2", log_prob_fn, models, rows, ("image",), 3)["image"]
        expected = what_is_kept(models, rows, target, expected)
        np.testing.assert_allclose(inputs, expected, atol=1e-6)
        kernel = models.classifiers["standard"]["image"].parameters
        assert list(observed.grams) == ["image"]
        np.testing.assert_allclose(
            observed.grams["image"], tiny.grams_of(kernel, inputs), rtol=1e-6
        )
    without = perturb(models, rows._replace(grams={}), [Step(("image",), "missing", 3, None)])
    assert without[0].grams == {}


@pytest.mark.parametrize(("name", "target"), [("fgm", OWN), ("contrast", None)])
def test_the_last_partial_batch_is_not_dropped(name, target, models, rows):
    step = Step(("image",), name, SEVERITY, target)
    (whole,) = perturb(models, rows, [step])
    (batched,) = perturb(models, rows, [step], batch_size=3)
    for part, expected in zip(jax.tree.leaves(batched), jax.tree.leaves(whole), strict=True):
        assert isinstance(part, np.ndarray)
        assert len(part) == 8
        np.testing.assert_allclose(part, expected, atol=1e-10)


def test_every_batch_draws_its_own_noise(models):
    rows = tiny.make_rows(models, 4)
    same = jax.tree.map(lambda array: array[[0, 0, 0, 0]], rows)
    (observed,) = perturb(models, same, [Step(("image",), "gaussian_noise", 3, None)], 2)
    logits = observed.logits["standard"]["image"]
    assert len(np.unique(logits.round(9), axis=0)) == 4


@pytest.mark.parametrize("attacked", [("image",), ("image", "audio")], ids="+".join)
def test_a_corruption_is_that_of_the_library(attacked, models, rows):
    name = "missing"
    (observed,) = perturb(models, rows, [Step(attacked, name, SEVERITY, None)])
    for index, modality in enumerate(attacked):
        expected = corruptions.corrupt(
            name,
            jax.random.fold_in(jax.random.fold_in(KEY, 0), index),
            jnp.asarray(rows.inputs[modality]),
            STRENGTHS[name][SEVERITY - 1],
            valid_range=(0.0, 1.0),
            fill_value=models.fill_values[modality],
        )
        actual = tiny.inputs_of(models, modality, observed.logits["standard"][modality])
        np.testing.assert_allclose(actual, expected, atol=1e-8)
        changed = np.abs(actual - rows.inputs[modality]) > 1e-6
        assert changed.any()
        np.testing.assert_allclose(actual[changed], 0.3, atol=1e-8)
    assert set(observed.logits["standard"]) == set(attacked)


def test_a_corruption_of_series_knows_their_spread(models, rows):
    def series(x):
        return np.reshape(x, (-1, 2, 3))  # two steps of three channels

    known = models._replace(
        fill_values={"image": np.full((2, 3), 0.3)}, stddevs={"image": np.array([0.01, 0.1, 0.2])}
    )
    clean = series(rows.inputs["image"])
    step = Step(("image",), "drift", 1, None)
    (observed,) = perturb(known, rows._replace(inputs={"image": clean}), [step])
    actual = series(tiny.inputs_of(models, "image", observed.logits["standard"]["image"]))
    inside = (actual > 1e-6) & (actual < 1 - 1e-6)
    reach = np.array([[0.5], [1.0]]) * STRENGTHS["drift"][0] * known.stddevs["image"]
    expected = np.broadcast_to(reach, clean.shape)
    assert inside.mean() > 0.8
    np.testing.assert_allclose(abs(actual - clean)[inside], expected[inside], atol=1e-8)


def test_mismatched_pairs_trade_inputs_within_all_rows_and_not_with_padding(models, rows):
    (observed,) = perturb(models, rows, [Step(("image",), "mismatched_pair", 5, None)], 3)
    inputs = tiny.inputs_of(models, "image", observed.logits["standard"]["image"])
    flat, clean = inputs.reshape(8, -1), rows.inputs["image"].reshape(8, -1)
    distances = np.abs(flat[:, None] - clean).max(axis=-1)
    partners = distances.argmin(axis=1)
    np.testing.assert_allclose(distances.min(axis=1), 0, atol=1e-8)
    assert sorted(partners) == list(range(8))  # nothing is there twice
    assert (partners // 3 != np.arange(8) // 3).any()  # across batches


def test_restarts_are_those_of_the_library(models, rows):
    step = Step(("image",), "pgd_l2", 2, OWN)
    (once,), (often,) = (perturb(models, rows, [step], num_restarts=n) for n in (1, 3))
    assert np.abs(often.logits["standard"]["image"] - once.logits["standard"]["image"]).max() > 1e-6
    log_prob_fn = make_log_prob_fn(models, rows, OWN)
    expected = attack_directly("pgd_l2", log_prob_fn, models, rows, ("image",), 2, num_restarts=3)[
        "image"
    ]
    actual = tiny.inputs_of(models, "image", often.logits["standard"]["image"])
    np.testing.assert_allclose(actual, expected, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "attacked", "expected"),
    [
        ("hop_skip_jump", ("image",), True),
        ("hop_skip_jump", ("image", "audio"), False),
        ("square", ("image", "audio"), True),
        ("occlusion", ("image",), True),
        ("occlusion", ("image", "audio"), False),
        ("time_mask", ("image", "audio"), False),
        ("missing", ("image", "audio"), True),
        ("drift", ("image",), False),
    ],
)
def test_which_perturbations_apply(name, attacked, expected):
    assert applies(name, attacked, tiny.KINDS) == expected


def test_names_of_targets_are_those_of_files_and_no_two_alike():
    targets = [*every_target(), Target(Unimodal("image"))]
    targets += [Target(tiny.robust(gamma)) for gamma in (0.1, 0.1000001)]
    learned = tiny.make_learned(tiny.NUM_CLASSES)  # of which a name does not tell the weights
    targets.append(Target(dataclasses.replace(learned, alone=learned.fused), ("image",)))
    targets.append(Target(fusion.Robust(0.1, num_iterations=2)))
    names = [target.name for target in targets]
    assert len(set(names)) == len(names)
    assert not any(set(name) & set("/: =") for name in names)
    assert Target(tiny.robust(), tiny.MODALITIES, "iterated").name == (
        "robust_gamma_0.1_believed_image+audio_iterated"
    )
