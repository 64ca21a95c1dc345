"""Merging of models with the same shape."""
