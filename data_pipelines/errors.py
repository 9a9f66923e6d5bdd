"""The errors that every data problem a user can mend is reported with."""

import lzma
import zipfile
import zlib

# In turn: no archive, or a wrong checksum; content that ends early; damaged deflate; damaged LZMA;
# damaged bzip2, or a position before the file; another archive by now; a damaged name; encryption,
# or (NotImplementedError) packing or a version that Python does not know.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    OSError,
    KeyError,
    UnicodeDecodeError,
    RuntimeError,
)
"""What Python raises on reading a damaged or foreign zip archive."""


class DataError(ValueError):
    """Raw or prepared data cannot be used.

    The message is a single line that names the file or argument and the remedy, so that a binary
    can print it without a traceback, see `with_flag`.

    Attributes:
      argument: of the function that was called, where another value of it is a remedy, and binaries
        have a flag of the same name. The message begins with it. None elsewhere.
    """

    def __init__(self, message: str, argument: str | None = None) -> None:
        super().__init__(message)
        self.argument = argument


def with_flag(error: Exception) -> str:
    """Returns the message of an error in the words of a command line: arguments become flags.

    Args:
      error: any; only those of `DataError` name arguments.

    Returns:
      The message: "num_workers=0: choose at least 1" with "--" in front.
    """
    is_of_argument = isinstance(error, DataError) and error.argument is not None
    return f"--{error}" if is_of_argument else str(error)


class MediaError(DataError):
    """One video or audio file cannot be used; the message is a single line that names it."""
