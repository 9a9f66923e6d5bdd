"""Sets of flags for `experiments.robust_fusion`: what --suite gives to flags that are not given."""

from typing import Any

from jacfuse_jax.evaluation.baselines import MajorityVote, Median, ProbEn, TrimmedMean
from jacfuse_jax.evaluation.names import PERTURBATIONS
from jacfuse_jax.evaluation.rules import NAMES
from jacfuse_jax.evaluation.threat_models import THREAT_MODELS

# The data sets have two modalities, and attacking one rule under two names takes twice as long.
_LEFT_OUT = (ProbEn.kind, TrimmedMean.kind)
# What predicts the same class as another rule of two modalities, and regimes that take long.
_NOT_STANDARD = (
    *(*_LEFT_OUT, Median.kind, MajorityVote.kind, "noise_training", "jacobian_training"),
)

SUITES: dict[str, dict[str, Any]] = {
    "demo": {
        "methods": (
            *("unimodal", "statistical", "scaled", "robust", "contaminated", "cascade"),
            *("drop_suspect", "learned_cascade"),
        ),
        "perturbations": ("clean", "gaussian_noise", "missing", "apgd"),
        "gammas": (0.5, 0.1, 0.01),
        "scales": (0.7, 0.5, 0.25),
        "contaminations": (0.1, 0.5),
        "temperings": (1.0,),
        "confidences": (0.5, 0.8, 0.95),
        "num_train": 5000,
        "num_eval": 1000,
        "num_attack": 200,
        "num_select": 150,
        "attack_steps": 10,
    },
    "quick": {
        "methods": (
            *("unimodal", "mean", "statistical", "scaled", "robust", "contaminated", "cascade"),
        ),
        "perturbations": ("clean", "gaussian_noise", "missing", "mismatched_pair", "apgd_ensemble"),
        "gammas": (0.1,),
        "scales": (0.2,),
        "contaminations": (0.5,),
        "temperings": (1.0,),
        "num_train": 5000,
        "num_eval": 1000,
        "num_attack": 100,
        "attack_steps": 10,
    },
    "standard": {
        "methods": tuple(name for name in NAMES if name not in _NOT_STANDARD),
        "perturbations": (
            *("clean", "gaussian_noise", "missing", "bias", "missing_modality"),
            *("mismatched_pair", "occlusion", "gaussian_blur", "white_noise", "time_mask"),
            "apgd_ensemble",
        ),
        "threat_models": ("known", "wrong", "unknown", "both", "either"),
        "gammas": (0.5, 0.3, 0.1, 0.01),
        "scales": (0.7, 0.5, 0.25, 0.1),
        "contaminations": (0.1, 0.3, 0.5, 0.7),
        "temperings": (1.0, 0.5),
        "confidences": (0.5, 0.7, 0.8, 0.9, 0.95),
        "num_train": 12_000,
        "num_eval": 2000,
        "num_attack": 200,
        "num_select": 150,
        "num_permutations": 20,
        "attack_steps": 10,  # twenty change no mean over budgets by more than 0.1 points
    },
    "full": {
        "methods": tuple(name for name in NAMES if name not in _LEFT_OUT),
        "perturbations": PERTURBATIONS,
        "threat_models": THREAT_MODELS,
        "gammas": (0.5, 0.3, 0.1, 0.03, 0.01, 0.001, 0.0001),
        "scales": (0.5, 0.35, 0.25, 0.2, 0.15, 0.1, 0.05),
        "contaminations": (0.05, 0.1, 0.3, 0.5, 0.7, 0.9),
        "temperings": (1.0, 0.5, 0.33, 0.2),
        "confidences": (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98),
        "num_attack": 2000,
        "num_select": 1000,
        "attack_steps": 50,
        "num_restarts": 2,
        "num_permutations": 50,
        "num_seeds": 3,
    },
}


def values_of(suite: str, dataset: str) -> dict[str, Any]:
    """What a suite gives to flags.

    Args:
      suite: of `SUITES`, or "": nothing.
      dataset: see `catalogue.base_name`; those other than av_mnist may have fewer rows.
    """
    numbers_of_rows = () if dataset == "av_mnist" else ("num_train", "num_eval")
    values = SUITES.get(suite, {}).items()
    return {name: value for name, value in values if name not in numbers_of_rows}
