"""Fixtures for every test."""

from collections.abc import Iterator

import pytest
import structlog

# pytest explains its assertions as those of a test
pytest.register_assert_rewrite("tests.support.stores.table_inspection")

pytest_plugins = [
    "tests.support.stack.supabase_fixtures",
    "tests.support.stack.kms_fixtures",
    "tests.support.stores.stores",
    "tests.support.api.fixtures",
    "tests.support.process.fixtures",
]

# Files that take longest, longest first: begun last they would run alone, while the other processes have nothing left.
_LONGEST = (
    "tests/rewrap/test_kill.py",
    "tests/documents/test_key_rotation_runbook.py",
    "tests/api/test_kms.py",
    "tests/rewrap/test_sweep.py",
    "tests/system/test_canary.py",
    "tests/cli/test_rewrap.py",
    "tests/security/kms/test_failures.py",
    "tests/system/test_openapi_fuzz.py",
    "tests/system/test_races.py",
    "tests/api/test_store_failures.py",
    "tests/failures/test_postgres.py",
    "tests/api/test_histories.py",
    "tests/audit/test_under_load.py",
    "tests/api/test_abandonment.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the order is kept otherwise."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.location[0], len(places)))


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Undo what an application that a test builds in this process does to the log, which the next test may look at."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
