"""Models out of models: growing, pruning, merging."""
