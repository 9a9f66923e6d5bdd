"""Networks without the initial distributions of Flax, which take seconds to compile a shape."""

import jax.numpy as jnp
import numpy as np
from flax import nnx


def draw(make_model, seed=1):
    """The network that `make_model` makes, its kernels drawn by NumPy."""
    graph, state = nnx.split(nnx.eval_shape(make_model))
    rng = np.random.default_rng(seed)

    def initial(path, array):
        draw_fn = {
            "kernel": lambda shape: rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1])),
            "scale": np.ones,
            "var": np.ones,
            "bias": np.zeros,
            "mean": np.zeros,
        }[path[-1]]
        return jnp.asarray(draw_fn(array.shape), array.dtype)

    return nnx.merge(graph, nnx.map_state(initial, state))
