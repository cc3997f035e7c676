"""Rewrap: the sweep, rewrap on read, and background sweeps."""
