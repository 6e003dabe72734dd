"""Measurements of speed: `python -m benchmarks.NAME`, and `make bench`."""
