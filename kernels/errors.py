"""The error of an implementation that cannot run."""


class ImplementationError(ValueError):
    """A named implementation of a kernel cannot run here, or cannot run with these shapes, dtypes or block sizes."""
