"""The error class of the conversion."""

from plamo2_jax.errors import PlamoError


class ConvertError(PlamoError):
    """A checkpoint cannot be read or written; the message names the file or tensor."""
