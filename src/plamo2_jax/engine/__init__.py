"""Inference: prefill, sampling, continuous batching and generation."""
