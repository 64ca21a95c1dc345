"""Launching `plamo2 pretrain` on other machines: one file per place. Each place can print what it would run.

`job.py` describes the run, `slices.py` the TPU slices, and `checks.py` checks requirements. This package does not import JAX.
"""
