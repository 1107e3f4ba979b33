"""Measurements, one command each: `python -m benchmarks.NAME --help`. The output is for people."""
