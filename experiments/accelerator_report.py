r"""Puts together what `.ci/accelerator` measured: JSON, CSV, figures, and a table on the screen.

    python -m experiments.accelerator_report --partial=runs/accelerator/partial \
        --out=runs/accelerator

Steps that failed, or that were ended, leave what they had measured; this says what is missing.
"""

from pathlib import Path

from absl import app, flags

from jacfuse_jax.programs.command_line import parse_flags


def main(_: list[str]) -> None:
    """Writes the files, then prints."""
    from experiments.reports.accelerator import (
        collect,
        describe,
        write,  # takes seconds
    )

    findings = collect(Path(flags.FLAGS.partial))
    print(describe(findings))
    write(findings, Path(flags.FLAGS.out))


if __name__ == "__main__":
    flags.DEFINE_string("partial", None, "Folder that the steps wrote to.", required=True)
    flags.DEFINE_string("out", None, "Folder of the results.", required=True)
    app.run(main, flags_parser=parse_flags)
