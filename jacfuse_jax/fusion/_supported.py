"""Functions that take some rules and not others."""

from typing import TypeVar

from jacfuse_jax.fusion._rules import Rule

R = TypeVar("R", bound=Rule)


def check_supported(rule: object, supported: tuple[type[R], ...], what: str) -> R:
    """Returns the rule; raises unless its class is one of these, since others may do anything.

    Args:
      rule: any.
      supported: classes; subclasses of theirs are others.
      what: of the rules, for the text: "that can be certified".

    Returns:
      The rule.

    Raises:
      TypeError: it is no rule.
      ValueError: it is another one.
    """
    if not isinstance(rule, Rule):
        raise TypeError(f"rule must be a rule of jacfuse_jax.fusion, got {type(rule).__name__}")
    for one in supported:
        if type(rule) is one:
            return rule
    names = ", ".join(one.__name__ for one in supported)
    raise ValueError(f"rules {what} are {names}, got {type(rule).__name__}")
