"""The base class of errors that this package raises for its users."""

from __future__ import annotations


class PlamoError(ValueError):
    """An input, an option or a file is not allowed. The message is one sentence for the user: the problem, its place, the allowed values
    and how to fix it.

    The command line prints the message as one line. Any other exception is a bug in this package or in a library and shows a traceback.
    """
