"""The base class of errors that this package raises for its users."""

from __future__ import annotations


class PlamoError(ValueError):
    """An input, an option or a file is not allowed. The message is one sentence for the user: what is wrong, where, what is allowed.

    The command line prints the message as one line. Any other exception is a bug in this package or in a library and shows a traceback.
    """
