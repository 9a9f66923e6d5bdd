r"""The leaderboard: adds a finished run to the results, and makes the page of all of them.

    python -m experiments.leaderboard --add=runs/balanced

writes results/av_mnist_balanced_seed_0.json, one file a seed, and docs/leaderboard.md with its
picture, in seconds.
"""

from pathlib import Path

from absl import app, flags

from jacfuse_jax.programs.command_line import one_line_errors, parse_flags


def define_flags(flag_values: flags.FlagValues) -> None:
    """Declares all flags."""
    texts = {
        "add": (None, "Folder of a finished run of experiments.robust_fusion with --num_select."),
        "name": (None, "Of the data of that run; default --dataset, which arrays do not name."),
        "licence": (None, "Of these data; default that of the data sets that come with it."),
        "results": ("results", "Folder of all results."),
        "page": ("docs/leaderboard.md", "File of the page."),
    }
    for name, (default, text) in texts.items():
        flags.DEFINE_string(name, default, text, flag_values)


def main(argv: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Parses flags and runs; errors of the user's end in one line and a non-zero exit."""
    with one_line_errors(argv):
        from experiments.reports import leaderboard, leaderboard_figure  # --help need not wait
        from jacfuse_jax.programs.files import write_atomically

        given = flag_values
        folder = Path(given.results)
        if given.add is not None:
            workdir = Path(given.add).expanduser()
            for result in leaderboard.collect(workdir, name=given.name, licence=given.licence):
                print(f"wrote {leaderboard.write(result, folder)}")
        page = Path(given.page)
        results = leaderboard.read(folder)
        picture = page.with_suffix(".png")
        leaderboard_figure.write_figure(results, picture)
        write_atomically(page, leaderboard.make_page(results, picture.name))
        print(f"wrote {picture}\nwrote {page}")


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main, flags_parser=parse_flags)
