r"""What is lost if a modality fails, told by labelled predictions alone; with a figure.

The same program as `python -m jacfuse_jax.predictions.stress`, which writes the tables; see there.
This one draws `frontier.png` beside them: clean accuracy and accuracy in the worst case of every
rule, and those that were chosen; and writes `report.html`, a page of all that. Two modalities of 8
classes, 1,440 rows, take a minute.

    python -m experiments.stress_predictions --input=audio=audio.npz --input=video=video.npz \
        --groups_column=actor --output=runs/stress
"""

from absl import app, flags

from jacfuse_jax.predictions import flags as prediction_flags
from jacfuse_jax.programs.command_line import one_line_errors, parse_flags


def main(argv: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Parses flags and runs; errors of the user's end in one line and a non-zero exit."""
    with one_line_errors(argv):
        config = prediction_flags.stress_config_from_flags(flag_values)
        from experiments.reports.frontier import write_frontier  # --help need not wait for it
        from experiments.reports.page.page import write_report
        from jacfuse_jax.predictions.stress_run import run

        outcome = run(config)
        write_frontier(outcome.stressed, config.against, config.output / "frontier.png")
        page = write_report(config.output)
        print(outcome.report)
        print(f"wrote {config.output}/ and {page}")


if __name__ == "__main__":
    prediction_flags.define_stress_flags(flags.FLAGS)
    flags.adopt_module_key_flags(prediction_flags)  # those that --help lists
    app.run(main, flags_parser=parse_flags)
