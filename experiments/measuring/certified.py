"""What `experiments.certified` measures."""

from typing import NamedTuple

from experiments.run import start
from experiments.run.config import Config
from experiments.run.prepared import make_rows
from jacfuse_jax.evaluation import certified, radii


class Findings(NamedTuple):
    """Certified accuracy and radii, of all perturbed modalities."""

    rows: list[certified.Row]
    radii: list[radii.Row]


def measure(config: Config) -> Findings:
    """Certifies the classifiers of a run.

    Args:
      config: settings of the run whose classifiers are fused.
    """
    dataset = start.load(config, classifiers_only=True)
    models = start.prepare(config, dataset, config.seed).models
    validation, test = (
        make_rows(config, models, dataset.splits[name]) for name in ("validation", "test")
    )
    findings = Findings([], [])
    for corrupted in config.perturbed:
        rows = certified.measure(
            config.dataset,
            config.seed,
            corrupted,
            validation=validation,
            test=test,
            class_prior=models.evidence.class_prior,
            contaminations=config.contaminations,
            confidences=config.confidences,
            max_clean_loss=config.max_clean_loss,
        )
        findings.rows.extend(rows)
        if models.classifiers["standard"][corrupted].lipschitz_fn is not None:
            chosen = [row.contamination for row in rows if row.selected]
            findings.radii.extend(
                radii.measure(
                    config.dataset,
                    models,
                    test.first(config.num_attack),
                    corrupted,
                    contaminations=[e for e in chosen if e is not None],
                    gammas=config.gammas,
                    attack_steps=config.attack_steps,
                    seed=config.seed,
                )
            )
    return findings
