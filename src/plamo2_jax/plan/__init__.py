"""What a program costs on a TPU that is not there: libtpu's compiler run on a CPU-only machine, and its output read.

Every figure here is the compiler's, not a measured time.
"""
