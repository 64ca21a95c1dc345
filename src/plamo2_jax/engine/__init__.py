"""Sampling and generation with the hybrid cache."""
