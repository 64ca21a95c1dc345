"""Plan a run for a TPU slice that you do not have: compile its programs with libtpu on a CPU and read the compiler's figures.

`memory.py`, `collectives.py` and `roofline.py` read a compiled program. `schedule/` reads the schedules of Pallas kernels. No time is
measured.
"""
