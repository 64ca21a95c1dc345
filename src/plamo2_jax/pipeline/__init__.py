"""Run several `plamo2` commands as a graph: the inputs and outputs of each are fingerprinted, and finished commands are skipped.

`stage.py` has the classes of a pipeline file, `graph.py` orders the stages, `files.py` fingerprints files, `state.py` stores the records of
stages, `plan.py` decides which stages run and why, and `run.py` runs them. Nothing here imports JAX or depends on the individual plamo2
commands.
"""
