"""What `experiments.certified` measures."""

from collections.abc import Sequence
from typing import NamedTuple

from experiments.run.start import Prepared
from jacfuse_jax.evaluation import certified, radii
from jacfuse_jax.evaluation.rows import make_rows


class Findings(NamedTuple):
    """Certified accuracy and radii, of all perturbed modalities."""

    rows: list[certified.Row]
    radii: list[radii.Row]


def measure(
    prepared: Prepared,
    *,
    perturbed: Sequence[str],
    contaminations: Sequence[float],
    confidences: Sequence[float],
    gammas: Sequence[float],
    attack_share: float,
    num_attack: int,
    attack_steps: int,
    batch_size: int,
) -> Findings:
    """Certifies the classifiers of a run.

    Args:
      prepared: data and classifiers, which are fused.
      perturbed: modalities to corrupt in turn.
      contaminations: of contaminated fusion.
      confidences: of cascades.
      gammas: of robust fusion.
      attack_share: see `certified.measure`.
      num_attack: test rows that get radii.
      attack_steps: of PGD.
      batch_size: rows at a time.
    """
    dataset, models, _, seed = prepared
    validation, test = (
        make_rows(models, dataset.splits[name], batch_size=batch_size, with_grams=False)
        for name in ("validation", "test")
    )
    findings = Findings([], [])
    for corrupted in perturbed:
        rows = certified.measure(
            dataset.name,
            seed,
            corrupted,
            validation=validation,
            test=test,
            class_prior=models.evidence.class_prior,
            contaminations=contaminations,
            confidences=confidences,
            share=attack_share,
        )
        findings.rows.extend(rows)
        if models.classifiers["standard"][corrupted].lipschitz_fn is not None:
            chosen = [row.contamination for row in rows if row.selected]
            findings.radii.extend(
                radii.measure(
                    dataset.name,
                    models,
                    test.first(num_attack),
                    corrupted,
                    contaminations=[e for e in chosen if e is not None],
                    gammas=gammas,
                    attack_steps=attack_steps,
                    seed=seed,
                )
            )
    return findings
