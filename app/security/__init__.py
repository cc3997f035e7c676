"""Encryption: contexts, strategies, formats, keys, and key derivation."""
