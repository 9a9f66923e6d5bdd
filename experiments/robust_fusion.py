"""Robust late fusion against perturbations of one modality, end to end.

Prepares the data, trains one classifier a modality, perturbs each modality in turn and measures
every fusion method. Writes results.csv, config.json and figures/*.png into --workdir; a run that
was killed carries on when the same command is given again.

    python -m experiments.robust_fusion --dataset=digits --workdir=runs/demo

takes about five minutes on two CPU cores.
"""

from absl import flags

from experiments import launch, settings


def main(argv: list[str]) -> None:
    """Parses flags and runs; errors of the user's end in one line and a non-zero exit."""
    launch.start(argv, settings.config_from_flags, "experiments.robust_fusion_run")


if __name__ == "__main__":
    flags.adopt_module_key_flags(settings)  # those that --help lists
    launch.launch(main)
