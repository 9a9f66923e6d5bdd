"""The rules under `jax.jit`: one program serves all values of what is not a name or a size.

Outside of it every operation is a program of its own, and compiling them is what tests cost.
"""

import jax

from jacfuse_jax import fusion
from jacfuse_jax.linalg import spectrum_from_kernel

mean_fusion = jax.jit(fusion.mean_fusion)
statistical_fusion = jax.jit(fusion.statistical_fusion)
scaled_fusion = jax.jit(fusion.scaled_fusion, static_argnames="perturbed")
contaminated_fusion = jax.jit(fusion.contaminated_fusion, static_argnames="perturbed")
contaminated_log_probs = jax.jit(fusion.contaminated_log_probs)
cascade_fusion = jax.jit(fusion.cascade_fusion, static_argnames="perturbed")
robust_fusion = jax.jit(
    fusion.robust_fusion, static_argnames=("perturbed", "num_iterations", "solver", "batch_size")
)
kernel_spectrum = jax.jit(spectrum_from_kernel)
