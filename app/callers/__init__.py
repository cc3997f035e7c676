"""Calling services: their keys and their rate limits."""
