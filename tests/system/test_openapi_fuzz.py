"""Requests generated from the OpenAPI document, valid and invalid, are answered as it says."""

from __future__ import annotations

import json
import re
import tomllib

import httpx
import pytest

from tests.support.api.service import Service
from tests.support.fuzz.run import fuzz
from tests.support.paths import ROOT
from tests.support.sizes import SOAK, size
from tests.support.stack.loopback import PLAIN_HTTP

EXAMPLES = size(4, 50)
SECONDS = 300


@pytest.mark.timeout(SECONDS + 20)
@pytest.mark.parametrize("served", ["sqlite", "supabase"] if SOAK else ["sqlite"], indirect=True)
def test_every_request_is_answered_as_documented(service: Service) -> None:
    """Every check of schemathesis for every operation, with healthy dependencies. `make fuzz` runs longer."""
    with service.logged() as lines:
        run = fuzz(service, examples=EXAMPLES, seconds=SECONDS, seed=20261124)
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr
    paths = httpx.get(f"{service.url}/openapi.json", trust_env=False, verify=PLAIN_HTTP).json()["paths"]
    operations = sum(len(operations) for operations in paths.values())
    assert f"Selected: {operations}/{operations}" in run.stdout, "no operation is left out"
    assert f"Tested: {operations}\n" in run.stdout
    assert [phase for phase in ("Examples", "Coverage", "Fuzzing", "Stateful") if f"✅ {phase}" in run.stdout] == [
        "Examples",
        "Coverage",
        "Fuzzing",
        "Stateful",
    ]
    generated = re.search(r"([0-9]+) generated, ([0-9]+) passed", run.stdout)
    assert generated
    assert int(generated[1]) > EXAMPLES * operations / 2
    assert not [line for line in lines if line["level"] in {"error", "critical"}], json.dumps(lines)[-2_000:]


def test_no_check_is_switched_off() -> None:
    settings = tomllib.loads((ROOT / "tests" / "support" / "fuzz" / "schemathesis.toml").read_text())
    assert {name for name, check in settings["checks"].items() if not check.get("enabled", True)} == set()
    (widened,) = settings["checks"].values()
    assert not {500, 502, 503, "5xx"} & set(widened["expected-statuses"])
