"""Plan a run for a TPU slice that you do not have: compile its programs with libtpu on a CPU and read what the compiler reports.

`memory.py`, `collectives.py` and `roofline.py` read a compiled program; `schedule/` reads the schedules of Pallas kernels. Every figure is
the compiler's, not a measured time.
"""
