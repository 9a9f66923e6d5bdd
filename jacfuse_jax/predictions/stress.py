r"""What is lost if a modality fails, and which rule loses least: from labelled predictions alone.

    python -m jacfuse_jax.predictions.stress --input=audio=audio.npz --input=video=video.npz \
        --attack_shares=0.01,0.1,0.5 --groups_column=speaker --output=runs/stress

For every modality, and for any --num_failing of them, every rule and parameter: accuracy,
likelihood and calibration where nothing fails and under every fault of `selection`, and the exact
accuracy where the modality may say anything, of rules of which it is known. No attack is run, and
no input is needed. Rows should be such that nobody perturbed them, and that no classifier was
trained on.

For each of --attack_shares the rule is chosen that is worth most, (1 - share) clean + share worst,
see `selection.choose`; the worst case is that of --against. Intervals are of groups of rows, where
--groups_column names what rows have in common that depend on each other: a person, a recording.

Written to --output:

    stress.csv    a line a suspect, rule and parameters: accuracies, with the 95% interval of the
                  clean one; shares for which the rule was chosen
    faults.csv    a line a suspect, rule and fault: accuracy, negative log-likelihood, calibration
                  error
    coverage.csv  a line a suspect, chosen rule, criterion and share of rows that are decided: the
                  accuracy of these, the surest ones by confidence, or those that are certified
    chosen.json   the rules that were chosen, and what is expected of them: for --rule of
                  `python -m jacfuse_jax.predictions`, and `sklearn.RobustLateFusion(rule=...)`

Of more labelled rows than 10,000, or than a million logits, so many are drawn at random.
"""

from absl import app
from absl import flags as absl_flags

from jacfuse_jax.predictions import flags
from jacfuse_jax.programs.command_line import one_line_errors, parse_flags


def main(argv: list[str], flag_values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
    """Parses flags and runs; errors of the user's end in one line and a non-zero exit."""
    with one_line_errors(argv):
        config = flags.stress_config_from_flags(flag_values)
        from jacfuse_jax.predictions.stress_run import run  # --help need not wait for it

        print(run(config).report)
        print(f"wrote {config.output}/")


def launch() -> None:
    """Starts the program."""
    flags.define_stress_flags(absl_flags.FLAGS)
    absl_flags.adopt_module_key_flags(flags)  # those that --help lists
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    launch()
