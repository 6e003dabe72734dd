"""Sweeps on many machines: Hydra's launcher plugins start jobs that do a sweep's runs.

A command plans its runs and hands them to jobs, as many as the launcher does at one time; each job
claims one run after the other in the results folder, does it in a process of its own and stores it.
The command looks on, tells of what is stored, and launches again what is left.
"""
