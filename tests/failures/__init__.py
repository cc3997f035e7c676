"""Failures of each dependency: what callers and operators see, and that no acknowledged write is lost."""
