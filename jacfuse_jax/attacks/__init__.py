"""Attacks on a prediction function, with a budget per modality.

An attack sees one function from inputs to log-probabilities; gradient attacks differentiate it:
given a fused prediction they go through the fusion rule, solve included. All are pure and work
under `jax.jit`; budgets may be traced, so one compiled attack serves every epsilon. Outside of it
an attack is compiled once for the same function object, shapes and static arguments; a function
that is made anew for each call, such as a lambda, is compiled anew.

An attack makes the prediction leave the label or, where targets are given, take the target: then
the target alone is a success, and the losses are those that rise with its probability.

Labels and targets must be classes, 0 ... K - 1: those that are known are checked, and a sample
whose traced label or target is no class becomes NaN. So does one whose traced epsilon is negative,
and so do all where that is a scalar.

A prediction that is saturated in its dtype (p(label) = 1 after rounding) has a gradient of exactly
zero: there a gradient attack fails without the prediction being robust. An accuracy under such an
attack that exceeds the one under a transferred attack is a sign of it; the worse of both counts.
"""

from jacfuse_jax.attacks import losses
from jacfuse_jax.attacks._apgd import apgd
from jacfuse_jax.attacks._gradient import fgm, pgd
from jacfuse_jax.attacks._hop_skip_jump import hop_skip_jump
from jacfuse_jax.attacks._missing import adversarial_missing
from jacfuse_jax.attacks._search import random_search
from jacfuse_jax.attacks._square import square

__all__ = [
    "adversarial_missing",
    "apgd",
    "fgm",
    "hop_skip_jump",
    "losses",
    "pgd",
    "random_search",
    "square",
]
