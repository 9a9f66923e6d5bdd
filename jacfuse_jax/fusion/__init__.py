"""Late fusion of classifiers, one per modality: logits in, log-probabilities out, no training.

All rules take `logits`, {modality: (B, K)}, and treat samples independently: a NaN stays in its
sample. They work under `jax.jit`, `jax.vmap` and `jax.grad`; modality names are static.

Logits and the prior may be arrays of any framework with `__dlpack__`, torch among them. On the same
device their memory is read in place where alignment (64 bytes on CPU) and strides allow it: do not
write to it before the result is there. Tensors that require gradients must be detached, and
transformations, `jax.jit` among them, take JAX's and NumPy's arrays alone as arguments.
"""

from jacfuse_jax.fusion.cascade import cascade_fusion
from jacfuse_jax.fusion.contaminated import (
    contaminate_modalities,
    contaminated_fusion,
    contaminated_log_probs,
)
from jacfuse_jax.fusion.robust import FusedOutput, robust_fusion
from jacfuse_jax.fusion.static import (
    max_fusion,
    mean_fusion,
    product_fusion,
    scaled_fusion,
    statistical_fusion,
)

__all__ = [
    "FusedOutput",
    "cascade_fusion",
    "contaminate_modalities",
    "contaminated_fusion",
    "contaminated_log_probs",
    "max_fusion",
    "mean_fusion",
    "product_fusion",
    "robust_fusion",
    "scaled_fusion",
    "statistical_fusion",
]
