"""Whatever a database does between two calls, each secret is revealed where it was stored or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from app.stores.sqlite.database import prepare_database
from tests.support.malicious_database import MaliciousDatabase, encryption_services
from tests.support.sizes import size


def _run(folder: Path, *, legacy: bool, examples: int, forgets: str | None = None) -> None:
    path = folder / "vault.db"
    prepare_database(path)
    names = {"path": path, "legacy": legacy, "services": encryption_services(legacy=legacy, forgets=forgets)}
    planted = forgets is not None
    run_state_machine_as_test(
        type("ThisDatabase", (MaliciousDatabase,), names),
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            database=None,
            print_blob=False,
            report_multiple_bugs=False,
            derandomize=planted,  # the planted bug is found in each run or in none
            phases=[Phase.generate] if planted else [Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_no_secret_is_revealed_elsewhere_without_old_formats(tmp_path: Path) -> None:
    _run(tmp_path, legacy=False, examples=size(6, 400))


def test_with_old_formats_only_old_secrets_move_within_their_user(tmp_path: Path) -> None:
    _run(tmp_path, legacy=True, examples=size(6, 400))


@pytest.mark.parametrize("member", ["user_id", "provider", "service_type", "field", "base_url"])
def test_a_context_that_lacks_one_member_is_found(tmp_path: Path, member: str) -> None:
    """The bug is planted: a ciphertext that is not bound to this member."""
    with pytest.raises(AssertionError, match=r"a secret is revealed elsewhere|a new secret follows an edited URL"):
        _run(tmp_path, legacy=False, examples=50, forgets=member)
