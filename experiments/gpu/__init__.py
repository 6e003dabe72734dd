"""Everything that a machine with a CUDA GPU is asked, in stages, and what they say about the goals.

Import the modules directly; `python -m experiments gpu` runs all of it.
"""
