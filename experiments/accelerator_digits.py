r"""Trains classifiers of the two halves of the digits for one epoch and attacks their fusion.

    python -m experiments.accelerator_digits --workdir=runs/digits

takes half a minute on two CPU cores. Needs no data set but scikit-learn's own and none of the
libraries that read the others, unlike `experiments.robust_fusion`. Writes digits.json.
"""

from absl import app, flags, logging

from jacfuse_jax.programs.command_line import parse_flags


def main(_: list[str]) -> None:
    """Runs and writes the findings."""
    from experiments.measuring.accelerator_digits import run  # takes seconds

    logging.set_verbosity(logging.WARNING)  # orbax reports every step of a save
    run(flags.FLAGS.workdir, flags.FLAGS.num_test, flags.FLAGS.num_steps)


if __name__ == "__main__":
    # Not on import, since other binaries have flags of the same names.
    flags.DEFINE_string("workdir", "runs/digits", "Folder of digits.json.")
    flags.DEFINE_integer("num_test", 500, "Test rows.", lower_bound=1, upper_bound=500)
    flags.DEFINE_integer("num_steps", 20, "Of PGD.", lower_bound=1)
    app.run(main, flags_parser=parse_flags)
