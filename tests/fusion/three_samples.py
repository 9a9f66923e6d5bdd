"""A problem of three samples and four classes, for tests of what rules make of arguments."""

import jax
import numpy as np

from jacfuse_jax import linalg

K = 4
rng = np.random.default_rng(0)
PRIOR = np.array([0.1, 0.2, 0.3, 0.4])
LOGITS = {name: rng.normal(size=(3, K)) for name in ("image", "audio")}
LABELS = np.array([0, 1, 3])
GRAMS = {"image": jax.device_get(linalg.spectrum_from_kernel(rng.normal(size=(6, K))))}
