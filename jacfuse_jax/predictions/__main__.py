r"""Robust late fusion of what classifiers of any framework predicted.

    python -m jacfuse_jax.predictions --input=audio=audio.npz \
        --input=video=video.safetensors --perturbed=audio --gamma=0.1 --contamination=auto \
        --output=fused.parquet

Inputs hold logits and, if need be, ids, labels and the last linear layer: `inputs` says how. Rows
are joined by `ids`, by --ids_column, or by the one column that all inputs have of which no entry
occurs twice; by position where none has any, or with --join=position. What was done is said, with
what was not used. --inputs_are=probabilities takes the logarithm first; probabilities that were
rounded to zero count as the smallest number of their dtype. Where inputs name their `classes`,
these are aligned by name, in the order of the first input, and labels may be names; other classes
in each are refused, or with --classes=intersect or unite made one, see `classes`.

A logit of -inf excludes its class. A row of NaN, +inf or nothing finite counts as the class prior
where its modality is believed perturbed; of a trusted one it leaves no prediction.

Perturbed modalities are contaminated, log((1 - e) softmax(z) + e prior) in the place of their
logits, and then recalibrated by `fusion.robust_fusion`; --contamination=0 and --gamma=1 switch one
or the other off, and without --perturbed it is statistical fusion. Kernels are centred over
classes, so that a constant added to all logits of a row changes nothing. `outputs` says what is
written. Where there are labels, accuracy and negative log-likelihood are printed, before and after.

What is `auto` is chosen on labelled predictions that nobody perturbed: those of --validation, or,
where that is not given, the inputs themselves, which makes the figures on them optimistic. Chosen
is what is worth most if --attack_share of the inputs have perturbed modalities that fail, in the
worst of several faults or, with --against=anything, whatever they say: see `selection.choose`.
--rule=auto chooses among all rules; --rule=chosen.json takes one that `stress` chose, or any that
`Rule.to_json` wrote. --groups_column names what rows have in common that depend on each other.

Logits pass through memory some thousand rows at a time: 0.6 GB however many there are, and 8
bytes a row, or up to 200 where rows are joined by id; `auto` takes 100 bytes a logit of 10,000 rows
more. Inputs that are .npz or Parquet take as much space beside the output as their logits unpacked.
What is needed is said first, and refused where it does not fit. Two cores of an AMD EPYC, shared
with other programs, fused two modalities at 1,800 rows a second for K = 309 and at 300,000 for K =
10: 10 million rows take 95 minutes, or half a minute.

Computes in float32; with JAX_ENABLE_X64=1 in the environment, float64 logits stay float64.
"""

from absl import app
from absl import flags as absl_flags

from jacfuse_jax.predictions import flags
from jacfuse_jax.programs.command_line import one_line_errors, parse_flags


def main(argv: list[str], flag_values: absl_flags.FlagValues = absl_flags.FLAGS) -> None:
    """Parses flags and runs; errors of the user's end in one line and a non-zero exit."""
    with one_line_errors(argv):
        config = flags.config_from_flags(flag_values)
        from jacfuse_jax.predictions.stream import run  # --help need not wait for it

        run(config)


def launch() -> None:
    """Starts the program."""
    flags.define_flags(absl_flags.FLAGS)
    absl_flags.adopt_module_key_flags(flags)  # those that --help lists
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    launch()
