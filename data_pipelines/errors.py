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

    The message is a single line that names the file or flag and the remedy, so that a binary can
    print it as it is, without a traceback.
    """


class MediaError(DataError):
    """One video or audio file cannot be used; the message is a single line that names it."""
