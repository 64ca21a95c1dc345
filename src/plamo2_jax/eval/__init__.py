"""Evaluation: held-out bits per byte, benchmark tasks, and comparisons."""
