"""The error of this package."""


class ConvertError(ValueError):
    """A checkpoint cannot be read or written; the message names the file or tensor."""
