"""The PLaMo 2 network as functional Flax Linen modules."""
