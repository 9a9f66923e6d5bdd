r"""Compares finished runs in one HTML file, which opens in any browser without a network.

Takes what `experiments.robust_fusion`, `experiments.certified` and `experiments.stress_predictions`
wrote, and measures nothing: settings, findings, chosen rules and what they are worth, tables. Of
one run alone it is the report.html that the run itself wrote, made again.

    python -m experiments.make_report --workdirs=runs/a,runs/b --output=comparison.html
"""

from pathlib import Path

from absl import app, flags

from jacfuse_jax.programs import InputError
from jacfuse_jax.programs.command_line import one_line_errors, parse_flags


def define_flags(flag_values: flags.FlagValues) -> None:
    """Declares the flags.

    Args:
      flag_values: where.
    """
    flags.DEFINE_list(
        "workdirs", None, "Folders of results of finished runs.", flag_values=flag_values
    )
    flags.DEFINE_string("output", None, "File to write, .html.", flag_values=flag_values)


def main(argv: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Parses flags and writes; errors of the user's end in one line and a non-zero exit."""
    with one_line_errors(argv):
        workdirs, output = flag_values["workdirs"].value, flag_values["output"].value
        if not workdirs:
            raise InputError("--workdirs is missing: name folders of finished runs")
        if not output:
            raise InputError("--output is missing: name a file, such as comparison.html")
        folders = [Path(name).expanduser() for name in workdirs]
        for folder in folders:
            if not folder.is_dir():
                raise InputError(f"--workdirs={folder}: no such folder; name one of a finished run")
        path = Path(output).expanduser()
        if path.suffix.lower() not in (".html", ".htm"):
            raise InputError(f"--output={output}: name a file that ends in .html")
        from experiments.reports.page.page import write_comparison  # takes seconds

        write_comparison(folders, path)
        print(f"wrote {path}")


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main, flags_parser=parse_flags)
