"""The selective scan (state-space duality) of PLaMo 2."""
