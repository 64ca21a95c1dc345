"""Checkpoints of the public PLaMo 2 layout, both ways."""
