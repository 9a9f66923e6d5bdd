"""Metrics: of classification, as sums over batches; of robustness; intervals by resampling."""

from jacfuse_jax.metrics._bootstrap import (
    BootstrapInterval,
    bootstrap_interval,
    paired_bootstrap_interval,
)
from jacfuse_jax.metrics._classification import (
    NUM_BINS,
    ClassificationMetrics,
    ClassificationSums,
    classification_sums,
    expected_calibration_error,
    finalise,
    wilson_interval,
)
from jacfuse_jax.metrics._pareto import hypervolume, pareto_front
from jacfuse_jax.metrics._robustness import (
    effective_curve_area,
    effective_robustness,
    make_baseline_fn,
    mean_corruption_error,
    relative_mean_corruption_error,
    relative_robustness,
    robustness_curve_area,
)

__all__ = [
    "NUM_BINS",
    "BootstrapInterval",
    "ClassificationMetrics",
    "ClassificationSums",
    "bootstrap_interval",
    "classification_sums",
    "effective_curve_area",
    "effective_robustness",
    "expected_calibration_error",
    "finalise",
    "hypervolume",
    "make_baseline_fn",
    "mean_corruption_error",
    "paired_bootstrap_interval",
    "pareto_front",
    "relative_mean_corruption_error",
    "relative_robustness",
    "robustness_curve_area",
    "wilson_interval",
]
