"""One key and one shape of inputs for all tests, so that random draws compile once."""

import jax

KEY = jax.random.key(0)
SHAPE = (40, 25, 25, 2)  # of images, and of spectrograms
