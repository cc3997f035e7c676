"""`make check-api` finds a change of docs/openapi.json that would break a client."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.paths import ROOT, STACK
from tests.support.sizes import SOAK

OPENAPI: Final = ROOT / "docs" / "openapi.json"
MAKEFILE: Final = (ROOT / "Makefile").read_text()
BUILT: Final = STACK / "go" / "bin" / "oasdiff"


@pytest.fixture(scope="module")
def oasdiff() -> str:
    """The program, which `make soak` builds as the Makefile says: it takes some minutes of a processor."""
    found = shutil.which("oasdiff") or (str(BUILT) if BUILT.exists() else None)
    if found is None and SOAK and shutil.which("go"):
        [package] = set(re.findall(r"go install (github\.com/oasdiff/oasdiff@v[0-9.]+[0-9])", MAKEFILE))
        environment = {**os.environ, "GOBIN": str(BUILT.parent)}
        subprocess.run(["go", "install", package], env=environment, check=True, timeout=1_800)
        found = str(BUILT)
    if found is None:
        pytest.skip("there is no oasdiff; `make soak` builds it where there is Go")
    return found


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose branch `main` has the committed document."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "docs").mkdir()
    (folder / "Makefile").write_text(MAKEFILE)
    shutil.copyfile(OPENAPI, folder / "docs" / "openapi.json")
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.edu")
    for command in (("init", "-q", "-b", "main"), ("add", "."), (*identity, "commit", "-qm", "The base")):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def _check(repository: Path, oasdiff: str, *variables: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "check-api", f"OASDIFF={oasdiff}", *variables]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120, check=False)


def _without_a_field(document: Any) -> None:
    token = document["components"]["schemas"]["Revealed"]
    del token["properties"]["access_token"]
    token["required"].remove("access_token")


def _with_a_required_field(document: Any) -> None:
    document["components"]["schemas"]["StoreTokenRequest"]["required"].append("email")


def _without_a_value(document: Any) -> None:
    document["components"]["schemas"]["TokenStatus"]["enum"].remove("revoked")


def _without_a_route(document: Any) -> None:
    del document["paths"]["/v1/tokens"]


BREAKS: dict[str, Callable[[Any], None]] = {
    "an answer loses a field": _without_a_field,
    "a request needs one more field": _with_a_required_field,
    "a request's enum loses a value": _without_a_value,
    "a route is gone": _without_a_route,
}


@pytest.mark.parametrize("change", BREAKS)
def test_a_change_that_breaks_clients_is_found(repository: Path, oasdiff: str, change: str) -> None:
    document = json.loads(OPENAPI.read_text())
    BREAKS[change](document)
    (repository / "docs" / "openapi.json").write_text(json.dumps(document))
    done = _check(repository, oasdiff)
    assert done.returncode != 0, done.stdout
    assert "error" in done.stdout
    assert not (repository / ".openapi-base.json").exists()


def test_a_new_optional_field_breaks_nobody(repository: Path, oasdiff: str) -> None:
    document = json.loads(OPENAPI.read_text())
    document["components"]["schemas"]["Token"]["properties"]["nickname"] = {"type": "string"}
    document["components"]["schemas"]["StoreTokenRequest"]["properties"]["nickname"] = {"type": "string"}
    (repository / "docs" / "openapi.json").write_text(json.dumps(document))
    done = _check(repository, oasdiff)
    assert done.returncode == 0, done.stdout


def test_without_the_program_or_the_base_nothing_is_compared(repository: Path) -> None:
    missing = _check(repository, "no-such-oasdiff")
    assert (missing.returncode, "oasdiff is needed" in missing.stderr) == (2, True)
    unknown = _check(repository, "true", "BASE=no-such-revision")
    assert (unknown.returncode, "BASE=no-such-revision has no docs/openapi.json" in unknown.stderr) == (2, True)
