r"""What cannot be overturned: accuracy that is certified against any corruption of one modality.

Takes the flags of `experiments.robust_fusion`; in the --workdir of such a run it uses the
classifiers that are there, whatever flags they do not depend on. For every modality in --perturbed,
contaminated fusion with every --contaminations and cascades with every --confidences: accuracy on
clean test rows, and the share of rows that are right whatever that modality says. A star marks what
validation data choose for a share of attacked inputs, --attack_share: (1 - share) clean + share
certified. Beside it radii, in the 2-norm of the input, within which nothing changes the class of
the first --num_attack rows, of statistical and robust fusion too, and what PGD achieves at
multiples of them: see `evaluation.radii`. Writes certified.csv, radii.csv, figures/certified.png
and report.html, which has what else the --workdir has, too.

    python -m experiments.certified --dataset=digits --workdir=runs/certified

takes about two minutes on two CPU cores, most of it to train and compile.
"""

from absl import flags as absl_flags

from experiments.run import flags, launch
from experiments.run.config import Config
from experiments.run.flags import config_from_flags


def run(config: Config) -> None:
    """Measures, prints tables and writes the files.

    Args:
      config: settings of the run whose classifiers are used.
    """
    from experiments.measuring.certified import measure  # takes seconds
    from experiments.reports.certified import write
    from experiments.reports.page.page import write_report
    from experiments.run import start

    dataset = start.load(config, classifiers_only=True)
    findings = measure(
        start.prepare(config, dataset, config.seed),
        perturbed=config.perturbed,
        contaminations=config.contaminations,
        confidences=config.confidences,
        gammas=config.gammas,
        attack_share=config.attack_share,
        num_attack=config.num_attack,
        attack_steps=config.attack_steps,
        batch_size=config.batch_size,
    )
    write(findings, config.workdir)
    print(f"wrote {write_report(config.workdir)}")


def main(argv: list[str]) -> None:
    """Parses flags and runs; errors of the user's end in one line and a non-zero exit."""
    launch.start(argv, config_from_flags, run)


if __name__ == "__main__":
    absl_flags.adopt_module_key_flags(flags)  # those that --help lists
    launch.launch(main)
