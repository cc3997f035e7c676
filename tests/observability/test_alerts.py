"""Alert rules and dashboard use existing metrics; `make check-alerts` checks more of the rules."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from tests.support.observability.exposed import used_metrics
from tests.support.paths import ROOT

RULES = ROOT / "deploy" / "prometheus" / "token-vault.rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "token-vault.json"
DOCUMENT = ROOT / "docs" / "observability.md"
_FUNCTIONS = {"absent", "max_over_time", "rate", "increase", "sum", "max", "min", "histogram_quantile", "time"}
_WORDS = {"by"}
_OF_EVERY_TARGET = {"job", "instance"}

_alerts: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
]
_panels: list[dict[str, Any]] = [one for one in json.loads(DASHBOARD.read_text())["panels"] if one["type"] != "row"]
_expressions = [
    *(pytest.param(rule["expr"], id=rule["alert"]) for rule in _alerts),
    *(pytest.param(target["expr"], id=panel["title"]) for panel in _panels for target in panel["targets"]),
]


@pytest.fixture(scope="module")
def labels() -> dict[str, set[str]]:
    """The labels of each series of a scrape, by name."""
    found: dict[str, set[str]] = {}
    for metric in used_metrics().registry.collect():
        for sample in metric.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found | {"up": set()}


def _without_strings(expression: str) -> str:
    return re.sub(r'"[^"]*"', '""', expression)


@pytest.mark.parametrize("expression", _expressions)
def test_an_expression_uses_existing_metrics_and_labels(expression: str, labels: dict[str, set[str]]) -> None:
    bare = _without_strings(expression)
    named = set(re.findall(r"\b(?:token_vault_\w+|process_\w+|up(?=\{))", bare))
    assert named
    assert named <= labels.keys()
    for metric, matchers in re.findall(r"\b(\w+)\{([^}]*)\}", bare):
        asked = set(re.findall(r"(\w+)\s*[=!]", matchers))
        assert "job" in asked, "other services have the metric `up` too"
        assert asked <= labels[metric] | _OF_EVERY_TARGET, metric
    kept = {label for group in re.findall(r"\bby \(([^)]*)\)", bare) for label in re.findall(r"\w+", group)}
    assert kept <= set.union(_OF_EVERY_TARGET, *(labels[name] for name in named))


@pytest.mark.parametrize("expression", _expressions)
def test_an_expression_is_balanced_and_calls_existing_functions(expression: str) -> None:
    bare = _without_strings(expression)
    open_brackets: list[str] = []
    for character in bare:
        if character in "([{":
            open_brackets.append(character)
        elif character in ")]}":
            assert open_brackets, expression
            assert open_brackets.pop() + character in {"()", "[]", "{}"}, expression
    assert open_brackets == []
    assert set(re.findall(r"\b([a-z_]+)\s*\(", bare)) <= _FUNCTIONS | _WORDS
    for counted in re.findall(r"\b(token_vault_\w+(?:_total|_bucket))\b\{[^}]*\}(\[)?", bare):
        assert counted[1], f"{counted[0]} is a counter: it takes rate or increase over a time"


def test_each_alert_has_a_severity_a_summary_and_a_section_in_the_docs() -> None:
    headings = re.findall(r"^### (\w+)$", DOCUMENT.read_text(), re.MULTILINE)
    assert len({rule["alert"] for rule in _alerts}) == len(_alerts)
    for rule in _alerts:
        assert rule["labels"] == {"severity": rule["labels"]["severity"]}
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"].keys() == {"summary", "description"}
        assert f"docs/observability.md#{rule['alert'].lower()}" in rule["annotations"]["description"]
        used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        kept = set(re.findall(r"\bby \(([^)]*)\)", rule["expr"])) or {"instance"}
        assert used <= kept, "a label that the expression drops would be empty"
    assert headings == [rule["alert"] for rule in _alerts], "the document has each, in the rules' order"


@pytest.mark.parametrize(
    "metric",
    [
        "decryption_failures_total",
        "kms_throttles_total",
        "kms_breaker_state",
        "fallback_writes_total",
        "audit_failures_total",
        "request_duration_seconds_bucket",
        "ready",
        "requests_total",
        "refused_total",
        "store_errors_total",
        "users_revealed",
        "denials_total",
        "refreshes_total",
        "refreshes_unwritten",
        "refresh_spool_files",
        "refresh_takeovers_total",
        "refresh_overdue_seconds",
        "needs_reauth_total",
    ],
)
def test_each_important_metric_has_an_alert(metric: str) -> None:
    assert [rule["alert"] for rule in _alerts if re.search(rf"\btoken_vault_{metric}\b", rule["expr"])]


def test_the_dashboard_shows_every_metric(labels: dict[str, set[str]]) -> None:
    shown = " ".join(target["expr"] for panel in _panels for target in panel["targets"])
    families = {re.sub(r"_(?:bucket|sum|count)$", "", name) for name in labels if name != "up"}
    assert [name for name in families if not re.search(rf"\b{name}(?:_bucket)?\b", shown)] == []


def test_dashboard_panels_are_described_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["type"] == "row" or panel["description"], panel["title"]
