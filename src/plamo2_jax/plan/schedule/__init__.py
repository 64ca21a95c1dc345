"""Read the VLIW schedules that libtpu writes: a tool for the authors of Pallas TPU kernels.

`plamo2 plan kernel ssd` prints the result; the plan of a whole run takes the cycles of its kernels from here.
"""
