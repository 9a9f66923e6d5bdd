"""Attacks of increasing budgets as one chain: what is found at one is where the next one starts."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jacfuse_jax import attacks
from jacfuse_jax.evaluation.evidence import Evidence, Observed
from jacfuse_jax.evaluation.input_checks import Projection, ResidualCheck
from jacfuse_jax.evaluation.models import PROJECTED, Models, input_grams
from jacfuse_jax.evaluation.names import L0_ATTACKS, L2_ATTACKS
from jacfuse_jax.evaluation.observing import ObserveFn, concatenate
from jacfuse_jax.evaluation.outcomes import certified_rows, lead_of, predict_all
from jacfuse_jax.evaluation.rows import Rows, observe
from jacfuse_jax.evaluation.rules import EachAlone, predict, regime_of
from jacfuse_jax.evaluation.stages import (
    Stage,
    make_attack,
    num_gradients,
    num_steps_of,
    stages_of,
)
from jacfuse_jax.evaluation.subspaces import Subspace, residual
from jacfuse_jax.evaluation.targets import STRENGTHS, Branch, Step, Target, branch_of
from jacfuse_jax.evaluation.through import Through, get_through, linf_bounds

# Rows that a chain has in memory at a time; what is left of them shares batches.
BATCHES_A_BLOCK = 4

PerturbFn = Callable[
    [Sequence[Step], tuple[Branch, ...], jax.Array, Rows, Sequence[Sequence[Observed]]],
    list[Observed],
]


def make_attack_fn(
    models: Models,
    observe_fn: ObserveFn,
    *,
    attack_steps: int,
    num_restarts: int,
    batch_size: int,
    with_grams: bool,
    on_gradients: Callable[[int], object] | None = None,
) -> PerturbFn:
    """Makes the function that attacks rows with one budget after another.

    PGD and APGD start from the clean input, or from what is best so far; further starts are random.
    "apgd_ensemble" is a sequence of APGD, see `stages`: on the margin, with long steps from there,
    then, of rows that are nearly lost, towards every wrong class, or the likeliest nine. Rows that
    a rule has lost at a smaller budget, or to another attack, are not attacked again for it, and
    neither are those that its certificate covers; what is left is attacked in padded batches.
    Attacks on the modalities' own classifiers go on, since what convinces a classifier more may
    convince a rule.

    Args:
      models: attacked.
      observe_fn: see `observing.make_observe_fn`.
      attack_steps: of iterated attacks.
      num_restarts: starts of PGD and APGD.
      batch_size: rows at a time.
      with_grams: fusion regularises the Jacobian in the input.
      on_gradients: see `perturb.make_perturb_fn`.

    Returns:
      attack_fn(chain, branches, key, rows, found), see `perturb.make_perturb_fn`.
    """
    head_parameters = {name: head.parameters for name, head in models.heads.items()}
    standard = models.classifiers["standard"]
    num_classes = len(models.evidence.class_prior)

    def predict_branch(
        branch: Branch, observed: Observed, numbers: tuple[jax.Array, ...]
    ) -> jax.Array:
        return predict(
            jax.tree.unflatten(branch.structure, numbers[: branch.structure.num_leaves]),
            observed,
            evidence=models.evidence,
            believed=branch.believed,
            surrogate=branch.surrogate,
        )

    @partial(jax.jit, static_argnames=("attack", "num_steps", "branches", "through"))
    def attack_batch(
        parameters: Mapping[str, Mapping[str, Any]],
        heads: Mapping[str, Any],
        subspaces: Mapping[str, Subspace],
        numbers: tuple[float, ...],
        index: int,
        rows: Rows,
        start: Mapping[str, jax.Array],
        targets: jax.Array | None,
        key: jax.Array,
        strength: float,
        relative_step_size: float,
        *,
        attack: str,
        num_steps: int,
        branches: tuple[Branch, ...],
        through: Through,
    ) -> dict[str, jax.Array]:
        def log_prob_fn(inputs: Mapping[str, jax.Array]) -> jax.Array:
            outputs = {regime: dict(of_regime) for regime, of_regime in rows.outputs.items()}
            grams: dict[str, Any] = dict(rows.grams)
            residuals: dict[str, Any] = dict(rows.residuals)
            for modality, x in inputs.items():
                for regime, of_regime in parameters.items():
                    output_fn = models.classifiers[regime][modality].output_fn
                    outputs[regime][modality] = output_fn(of_regime[modality], x)
                if with_grams:
                    grams[modality] = input_grams(
                        standard[modality], parameters["standard"][modality], x
                    )
                if modality in subspaces:
                    residuals[modality] = residual(subspaces[modality], x)
            observed = observe(models, heads, outputs, grams, residuals)
            return jax.lax.switch(
                index, [partial(predict_branch, branch) for branch in branches], observed, numbers
            )

        x = rows.inputs
        bounds = {
            modality: linf_bounds(jnp.asarray(array), strength, models.valid_ranges[modality])
            for modality, array in x.items()
        }
        attacked_fn, finish = get_through(
            through, log_prob_fn, subspaces, bounds, rows.labels, jax.random.fold_in(key, 1)
        )
        if attack in L0_ATTACKS:
            return attacks.adversarial_missing(
                log_prob_fn,
                x,
                rows.labels,
                key,
                fraction=dict.fromkeys(x, strength),
                fill_value={modality: models.fill_values[modality] for modality in x},
                num_steps=num_steps,
            )
        options: dict[str, Any] = {} if targets is None else {"targets": targets}
        if attack.startswith(("pgd", "apgd")):
            options["initial"] = start
        if attack.startswith("apgd"):
            options["relative_step_size"] = relative_step_size
        found = make_attack(attack, num_steps, num_restarts, num_classes=num_classes)(
            attacked_fn,
            x,
            rows.labels,
            *(() if attack == "fgm" else (key,)),
            epsilon=dict.fromkeys(x, strength),
            norm="l2" if attack in L2_ATTACKS else "linf",
            valid_range={modality: models.valid_ranges[modality] for modality in x},
            **options,
        )
        return dict(finish(found))

    def attack_rows(
        step: Step,
        stage: Stage,
        branches: tuple[Branch, ...],
        key: jax.Array,
        rows: Rows,
        start: dict[str, NDArray[Any]],
        targets: NDArray[Any] | None,
    ) -> dict[str, NDArray[Any]]:
        """What one attack makes of these rows."""
        assert step.target is not None
        rule = step.target.rule
        regimes, numbers = {"standard": regime_of(rule)}, jax.tree.leaves(rule)
        if isinstance(rule, Projection):
            regimes[PROJECTED] = PROJECTED
        checked: dict[str, Subspace] = {}
        if isinstance(rule, ResidualCheck):
            checked = {m: models.subspaces[m] for m in step.attacked}
        most = max(branch.structure.num_leaves for branch in branches)
        with_start = rows._replace(
            inputs={"clean": rows.inputs, "start": start},
            outputs={name: rows.outputs[regime] for name, regime in regimes.items()},
            heads={} if targets is None else {"targets": targets},
        )
        found: list[dict[str, jax.Array]] = []
        size = max(1, round(stage.batch_share * batch_size))
        num_steps = num_steps_of(stage, attack_steps)
        if on_gradients is not None:
            a_row = num_gradients(stage, num_steps, num_restarts, num_classes=num_classes)
            on_gradients(len(rows.labels) * a_row)
        for index, batch in enumerate(with_start.batches(size)):
            found.append(
                attack_batch(
                    {
                        name: {m: models.classifiers[regime][m].parameters for m in step.attacked}
                        for name, regime in regimes.items()
                    },
                    head_parameters,
                    checked,
                    # As many for all of them, so that one program serves all rules.
                    (*numbers, *(1.0,) * (most - len(numbers))),
                    branches.index(branch_of(step)),
                    batch._replace(inputs=batch.inputs["clean"], heads={}),
                    batch.inputs["start"],
                    batch.heads.get("targets"),
                    jax.random.fold_in(key, index),
                    STRENGTHS[step.perturbation][step.severity - 1],
                    stage.relative_step_size,
                    attack=stage.attack,
                    num_steps=num_steps,
                    branches=branches,
                    through=stage.through,
                )
            )
        return {
            m: np.concatenate([np.asarray(x[m]) for x in found])[: len(rows.labels)]
            for m in step.attacked
        }

    def attack_block(
        chain: Sequence[Step],
        branches: tuple[Branch, ...],
        key: jax.Array,
        rows: Rows,
        found: Sequence[Sequence[Observed]],
    ) -> list[Observed]:
        target = chain[0].target
        assert target is not None
        clean = {m: np.asarray(rows.inputs[m][: len(rows.labels)]) for m in chain[0].attacked}
        rows = rows._replace(inputs=clean)
        best = clean
        targets = _targets_of(target, chain[0].attacked, rows, models.evidence)
        goal = np.arange(num_classes) == (rows.labels if targets is None else targets)[:, None]
        goal = ~goal if targets is None else goal
        goes_on = isinstance(target.rule, EachAlone)
        believed = chain[0].attacked if goes_on else target.believed

        def leads(observations: Sequence[Observed]) -> NDArray[Any]:
            log_probs = predict_all(target.rule, believed, observations, rows, models.evidence)
            return lead_of(log_probs, goal)

        lead = clean_lead = leads([rows.observed()])[0]
        settled = np.zeros(len(rows.labels), bool)
        if not goes_on:
            settled = (lead > 0) | certified_rows(
                target.rule, believed, chain[0].attacked, rows, models.evidence
            )
        observed = observe_fn(best, rows)
        results: list[Observed] = []
        for step, before in zip(chain, found, strict=True):
            if before and not goes_on:
                settled |= (leads(before) > 0).any(axis=0)
            for number, stage in enumerate(stages_of(step, num_classes=num_classes)):
                left = np.flatnonzero(~settled & (lead >= stage.share_left * clean_lead))
                if not len(left):
                    continue
                start = clean if stage.from_clean else best
                moved = attack_rows(
                    step,
                    stage,
                    branches,
                    jax.random.fold_in(jax.random.fold_in(key, step.severity), number),
                    jax.tree.map(lambda array, left=left: array[left], rows),
                    {m: x[left] for m, x in start.items()},
                    None if targets is None else targets[left],
                )
                tried = {m: x.copy() for m, x in best.items()}
                for m, x in moved.items():
                    tried[m][left] = x
                observed_there = observe_fn(tried, rows)
                lead_there = leads([observed_there])[0]
                better = lead_there > lead
                lead, best, observed = jax.tree.map(
                    lambda there, here, better=better: np.where(
                        better.reshape(-1, *(1,) * (here.ndim - 1)), there, here
                    ),
                    (lead_there, tried, observed_there),
                    (lead, best, observed),
                )
                if not goes_on:
                    settled |= lead > 0
            results.append(observed)
        return results

    def attack_chain(
        chain: Sequence[Step],
        branches: tuple[Branch, ...],
        key: jax.Array,
        rows: Rows,
        found: Sequence[Sequence[Observed]],
    ) -> list[Observed]:
        size, num_rows = BATCHES_A_BLOCK * batch_size, len(rows.labels)
        blocks: list[list[Observed]] = []
        for index, start in enumerate(range(0, num_rows, size)):
            of_block, found_there = jax.tree.map(
                lambda array, start=start: array[start : start + size], (rows, list(found))
            )
            block_key = jax.random.fold_in(key, index)
            blocks.append(attack_block(chain, branches, block_key, of_block, found_there))
        return [concatenate(parts, num_rows) for parts in zip(*blocks, strict=True)]

    return attack_chain


def _targets_of(
    target: Target, attacked: tuple[str, ...], rows: Rows, evidence: Evidence
) -> NDArray[Any] | None:
    """(N,), the classes that samples are driven to; None where it is away from the label."""
    if not target.towards:
        return None
    log_probs = predict_all(target.rule, attacked, [rows.observed()], rows, evidence)[0]
    of_label = np.arange(log_probs.shape[-1]) == rows.labels[:, None]
    order = np.argsort(np.where(of_label, np.inf, -log_probs), axis=-1, kind="stable")
    return order[:, target.towards - 1].astype(rows.labels.dtype)
