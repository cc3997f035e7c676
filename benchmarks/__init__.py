"""Measurements side by side: `python -m benchmarks` prints one table.

Servers are real processes on loopback, and the load comes from a separate process. Contestants take turns. A ratio
is the median over the turns; absolute figures belong to the machine of the run.
"""
