"""The failure table: for each failure the answer to callers, the answer of `/readyz`, how it ends, and its tests.

`docs/failures.md` holds the same table. The tests in tests/failures take their expectations from it; a line that
another test already proves names that test.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from functools import cache
from typing import Final

from app.api.problems import STATUS
from tests.support.paths import ROOT

ERRORS: Final = {error.code: error for error in STATUS}
_STORES: Final = "tests/api/test_store_failures.py"
_KMS: Final = "tests/api/test_kms.py"
_KMS_ERRORS: Final = "tests/security/kms/test_failures.py"
_SQLITE: Final = "tests/failures/test_sqlite.py"
_POSTGRES: Final = "tests/failures/test_postgres.py"
_FAILOVER: Final = "tests/failures/test_failover.py"
_CLUSTER: Final = "tests/stores/test_postgres_cluster.py"
_KEY_STATES: Final = "tests/failures/test_kms_states.py"
_AUDIT: Final = "tests/audit/test_under_load.py"
_USER_JWTS: Final = "tests/failures/test_user_jwt_keys.py"
_REFRESH: Final = "tests/api/test_refresh.py"
_PROCESS: Final = "tests/failures/test_process.py"
_DURABILITY: Final = "tests/system/test_durability.py::test_every_acknowledged_write_survives_kill_9"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One line of the table.

    `code` is the error code of the calls in `affects`; `None` if they are answered as usual.
    `check` is the check of `/readyz` that goes down, which makes its answer 503, or only `degraded`, which leaves the
    replica ready; `None` if no check notices.
    `recovers_within_seconds` counts from the end of the failure, without a restart, on a machine that is not
    overloaded; `None` if `ends_with` says what is needed.
    `runs` is false if no process is left to answer.
    """

    name: str
    code: str | None
    affects: str
    check: str | None
    degraded: bool = False
    recovers_within_seconds: int | None
    ends_with: str = ""
    runs: bool = True
    tests: tuple[str, ...]

    @property
    def status(self) -> int | None:
        return None if self.code is None else STATUS[ERRORS[self.code]]

    @property
    def writes_are_checked(self) -> bool:
        """Whether a test of this line stores tokens during the failure, and finds each acknowledged one afterwards."""
        return any(test in _tests_that_check_writes() for test in self.tests)

    @property
    def retryable(self) -> bool:
        return self.code is not None and ERRORS[self.code].retryable


TABLE: Final = (
    # PostgreSQL
    Failure(
        name="PostgreSQL stopped",
        code="store_unavailable",
        affects="every call",
        check="store",
        recovers_within_seconds=35,
        tests=(f"{_POSTGRES}::test_postgresql_stopped",),
    ),
    Failure(
        name="PostgreSQL restarted",
        code="store_unavailable",
        affects="calls during the restart",
        check="store",
        recovers_within_seconds=35,
        tests=(f"{_POSTGRES}::test_postgresql_restarted",),
    ),
    Failure(
        name="PostgreSQL read-only",
        code="store_unavailable",
        affects="writes",
        check=None,
        recovers_within_seconds=5,
        tests=(
            f"{_POSTGRES}::test_postgresql_read_only",
            f"{_POSTGRES}::test_default_transaction_read_only_changes_nothing",
        ),
    ),
    Failure(
        name="PostgreSQL fails over to its standby",
        code="store_unavailable",
        affects="every call until the promotion",
        check="store",
        recovers_within_seconds=5,
        tests=(f"{_FAILOVER}::test_failover",),
    ),
    Failure(
        name="PostgreSQL's only synchronous standby is gone",
        code="store_timeout",
        affects="writes, within 5 s",
        check=None,
        recovers_within_seconds=5,
        tests=(f"{_FAILOVER}::test_standby_gone", f"{_CLUSTER}::test_writes_that_time_out_leave_no_session_behind"),
    ),
    Failure(
        name="PostgreSQL read-only, target_session_attrs=primary",
        code="store_unavailable",
        affects="writes",
        check="store",
        degraded=True,
        recovers_within_seconds=5,
        tests=(f"{_FAILOVER}::test_read_only",),
    ),
    Failure(
        name="DATABASE_URL leads to a replica only",
        code="store_unavailable",
        affects="every call",
        check="store",
        recovers_within_seconds=None,
        ends_with="the replica's promotion, or a URL with the primary and a restart",
        tests=(
            f"{_FAILOVER}::test_only_a_replica",
            f"{_CLUSTER}::test_a_standby_that_was_promoted_behind_a_pooler_is_used",
        ),
    ),
    Failure(
        name="A pooler leads to a replica",
        code="store_unavailable",
        affects="calls through it, until another host of DATABASE_URL is the primary",
        check="store",
        recovers_within_seconds=5,
        tests=(f"{_CLUSTER}::test_a_pooler_that_now_leads_to_a_replica_is_left",),
    ),
    Failure(
        name="PostgreSQL's statement time-out",
        code="store_timeout",
        affects="calls that take too long",
        check=None,
        recovers_within_seconds=1,
        tests=(
            f"{_STORES}::test_a_statement_time_out_is_504",
            "tests/stores/test_postgres.py::test_a_statement_that_the_server_ends_is_a_time_out",
        ),
    ),
    Failure(
        name="A column dropped or not migrated",
        code="store_misconfigured",
        affects="every call but deletions",
        check="store",
        recovers_within_seconds=5,
        tests=(f"{_STORES}::test_a_missing_column_is_misconfigured_and_named_in_the_log",),
    ),
    # PostgREST
    Failure(
        name="Supabase refuses connections",
        code="store_unavailable",
        affects="every call",
        check="store",
        recovers_within_seconds=5,
        tests=(f"{_STORES}::test_a_store_that_is_down_is_503_until_it_is_back",),
    ),
    Failure(
        name="PostgREST stopped",
        code="store_unavailable",
        affects="every call",
        check="store",
        recovers_within_seconds=5,
        tests=(f"{_STORES}::test_postgrest_stopped_is_503",),
    ),
    Failure(
        name="PostgREST slow",
        code="store_timeout",
        affects="every call, within 5 s",
        check="store",
        recovers_within_seconds=5,
        tests=(
            f"{_STORES}::test_a_slow_store_is_504",
            f"{_POSTGRES}::test_postgrest_slow",
        ),
    ),
    Failure(
        name="PostgREST resets connections",
        code="store_unavailable",
        affects="reads, and writes that did not reach it",
        check="store",
        recovers_within_seconds=5,
        tests=(
            f"{_POSTGRES}::test_postgrest_resets",
            f"{_STORES}::test_a_write_whose_answer_is_lost_is_read_back",
            f"{_STORES}::test_a_write_whose_outcome_stays_unknown_is_503",
            f"{_STORES}::test_a_write_that_never_reaches_the_store_is_503",
        ),
    ),
    Failure(
        name="HTML page instead of PostgREST's answer",
        code="store_unavailable",
        affects="every call",
        check="store",
        recovers_within_seconds=5,
        tests=(
            f"{_POSTGRES}::test_postgrest_answers_html",
            f"{_STORES}::test_an_answer_of_a_gateway_is_503",
        ),
    ),
    Failure(
        name="Supabase's service key wrong, or expired at the start",
        code="store_misconfigured",
        affects="every call",
        check="store",
        recovers_within_seconds=None,
        ends_with="a new key and a restart",
        tests=(f"{_STORES}::test_a_service_with_a_wrong_key_is_not_ready",),
    ),
    Failure(
        name="Supabase's service key expires",
        code="store_misconfigured",
        affects="every call, from 30 s after its expiry",
        check="store",
        recovers_within_seconds=None,
        ends_with="a new key and a restart",
        tests=(f"{_POSTGRES}::test_service_key_expires",),
    ),
    # SQLite
    Failure(
        name="SQLite's disk full",
        code="store_unavailable",
        affects="writes",
        check="store",
        degraded=True,
        recovers_within_seconds=5,
        tests=(f"{_SQLITE}::test_disk_full", f"{_SQLITE}::test_file_size_limit"),
    ),
    Failure(
        name="SQLite's file marked read-only",
        code="store_misconfigured",
        affects="writes",
        check=None,
        recovers_within_seconds=None,
        ends_with="a writable file and a restart",
        tests=(f"{_SQLITE}::test_read_only",),
    ),
    Failure(
        name="SQLite's file system read-only at the start",
        code=None,
        affects="the start: exit code 2 and one line that names SQLITE_PATH",
        check=None,
        recovers_within_seconds=None,
        ends_with="a writable file system and a start",
        runs=False,
        tests=(f"{_SQLITE}::test_read_only_file_system",),
    ),
    Failure(
        name="SQLite's file locked by another process",
        code="store_timeout",
        affects="writes",
        check=None,
        recovers_within_seconds=5,
        tests=(f"{_SQLITE}::test_locked",),
    ),
    Failure(
        name="SQLite's file moved or replaced",
        code="store_misconfigured",
        affects="writes",
        check="store",
        recovers_within_seconds=5,
        tests=(f"{_SQLITE}::test_moved", f"{_SQLITE}::test_moved_without_its_wal"),
    ),
    # KMS as the primary, without a fallback; users whose data key is cached are not affected
    Failure(
        name="KMS throttles",
        code="key_unavailable",
        affects="calls that need KMS",
        check="kms",
        degraded=True,
        recovers_within_seconds=10,
        tests=(
            f"{_KEY_STATES}::test_kms_throttles",
            f"{_KMS_ERRORS}::test_a_transient_error_is_retryable_and_tried_twice",
        ),
    ),
    Failure(
        name="KMS down",
        code="key_unavailable",
        affects="calls that need KMS",
        check="kms",
        degraded=True,
        recovers_within_seconds=30,
        tests=(f"{_KMS}::test_an_outage_refuses_writes_and_serves_cached_users",),
    ),
    Failure(
        name="KMS slow",
        code="key_unavailable",
        affects="calls that need KMS, within 4 s",
        check="kms",
        degraded=True,
        recovers_within_seconds=10,
        tests=(
            f"{_KEY_STATES}::test_kms_slow",
            f"{_KMS}::test_a_hung_kms_is_answered_for_within_a_deadline",
            f"{_KMS}::test_readiness_tolerates_an_outage_of_kms_and_no_denial",
        ),
    ),
    Failure(
        name="HTML page instead of KMS's answer",
        code="key_unavailable",
        affects="calls that need KMS",
        check="kms",
        degraded=True,
        recovers_within_seconds=10,
        tests=(
            f"{_KEY_STATES}::test_kms_answers_html",
            f"{_KMS_ERRORS}::test_a_page_that_is_not_from_kms_is_an_outage",
        ),
    ),
    Failure(
        name="KMS denies",
        code="key_denied",
        affects="calls that need KMS",
        check="kms",
        recovers_within_seconds=10,
        tests=(f"{_KEY_STATES}::test_kms_denies", f"{_KMS}::test_a_denial_is_no_reason_to_fall_back"),
    ),
    Failure(
        name="KMS key disabled",
        code="key_denied",
        affects="calls that need KMS",
        check="kms",
        recovers_within_seconds=10,
        tests=(f"{_KEY_STATES}::test_key_disabled", f"{_KMS}::test_an_expired_data_key_is_decrypted_again"),
    ),
    Failure(
        name="KMS key pending deletion",
        code="key_denied",
        affects="calls that need KMS",
        check="kms",
        recovers_within_seconds=10,
        tests=(f"{_KEY_STATES}::test_key_pending_deletion",),
    ),
    Failure(
        name="KMS key not found",
        code="key_denied",
        affects="calls that need KMS",
        check="kms",
        recovers_within_seconds=10,
        tests=(f"{_KEY_STATES}::test_key_not_found",),
    ),
    Failure(
        name="Clock skew: AWS refuses the signature",
        code="key_denied",
        affects="calls that need KMS",
        check="kms",
        recovers_within_seconds=10,
        tests=(
            f"{_KEY_STATES}::test_signature_with_a_wrong_clock",
            f"{_KMS_ERRORS}::test_a_permanent_error_is_not_retryable_and_tried_once",
        ),
    ),
    # the audit trail
    Failure(
        name="Audit trail's disk full",
        code="audit_unavailable",
        affects="calls on tokens, unless refused for another reason",
        check="audit",
        recovers_within_seconds=5,
        tests=(f"{_AUDIT}::test_a_full_disk_refuses_every_secret_until_it_has_space",),
    ),
    Failure(
        name="Audit trail's disk slow or hanging",
        code="audit_unavailable",
        affects="calls on tokens, within 2.5 s and then at once",
        check="audit",
        recovers_within_seconds=5,
        tests=(
            "tests/failures/test_audit.py::test_audit_disk_hangs",
            f"{_AUDIT}::test_a_disk_that_hangs_delays_few_calls_and_only_on_tokens",
        ),
    ),
    # the process and its files
    Failure(
        name="Service key expires",
        code="unauthenticated",
        affects="calls with that key",
        check=None,
        recovers_within_seconds=2,
        tests=(f"{_PROCESS}::test_a_service_key_expires_without_leeway",),
    ),
    Failure(
        name="Service keys file invalid or missing",
        code="unauthenticated",
        affects="calls with a key of the file",
        check="service_keys",
        recovers_within_seconds=5,
        tests=(
            f"{_PROCESS}::test_service_keys_file_invalid",
            "tests/api/test_authentication.py::test_a_revoked_key_stops_and_a_new_one_works_without_a_restart",
        ),
    ),
    Failure(
        name="Issuer's key set unreachable since the start",
        code="key_unavailable",
        affects="calls on behalf of a user",
        check="user_jwt_keys",
        degraded=True,
        recovers_within_seconds=15,
        tests=(f"{_USER_JWTS}::test_key_set_unreachable_since_the_start",),
    ),
    Failure(
        name="Issuer's key set unreachable later",
        code="key_unavailable",
        affects="calls on behalf of a user under a new key of the issuer; after an hour all of them",
        check="user_jwt_keys",
        degraded=True,
        recovers_within_seconds=15,
        tests=(
            f"{_USER_JWTS}::test_key_set_unreachable_later",
            "tests/callers/test_jwks.py::test_keys_outlive_an_outage_for_an_hour_and_no_longer",
        ),
    ),
    # OAuth providers
    Failure(
        name="OAuth provider down",
        code="provider_unavailable",
        affects="reveals of its expired tokens",
        check="providers",
        degraded=True,
        recovers_within_seconds=None,
        ends_with="the next refresh that it answers, at the latest five minutes later",
        tests=(f"{_REFRESH}::test_an_outage_of_a_provider_leaves_the_replica_ready",),
    ),
    Failure(
        name="List of OAuth providers invalid or missing",
        code=None,
        affects="nothing, because the last valid list stays in use",
        check="providers",
        degraded=True,
        recovers_within_seconds=5,
        tests=(f"{_REFRESH}::test_an_invalid_list_of_providers_is_degraded",),
    ),
    Failure(
        name="Log's disk full",
        code=None,
        affects="log lines, which are lost",
        check=None,
        recovers_within_seconds=1,
        tests=(f"{_PROCESS}::test_log_disk_full",),
    ),
    Failure(
        name="SIGTERM under load",
        code=None,
        affects="new connections, which are refused",
        check=None,
        recovers_within_seconds=None,
        ends_with="exit code 0 within 20 s",
        runs=False,
        tests=("tests/server/test_shutdown.py::test_sigterm_under_load",),
    ),
    Failure(
        name="kill -9 under load",
        code=None,
        affects="connections, which are cut",
        check=None,
        recovers_within_seconds=None,
        ends_with="a restart",
        runs=False,
        tests=(_DURABILITY,),
    ),
)
BY_NAME: Final = {failure.name: failure for failure in TABLE}

_CHECKS_OF_WRITES: Final = ("require_documented_failure", "require_documented_state", "require_nothing_lost")


@cache
def _tests_that_check_writes() -> frozenset[str]:
    """Return the tests whose source calls one of the functions that check writes."""
    return frozenset({_DURABILITY}) | frozenset(
        f"{file.relative_to(ROOT)}::{function.name}"
        for file in (ROOT / "tests" / "failures").glob("test_*.py")
        for function in ast.walk(ast.parse(file.read_text()))
        if isinstance(function, ast.FunctionDef) and function.name.startswith("test_")
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in _CHECKS_OF_WRITES
    )


HEADING: Final = (
    "| failure | answer | affects | retryable, `Retry-After` | `/readyz` | recovers | writes checked | tests |"
)


def render() -> str:
    """Return the table as `docs/failures.md` holds it."""
    lines = [HEADING, "|---|---|---|---|---|---|---|---|", *(_line(failure) for failure in TABLE)]
    return "\n".join(lines) + "\n"


def _line(failure: Failure) -> str:
    answer = "as usual" if failure.code is None else f"{failure.status} `{failure.code}`"
    ready = "200" if failure.check is None else f"503, `{failure.check}` down"
    ready = f"200, `{failure.check}` degraded" if failure.degraded else ready
    ready = ready if failure.runs else "no answer"
    within = failure.recovers_within_seconds
    cells = (
        failure.name,
        answer,
        failure.affects,
        "yes" if failure.retryable else "no",
        ready,
        failure.ends_with if within is None else f"within {within} s",
        "yes" if failure.writes_are_checked else "no",
        ", ".join(f"`{test.rpartition('::')[2]}`" for test in failure.tests),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.stdout.write(render())
