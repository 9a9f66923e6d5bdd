"""Worst-case evaluation of fusion rules: what is attacked, measured, chosen and summarised.

`worst_case` does all of it in one call; its parts are modules.
"""

from jacfuse_jax._unimodal import UnimodalOutput
from jacfuse_jax.evaluation._worst_case import WorstCase, worst_case
from jacfuse_jax.evaluation.models import Classifier, Models, make_models

__all__ = [
    "Classifier",
    "Models",
    "UnimodalOutput",
    "WorstCase",
    "make_models",
    "worst_case",
]
