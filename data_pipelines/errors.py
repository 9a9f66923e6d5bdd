"""The errors that every data problem a user can mend is reported with."""


class DataError(ValueError):
    """Raw or prepared data cannot be used.

    The message is a single line that names the file or flag and the remedy, so that a binary can
    print it as it is, without a traceback.
    """


class MediaError(DataError):
    """One video or audio file cannot be used; the message is a single line that names it."""
