"""Timings, side by side with peers where there are any; each module is run as `python -m benchmarks.NAME`."""
