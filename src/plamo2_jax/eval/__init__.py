"""Measures of a model: held-out bits per byte."""
