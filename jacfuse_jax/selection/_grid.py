"""Values of the parameters of a rule, from what does nothing to what does most."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from jacfuse_jax.fusion import Rule

VALUES: Mapping[str, tuple[float, ...]] = {
    "scale": (1.0, 0.7, 0.5, 0.35, 0.25, 0.1, 0.0),
    "gamma": (1.0, 0.5, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001),
    "contamination": (0.0, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0),
    "tempering": (1.0, 0.7, 0.5, 0.25),
    "confidence": (1.0, 0.98, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.0),
}
"""That parameters are searched over."""


def grid(rule: Rule, parameters: Sequence[str]) -> list[Rule]:
    """A rule with all combinations of some of its parameters, simple ones first.

    Simple is where few parameters do anything, and then where they do little.

    Args:
      rule: other parameters are as it has them.
      parameters: names, of `VALUES`.

    Raises:
      ValueError: the rule has no such parameter, or there are no values of it.
    """
    known = [field.name for field in dataclasses.fields(rule) if field.name in VALUES]
    for name in parameters:
        if name not in known:
            raise ValueError(
                f"parameters of the rule {rule.name} that can be chosen are {known}, got {name!r}"
            )
    places = itertools.product(*(range(len(VALUES[name])) for name in parameters))
    ordered = sorted(places, key=lambda at: (sum(i > 0 for i in at), at))
    return [
        dataclasses.replace(
            rule, **{name: VALUES[name][i] for name, i in zip(parameters, at, strict=True)}
        )
        for at in ordered
    ]
