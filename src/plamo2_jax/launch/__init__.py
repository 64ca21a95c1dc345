"""Starting `plamo2 pretrain` elsewhere: one file a place, each of which writes down what it would run before it runs it.

`job.py` is what is run, whatever the place; `slices.py` are the TPU slices; `checks.py` says what is missing. Nothing here imports jax.
"""
