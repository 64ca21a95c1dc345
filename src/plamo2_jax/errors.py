"""The base class of errors that this package raises for its users."""

from __future__ import annotations


class PlamoError(ValueError):
    """Input, an option or a file that is not allowed. The message is one sentence for the user: what is wrong, where, what is allowed.

    The command line prints it as one line. Every other exception is a defect of this package or of a library, and keeps its traceback.
    """
