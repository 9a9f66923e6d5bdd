"""Robust late fusion of what classifiers of any framework predicted.

The same program as `python -m jacfuse_jax.predictions`, whose help it shows.
"""

from jacfuse_jax.predictions import __main__ as program

__doc__ = program.__doc__

if __name__ == "__main__":
    program.launch()
