"""Which fusion rule to take, told how many inputs are attacked: from validation rows alone.

    suspects = selection.Suspects.of("audio", logits)
    candidates = selection.candidates(logits, labels, class_prior, suspects, shares=[0.1])
    measured = selection.measure(candidates, logits, labels, class_prior, suspects, grams=grams)
    choice = selection.choose(measured, share=0.1)

If a share s of inputs has suspect modalities that fail, a rule is worth

    (1 - s) (accuracy, nothing failing) + s (accuracy in the worst case),

where the worst case is that of the faults that a modality may have, see `FAULTS`, or anything that
it may say at all, which `certificates` tells exactly. No attack is run, and no input is needed.
"""

from jacfuse_jax.selection._abstain import (
    Abstention,
    CoverageCurve,
    choose_threshold,
    coverage_curve,
)
from jacfuse_jax.selection._candidates import (
    BASELINES,
    Candidate,
    baselines,
    candidates,
    default_rules,
)
from jacfuse_jax.selection._choose import Choice, Worth, choose
from jacfuse_jax.selection._chosen import (
    SCHEMA,
    ChosenRule,
    choice_to_dict,
    chosen_to_json,
    read_chosen,
)
from jacfuse_jax.selection._faults import FAULTS
from jacfuse_jax.selection._folds import assign_folds
from jacfuse_jax.selection._gate import fit_gate
from jacfuse_jax.selection._grid import VALUES, grid
from jacfuse_jax.selection._measure import AGAINST, Against, Figures, Measured, measure
from jacfuse_jax.selection._suspects import Suspects

__all__ = [
    "AGAINST",
    "BASELINES",
    "FAULTS",
    "SCHEMA",
    "VALUES",
    "Abstention",
    "Against",
    "Candidate",
    "Choice",
    "ChosenRule",
    "CoverageCurve",
    "Figures",
    "Measured",
    "Suspects",
    "Worth",
    "assign_folds",
    "baselines",
    "candidates",
    "choice_to_dict",
    "choose",
    "choose_threshold",
    "chosen_to_json",
    "coverage_curve",
    "default_rules",
    "fit_gate",
    "grid",
    "measure",
    "read_chosen",
]
