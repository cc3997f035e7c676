"""Failures of a PostgreSQL cluster below a service under load, through DATABASE_URL with two hosts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.api.fixtures import problem
from tests.support.api.service import Service, running_service
from tests.support.failures.load import Load, path_of
from tests.support.failures.scenario import (
    recovery_bound_seconds,
    require_failing,
    require_nothing_lost,
    require_recovery,
    require_refusals,
)
from tests.support.failures.table import BY_NAME
from tests.support.stack.cluster import Cluster, running_cluster
from tests.support.stack.reaper import Reaper
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def cluster(stack_reaper: Reaper) -> Iterator[Cluster]:
    """A cluster of this module alone, because its tests kill the servers."""
    with running_cluster(stack_reaper) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def service(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("failover"), cluster.environment()) as service:
        yield service


def test_only_a_replica(cluster: Cluster, tmp_path: Path) -> None:
    """DATABASE_URL names the standby alone, which holds every token but may be behind."""
    failure = BY_NAME["DATABASE_URL leads to a replica only"]
    assert failure.status is not None
    assert failure.code is not None
    with running_service(tmp_path, cluster.environment(cluster.standby)) as service, service.client() as client:
        for answer in (
            client.get(path_of(str(uuid4()))),
            client.put(path_of(str(uuid4())), json={"access_token": "x"}),
        ):
            problem(answer, failure.status, failure.code)
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["store"]) == (503, "down")
        assert "it is a replica" in "\n".join(service.lines()), "the log names the cause"


def test_standby_gone(cluster: Cluster, service: Service) -> None:
    """Commits wait for the synchronous standby, and an answer does not wait longer than its deadline."""
    failure = BY_NAME["PostgreSQL's only synchronous standby is gone"]
    assert failure.status is not None
    assert failure.code is not None
    kept, lost = str(uuid4()), str(uuid4())
    with service.client() as client:
        assert client.put(path_of(kept), json={"access_token": "kept"}).status_code == 201
        with cluster.standby.paused():
            problem(client.put(path_of(lost), json={"access_token": "lost"}), failure.status, failure.code)
            assert client.get(path_of(kept)).json()["access_token"] == "kept"
            assert client.get("/readyz").status_code == 200
        eventually(lambda: client.put(path_of(kept), json={"access_token": "new"}).is_success)


def test_read_only(cluster: Cluster, tmp_path: Path) -> None:
    """Supabase sets it when a disk is nearly full: with target_session_attrs=primary a primary continues to reveal."""
    failure = BY_NAME["PostgreSQL read-only, target_session_attrs=primary"]
    assert failure.status is not None
    assert failure.code is not None
    environment = cluster.environment()
    environment["DATABASE_URL"] = environment["DATABASE_URL"].replace("read-write", "primary")
    path = path_of(str(uuid4()))
    with running_service(tmp_path, environment) as service, service.client() as client:
        assert client.put(path, json={"access_token": "kept"}).status_code == 201
        with cluster.primary.read_only():
            eventually(lambda: client.put(path, json={"access_token": "refused"}).status_code == failure.status)
            problem(client.put(path, json={"access_token": "refused"}), failure.status, failure.code)
            assert client.get(path).json()["access_token"] == "kept"
            eventually(lambda: client.get("/readyz").json()["checks"]["store"] == "degraded")
            assert client.get("/readyz").status_code == 200
        eventually(lambda: client.put(path, json={"access_token": "new"}).is_success)


def test_failover(cluster: Cluster, service: Service, record_testsuite_property: Callable[[str, object], None]) -> None:
    """The primary is killed under load and its standby promoted, and later the other way round."""
    failure = BY_NAME["PostgreSQL fails over to its standby"]
    with service.client() as client, Load(service) as load:
        for direction in ("there", "and back"):
            kept = require_failing(client, load, failure, breaks=cluster.primary.kill)
            promoted_at = time.monotonic()
            cluster.standby.promote()
            load.wait_for_acknowledgements(1)
            seconds = time.monotonic() - promoted_at
            record_testsuite_property(f"seconds from the promotion to the first success, {direction}", seconds)
            assert seconds < recovery_bound_seconds(failure)
            require_recovery(client, failure, kept)
            cluster.swap()
            load.wait_for_acknowledgements(8)
            cluster.standby.follow(cluster.primary)
    require_nothing_lost(load, service, cluster.primary)
    require_refusals(load, failure)
