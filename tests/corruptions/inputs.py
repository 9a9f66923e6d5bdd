"""One key, few shapes of inputs and one program a corruption for all tests."""

import collections
import functools
import inspect

import jax
import numpy as np

from jacfuse_jax import corruptions

KEY = jax.random.key(0)
SHAPE = (40, 25, 25, 2)  # of images, and of spectrograms, enough for statistics
SMALL = (40, 12, 11, 2)  # where nothing is counted: without optimisation draws take their time
SERIES = (40, 12, 6)
TRACES = collections.Counter()


def takes(name, argument):
    return argument in inspect.signature(getattr(corruptions, name)).parameters


@functools.cache
def _compiled(name):
    def traced(*args, **kwargs):
        TRACES[name] += 1
        return getattr(corruptions, name)(*args, **kwargs)

    traced.__signature__ = inspect.signature(getattr(corruptions, name))
    static = [argument for argument in ("axis", "radius") if takes(name, argument)]
    return jax.jit(traced, static_argnames=static)


def corrupt(name, *args, **kwargs):
    """The corruption under jit, all but axes and radii traced: severities and ranges as well."""
    return np.asarray(_compiled(name)(*args, **kwargs))
