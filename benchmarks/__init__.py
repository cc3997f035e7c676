"""Measurements side by side: `python -m benchmarks` prints one table.

Servers are real processes on loopback, and the load comes from a separate process. Contestants run one after another
in each round. A ratio is the median over the rounds; absolute figures belong to the machine of the run.
"""
