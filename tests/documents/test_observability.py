"""docs/observability.md agrees with the metrics, log events and alerts of the service."""

from __future__ import annotations

import re

from app.observability.log_fields import REQUEST_FIELDS
from app.observability.metrics.labels import PROVIDERS
from app.observability.tracing import ALLOWED_ATTRIBUTES
from tests.support.observability.exposed import used_metrics
from tests.support.paths import ROOT

DOCUMENT = (ROOT / "docs" / "observability.md").read_text()


def _rows(heading: str) -> list[list[str]]:
    table = DOCUMENT.partition(f"\n{heading}\n")[2].partition("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def _codes(cell: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"^```(?:.|\n)*?^```$", "", cell, flags=re.MULTILINE)))


def test_the_table_names_exactly_the_metrics_with_type_and_labels() -> None:
    documented = {}
    for name, kind, named, meaning in _rows("| metric | type | labels | meaning, and when to worry |"):
        documented[name.strip("`")] = (kind, _codes(named))
        assert meaning.endswith("."), name
    real = {}
    for metric in used_metrics().registry.collect():
        assert metric.samples, f"{metric.name} was never used, so its labels are not known"
        labels = {label for sample in metric.samples for label in sample.labels} - {"le"}
        real[metric.name + ("_total" if metric.type == "counter" else "")] = (metric.type, labels)
    assert documented == real


def test_the_providers_of_the_labels_are_named() -> None:
    assert _codes(DOCUMENT) >= PROVIDERS


def test_the_table_names_exactly_the_fields_of_a_requests_line() -> None:
    assert set().union(*(_codes(row[0]) for row in _rows("| field | holds |"))) == REQUEST_FIELDS


def test_the_attributes_of_spans_are_named() -> None:
    documented = DOCUMENT.partition("attributes and no others:")[2].partition(". An error")[0]
    assert _codes(documented) == ALLOWED_ATTRIBUTES


def test_every_event_of_the_log_is_named() -> None:
    app = ROOT / "app"
    written = {
        event
        for path in app.rglob("*.py")
        for event in re.findall(r"_?log\.(?:info|warning|error|critical)\(\s*\"(\w+)\"", path.read_text())
    }
    assert {"started", "kms_breaker"} <= written
    assert written - _codes(DOCUMENT) == set()
