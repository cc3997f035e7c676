"""Fixtures for every test."""

import pytest

# its assertions explain themselves like those of a test
pytest.register_assert_rewrite("tests.token_table")

pytest_plugins = ["tests.stack.fixtures", "tests.stack.kms_fixtures", "tests.tokens.fixtures", "tests.api.fixtures"]
