"""Meshes of devices, and what of a model and a batch lies where on them."""
