"""The error class of the conversion."""


class ConvertError(ValueError):
    """A checkpoint cannot be read or written; the message names the file or tensor."""
