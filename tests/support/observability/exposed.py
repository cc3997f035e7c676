"""Scrapes parsed from Prometheus's text format, and metrics that all have a sample."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from app.errors import KeyDenied, StoreTimeout
from app.observability.metrics.registry import VaultMetrics
from app.rewrap.report import SweepReport
from app.tokens.census import Census, CensusRow
from app.tokens.events import Operation, TokenEvent
from app.tokens.models import Caller, TokenId

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"


@dataclass(frozen=True, slots=True)
class Exposed:
    """One scrape: each series with its value."""

    text: str
    series: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    def value(self, name: str, **labels: str) -> float:
        """Return the value of one series, 0 if it does not exist."""
        return self.series.get((name, frozenset(labels.items())), 0.0)

    def labelled(self, name: str) -> dict[frozenset[tuple[str, str]], float]:
        return {labels: value for (found, labels), value in self.series.items() if found == name}

    def increase(self, before: Exposed, name: str) -> dict[frozenset[tuple[str, str]], float]:
        """Return how much each series of this name has grown, without those that have not."""
        earlier = before.labelled(name)
        grown = {labels: value - earlier.get(labels, 0.0) for labels, value in self.labelled(name).items()}
        return {labels: by for labels, by in grown.items() if by}


def scraped(client: httpx.Client) -> Exposed:
    answer = client.get("/metrics", headers={"Authorization": ""})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return read(answer.text)


def read(text: str) -> Exposed:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    series = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(series) == len(samples), "a series occurs twice"
    return Exposed(text, series)


def used_metrics() -> VaultMetrics:
    """Return metrics that were all used once, so each has a sample with all its labels."""
    metrics = VaultMetrics(local_versions=[1])
    metrics.requests.began()
    metrics.requests.ended("/v1/encryption", "GET", 200, 0.01)
    metrics.requests.publish()
    metrics.operations.record(_event("success"))
    metrics.callers.record(_event("success"))
    metrics.callers.publish()
    metrics.sweeps.progressed(SweepReport(due=1, rewrapped=1))
    metrics.refreshes.refreshed("google", "success", 0.1)
    metrics.refreshes.answered("google", 0.1)
    metrics.refreshes.taken_over("google")
    metrics.refreshes.reauthentication_needed("google", outcome_lost=False)
    metrics.refreshes.unwritten("google", 1)
    metrics.refreshes.spooled(waiting=0, refused=0)
    metrics.refreshes.overdue("google", 0.0)
    metrics.encryption.kms_request("Decrypt", "success", 0.01)
    metrics.rows.show(Census.of([CensusRow("local:v1", (), 1)], primary_scheme="local:v1"))
    metrics.rows.counted_every(900)
    metrics.rows.legacy_formats(allowed=True)
    metrics.wire.opened()
    metrics.wire.publish()
    metrics.process.publish()
    metrics.state.readiness({"store": "up"})
    metrics.state.service_keys(1)
    metrics.state.data_keys(1)
    metrics.audit.audit_events(1)
    asyncio.run(_failing_store_call(metrics))
    return metrics


def _event(outcome: str) -> TokenEvent:
    return TokenEvent(
        operation=Operation.REVEAL,
        user_id=USER,
        token_id=TokenId(USER, "canvas"),
        scheme=None,
        encryption_method=None,
        outcome=outcome,
        detail=None if outcome == "success" else KeyDenied.code,
        caller=Caller("tests"),
    )


async def _failing_store_call(metrics: VaultMetrics) -> None:
    async def call() -> None:
        raise StoreTimeout("late")

    try:
        await metrics.store("get", call())
    except StoreTimeout:
        return
    raise AssertionError
