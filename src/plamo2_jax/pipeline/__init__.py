"""Several `plamo2` commands as a graph: what each reads and writes is fingerprinted, and only what is not done is run.

`stage.py` is what a pipeline file says, `graph.py` the order that follows from it, `files.py` fingerprints, `state.py` what is
remembered of stages, `plan.py` what is to run and why, `run.py` runs it. Nothing here imports jax or knows a verb.
"""
