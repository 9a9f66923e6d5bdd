"""Late fusion of classifiers, one per modality: logits in, log-probabilities out, no training.

A rule is an object, `Robust(gamma=0.1)`, that `fuse` applies; the functions are what it calls.

All rules take `logits`, {modality: (B, K)}, and treat samples independently: a NaN stays in its
sample. They work under `jax.jit`, `jax.vmap` and `jax.grad`; modality names are static. bfloat16
and float16 are computed in float32, and log-probabilities come back in the dtype of the logits.

A logit of -inf in a row that has a finite entry is a probability of zero. A row with NaN or +inf,
or with nothing finite, says nothing: where `contaminated_fusion` and `cascade_fusion` believe the
modality perturbed it counts as the prior, a modality dropped by scale = 0 needs none, and elsewhere
the sample is NaN. So is a sample all of whose classes are excluded by one modality or another.

A class prior must sum to one to within 1e-3, and is then normalised. Arguments that are known are
checked; what `jax.jit` traces becomes NaN where it is out of its range.

Logits and the prior may be arrays of any framework with `__dlpack__`, torch among them. On the same
device their memory is read in place where alignment (64 bytes on CPU) and strides allow it: do not
write to it before the result is there. Tensors that require gradients must be detached, and
transformations, `jax.jit` among them, take JAX's and NumPy's arrays alone as arguments.
"""

from jacfuse_jax.fusion._cascade import cascade_fusion, learned_cascade_fusion
from jacfuse_jax.fusion._contaminated import (
    contaminate_modalities,
    contaminated_fusion,
    contaminated_log_probs,
)
from jacfuse_jax.fusion._gate import Gate
from jacfuse_jax.fusion._pools import MajorityVote, Median, TrimmedMean
from jacfuse_jax.fusion._robust import FusedOutput, robust_fusion
from jacfuse_jax.fusion._rule import FusionInputs, Rule, fuse
from jacfuse_jax.fusion._rules import (
    RULES,
    Cascade,
    Contaminated,
    ContaminatedRobust,
    LearnedCascade,
    Max,
    Mean,
    Product,
    Robust,
    Scaled,
    Statistical,
    rule_from_json,
)
from jacfuse_jax.fusion._static import (
    max_fusion,
    mean_fusion,
    product_fusion,
    scaled_fusion,
    statistical_fusion,
)

__all__ = [
    "RULES",
    "Cascade",
    "Contaminated",
    "ContaminatedRobust",
    "FusedOutput",
    "FusionInputs",
    "Gate",
    "LearnedCascade",
    "MajorityVote",
    "Max",
    "Mean",
    "Median",
    "Product",
    "Robust",
    "Rule",
    "Scaled",
    "Statistical",
    "TrimmedMean",
    "cascade_fusion",
    "contaminate_modalities",
    "contaminated_fusion",
    "contaminated_log_probs",
    "fuse",
    "learned_cascade_fusion",
    "max_fusion",
    "mean_fusion",
    "product_fusion",
    "robust_fusion",
    "rule_from_json",
    "scaled_fusion",
    "statistical_fusion",
]
