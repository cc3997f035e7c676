"""Fixtures for the audit trail of whole processes."""

from tests.process.conftest import serve

__all__ = ["serve"]
