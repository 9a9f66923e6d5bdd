"""The error that a program ends with in one line."""


class InputError(ValueError):
    """A file, flag or argument does not fit; the one-line message names it and the remedy."""
