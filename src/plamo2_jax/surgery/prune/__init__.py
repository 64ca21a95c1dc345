"""Pruning a model: ranking channels and layers, masking them and cutting them out."""
