"""Refreshing, revoking and exchanging tokens at their providers."""
