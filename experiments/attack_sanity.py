r"""Checks the attacks on the predictions of one run: is its robustness real, or do attacks fail?

Takes the flags of `experiments.robust_fusion`; in the --workdir of such a run it uses the
classifiers that are there, whatever flags they do not depend on. For every perturbed modality it
attacks the first --num_attack test rows of the modality's own classifier and of the fused
prediction of every rule in --methods. Writes attack_sanity.csv; a check that fails is a finding,
not an error. With fewer than 200 rows a single one is more than the half point that most checks
allow.

    python -m experiments.attack_sanity --dataset=digits --workdir=runs/sanity \
        --num_attack=200 --methods=statistical,robust --gammas=0.1

takes about four minutes on two CPU cores, most of it to compile.
"""

from absl import flags as absl_flags

from experiments.run import flags, launch
from experiments.run.config import Config
from experiments.run.flags import config_from_flags


def run(config: Config) -> None:
    """Runs all checks, prints a table and writes the file.

    Args:
      config: settings of the run whose classifiers are used.
    """
    from experiments.measuring.attack_sanity import measure  # takes seconds
    from experiments.reports.attack_sanity import write
    from experiments.run import start

    dataset = start.load(config, classifiers_only=True)
    rows = measure(
        start.prepare(config, dataset, config.seed),
        start.rules_of(config, dataset.modalities),
        perturbed=config.perturbed,
        num_attack=config.num_attack,
        attack_steps=config.attack_steps,
        batch_size=config.batch_size,
    )
    write(rows, config.workdir)


def main(argv: list[str]) -> None:
    """Parses flags and runs; errors of the user's end in one line and a non-zero exit."""
    launch.start(argv, config_from_flags, run)


if __name__ == "__main__":
    absl_flags.adopt_module_key_flags(flags)  # those that --help lists
    launch.launch(main)
