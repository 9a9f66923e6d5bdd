"""Robust late fusion of what classifiers of any framework predicted.

The same program as `python -m jacfuse_jax.predictions`, whose help it shows.
"""

import runpy

if __name__ == "__main__":
    # As the main module: --help lists the flags of that one alone.
    runpy.run_module("jacfuse_jax.predictions", run_name="__main__", alter_sys=True)
