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


def test_failover(cluster: Cluster, service: Service, record_property: Callable[[str, object], None]) -> None:
    """The primary is killed under load and its standby promoted, and later the other way round."""
    failure = BY_NAME["PostgreSQL fails over to its standby"]
    with service.client() as client, Load(service) as load:
        for direction in ("there", "and back"):
            kept = require_failing(client, load, failure, breaks=cluster.primary.kill)
            promoted_at = time.monotonic()
            cluster.standby.promote()
            load.wait_for_acknowledgements(1)
            seconds = time.monotonic() - promoted_at
            record_property(f"seconds from the promotion to the first success, {direction}", seconds)
            assert seconds < recovery_bound_seconds(failure)
            require_recovery(client, failure, kept)
            cluster.swap()
            load.wait_for_acknowledgements(8)
            cluster.standby.follow(cluster.primary)
    require_nothing_lost(load, service, cluster.primary)
    require_refusals(load, failure)
