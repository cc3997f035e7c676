"""Fixtures for every test."""

from collections.abc import Iterator

import pytest
import structlog

import tests.support.process.shared_roots  # noqa: F401  each service that a test builds would derive its root anew

# pytest explains its assertions as those of a test
pytest.register_assert_rewrite("tests.support.stores.table_inspection")

pytest_plugins = [
    "tests.support.stack.supabase_fixtures",
    "tests.support.stack.kms_fixtures",
    "tests.support.oauth.fixtures",
    "tests.support.stores.stores",
    "tests.support.api.fixtures",
    "tests.support.process.fixtures",
]

# The slowest files, slowest first: a slow file that starts last would run alone.
_LONGEST = (
    "tests/api/test_kms.py",
    "tests/cli/test_rewrap.py",
    "tests/documents/test_key_rotation_runbook.py",
    "tests/system/test_canary.py",
    "tests/server/test_rolling_restart.py",
    "tests/rewrap/test_sweep.py",
    "tests/rewrap/test_kill.py",
    "tests/cli/test_encryption_status.py",
    "tests/cli/test_kms_setup.py",
    "tests/api/test_on_behalf_of.py",
    "tests/security/kms/test_failures.py",
    "tests/system/test_malicious_database.py",
    "tests/api/test_bad_input.py",
    "tests/observability/test_unread_output.py",
    "tests/failures/test_postgres.py",
    "tests/cli/test_doctor.py",
    "tests/server/test_hardening.py",
    "tests/server/test_metrics_listener.py",
    "tests/server/test_shutdown.py",
    "tests/failures/test_user_jwt_keys.py",
    "tests/observability/test_metrics.py",
    "tests/system/test_attack.py",
    "tests/system/test_races.py",
    "tests/audit/test_under_load.py",
    "tests/system/test_openapi_fuzz.py",
    "tests/cli/test_doctor_kms.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the order is kept otherwise."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Undo what an application that a test builds in this process does to the log, which the next test may look at."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
