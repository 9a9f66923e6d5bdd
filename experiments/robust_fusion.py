"""Robust late fusion against perturbations of one modality, end to end.

Prepares the data, trains one classifier a modality, perturbs each modality in turn and measures
every fusion method. Writes results.csv, config.json and figures/*.png into --workdir, and
report.html, a page of all that; a run that was killed carries on when the same command is given
again.

    python -m experiments.robust_fusion --dataset=digits --workdir=runs/demo

takes about five minutes on two CPU cores.
"""

import time

from absl import flags as absl_flags

from data_pipelines.catalogue import base_name
from experiments.run import flags, launch
from experiments.run.config import Config
from experiments.run.flags import config_from_flags
from jacfuse_jax.evaluation.rules import LEARNED


def run(config: Config) -> None:
    """Runs one experiment and writes its files.

    Args:
      config: all settings.

    Raises:
      DataError, InputError: as in `start.load` and `start.prepare`.
    """
    from experiments.measuring.robust_fusion import run_seed  # takes seconds
    from experiments.reports import robust_fusion
    from experiments.reports.page.page import write_report
    from experiments.run import start

    began = time.monotonic()
    dataset = start.load(config)
    findings = {
        seed: run_seed(
            start.prepare(config, dataset, seed),
            start.rules_of(config, dataset.modalities),
            config.threat_models,
            perturbed=config.perturbed,
            perturbations=config.perturbations,
            num_attack=config.num_attack,
            num_select=config.num_select,
            select_attack=config.select_attack,
            attack_share=config.attack_share,
            attack_steps=config.attack_steps,
            num_restarts=config.num_restarts,
            batch_size=config.batch_size,
            with_grams=config.jacobian == "input",
            num_permutations=config.num_permutations,
            learned=LEARNED in config.methods,
        )
        for seed in range(config.seed, config.seed + config.num_seeds)
    }
    note = ""
    if base_name(config.dataset) == "av_mnist":
        when = "before" if config.attack_at == "raw" else "after"
        note = f"Images are perturbed {when} they are reduced (--attack_at={config.attack_at})."
    paths = robust_fusion.write(findings, config.workdir, note=note)
    num_gradients = sum(of_seed.num_gradients for of_seed in findings.values())
    paths.append(start.finish(config, dataset, time.monotonic() - began, num_gradients))
    paths.append(write_report(config.workdir))
    for path in paths:
        print(f"wrote {path}")


def main(argv: list[str]) -> None:
    """Parses flags and runs; errors of the user's end in one line and a non-zero exit."""
    launch.start(argv, config_from_flags, run)


if __name__ == "__main__":
    absl_flags.adopt_module_key_flags(flags)  # those that --help lists
    launch.launch(main)
