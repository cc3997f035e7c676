"""Failures of PostgreSQL and PostgREST below a service under load."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.api.service import Service, running_service
from tests.support.failures.load import Load, path_of
from tests.support.failures.scenario import (
    require_documented_failure,
    require_failing,
    require_nothing_lost,
    require_recovery,
    require_refusals,
)
from tests.support.failures.table import BY_NAME
from tests.support.stack.postgres import running_postgres
from tests.support.stack.reaper import Reaper
from tests.support.stack.supabase import SupabaseStack, running_supabase
from tests.support.stores.stores import PostgresStore, SupabaseStore
from tests.support.waiting import eventually


@dataclass(frozen=True, slots=True)
class Project:
    """A Supabase project of this module alone, because its tests stop the server."""

    stack: SupabaseStack
    service: Service
    direct: Service  # without PostgREST

    def rows(self) -> list[dict[str, Any]]:
        """Return every row, through a new connection: the server's stop ends the old ones."""
        with self.stack.postgres.connect(self.stack.database.name) as database:
            return database.sql("select user_id::text as user_id, version, created_at from public.oauth_tokens")

    def restart(self) -> None:
        self.stack.postgres.stop()
        self.stack.postgres.start()

    def set_read_only(self, *, read_only: bool) -> None:
        """Refuse writes, as a standby does.

        PostgREST starts each transaction with READ WRITE, which overrides `default_transaction_read_only`, and then
        applies the role's settings, which override that.
        """
        setting = b"set transaction_read_only = on" if read_only else b"reset all"
        with self.stack.postgres.connect(self.stack.database.name) as database:
            database.connection.execute(b"alter role token_vault " + setting)
            database.sql("notify pgrst, 'reload config'")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, stack_reaper: Reaper) -> Iterator[Project]:
    folder, direct = (tmp_path_factory.mktemp("failures") for _ in range(2))
    with (
        running_postgres(reaper=stack_reaper, durable=True) as postgres,
        running_supabase(postgres=postgres, reaper=stack_reaper) as stack,
        running_service(folder, SupabaseStore(stack).environment()) as service,
        running_service(direct, PostgresStore(stack).environment()) as without_postgrest,
    ):
        yield Project(stack, service, without_postgrest)


@pytest.fixture(params=["supabase", "postgres"])
def service(project: Project, request: pytest.FixtureRequest) -> Service:
    return project.service if request.param == "supabase" else project.direct


def test_postgresql_stopped(project: Project, service: Service) -> None:
    postgres = project.stack.postgres
    require_documented_failure(
        "PostgreSQL stopped", service=service, store=project, breaks=postgres.stop, mends=postgres.start
    )


def test_postgresql_restarted(project: Project, service: Service) -> None:
    """A restart is too short to see readiness change; nothing is lost, and no vault has to be restarted."""
    failure = BY_NAME["PostgreSQL restarted"]
    with service.client() as client, Load(service) as load:
        load.wait_for_acknowledgements(20)
        project.restart()
        require_recovery(client, failure, load.acknowledged[0])
        load.wait_for_acknowledgements(8)
    require_nothing_lost(load, service, project)
    assert {(each.status, each.code, each.retryable) for each in load.refused} <= {
        (failure.status, failure.code, failure.retryable)
    }
    assert (load.cut, load.unexpected) == ([], [])


def test_postgresql_read_only(project: Project) -> None:
    require_documented_failure(
        "PostgreSQL read-only",
        service=project.service,
        store=project,
        breaks=lambda: project.set_read_only(read_only=True),
        mends=lambda: project.set_read_only(read_only=False),
    )


def test_default_transaction_read_only_changes_nothing(project: Project) -> None:
    """Supabase sets it when a disk is nearly full."""
    name = project.stack.database.name
    with project.stack.postgres.connect("postgres") as server, Load(project.service) as load:
        load.wait_for_acknowledgements(4)
        server.connection.execute(f"alter database {name} set default_transaction_read_only = on".encode())
        server.sql("select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,))
        eventually(lambda: server.sql("select pid from pg_stat_activity where datname = %s", (name,)) != [])
        load.wait_for_acknowledgements(8)
        server.connection.execute(f"alter database {name} reset default_transaction_read_only".encode())
    require_nothing_lost(load, project.service, project)


def test_postgrest_slow(project: Project) -> None:
    faults = project.stack.faults
    require_documented_failure(
        "PostgREST slow",
        service=project.service,
        store=project,
        breaks=lambda: faults.delay(before=6),
        mends=faults.clear,
    )


def test_postgrest_resets(project: Project) -> None:
    faults = project.stack.faults
    require_documented_failure(
        "PostgREST resets connections",
        service=project.service,
        store=project,
        breaks=lambda: faults.cut_before(resets=True),
        mends=faults.clear,
    )


def test_postgrest_answers_html(project: Project) -> None:
    faults = project.stack.faults
    require_documented_failure(
        "HTML page instead of PostgREST's answer",
        service=project.service,
        store=project,
        breaks=lambda: faults.answer(200),
        mends=faults.clear,
    )


def test_service_key_expires(project: Project, tmp_path: Path) -> None:
    """The failure ends with a new key only: `project.service` has one and keeps working."""
    failure = BY_NAME["Supabase's service key expires"]
    key = project.stack.new_service_key()
    settings = SupabaseStore(project.stack).environment() | {"SUPABASE_SERVICE_KEY": key}
    with running_service(tmp_path, settings) as service, service.client() as client, Load(service) as load:
        kept = require_failing(client, load, failure, breaks=lambda: project.stack.let_key_expire(key))
        log = "\n".join(service.lines())
    assert "SUPABASE_SERVICE_KEY" in log, "the log names the setting to change"
    assert key not in log
    require_refusals(load, failure)
    with project.service.client() as client:
        assert client.get("/readyz").status_code == 200
        assert client.put(path_of(kept), json={"access_token": "new"}).status_code == 200
    load.acknowledged.remove(kept)
    require_nothing_lost(load, project.service, project)
