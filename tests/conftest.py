"""Fixtures for every test."""

pytest_plugins = ["tests.stack.fixtures", "tests.tokens.fixtures", "tests.api.fixtures"]
