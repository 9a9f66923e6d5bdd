r"""What an extra modality does for a prediction that is recalibrated against another one.

Takes the flags of `experiments.robust_fusion`. One modality is believed perturbed; the other, the
extra one, is trusted and made stronger step by step. Twice:

  - on a Gaussian model, where everything is known: x_m ~ N(a_m mu_y, I) given the class y, so that
    the exact posterior is the statistical fusion of linear classifiers with features x_m. The
    attack, PGD with a 2-norm of two standard deviations, goes through the prediction it is after;
  - on the data set of --dataset, where the extra modality gets less and less noise and the attack
    is APGD at severity 3 on the perturbed modality's own classifier. In the --workdir of a run of
    `experiments.robust_fusion` its classifiers are used, whatever flags they do not depend on.

For statistical fusion, robust fusion with every --gammas and the two modalities alone: accuracy,
clean and attacked; how far the recalibration moves the prediction against what bounds it
(`bounds.bias_bound`); the prediction's Jacobian against what bounds that (`bounds.a_priori_bound`).
Writes extra_modality.csv and figures/extra_modality_*.png.

    python -m experiments.extra_modality --dataset=digits --workdir=runs/extra_modality

takes about two minutes on two CPU cores, most of it to train and compile.
"""

from absl import flags as absl_flags

from experiments.run import flags, launch
from experiments.run.config import Config
from experiments.run.flags import config_from_flags
from jacfuse_jax.programs import InputError


def run(config: Config) -> None:
    """Measures, prints tables and writes the files.

    Args:
      config: settings of the run whose classifiers are used.

    Raises:
      InputError: the data set has another number of modalities than two.
    """
    from experiments.measuring.extra_modality import measure_dataset, measure_gaussian  # seconds
    from experiments.reports.extra_modality import write
    from experiments.run import start

    dataset = start.load(config, classifiers_only=True)
    if len(dataset.modalities) != 2:
        raise InputError(f"--dataset={config.dataset}: two modalities are needed")
    rows = measure_gaussian(config.gammas, attack_steps=config.attack_steps, seed=config.seed)
    prepared = start.prepare(config, dataset, config.seed)
    for perturbed in config.perturbed:
        rows += measure_dataset(
            prepared,
            perturbed,
            config.gammas,
            num_attack=config.num_attack,
            attack_steps=config.attack_steps,
            num_restarts=config.num_restarts,
            batch_size=config.batch_size,
        )
    write(rows, config.workdir)


def main(argv: list[str]) -> None:
    """Parses flags and runs; errors of the user's end in one line and a non-zero exit."""
    launch.start(argv, config_from_flags, run)


if __name__ == "__main__":
    absl_flags.adopt_module_key_flags(flags)  # those that --help lists
    launch.launch(main)
