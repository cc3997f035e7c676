"""Marked secrets go everywhere, and are then looked for everywhere."""
