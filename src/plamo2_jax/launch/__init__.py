"""Launching `plamo2 pretrain` on other machines: one file per place. Each place can print the script without running it.

`job.py` describes the run, `slices.py` the TPU slices, and `checks.py` checks requirements. This package does not import JAX.
"""
