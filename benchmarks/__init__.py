"""Measurements side by side: `python -m benchmarks` prints one table.

Servers are real processes on loopback, the load comes from a process of its own, and whatever is compared takes turns
within one run. A ratio is the median over the turns; absolute figures belong to the machine of the run.
"""
