"""Reading and writing checkpoints in the public PLaMo 2 layout."""
