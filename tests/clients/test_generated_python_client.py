"""The client that `openapi-python-client` generates from docs/openapi.json, as docs/api.md says."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.api.service import Service
from tests.support.paths import ROOT
from tests.support.stores.stores import SqliteStore

PROGRAM = Path(__file__).with_name("generated_life.py")
BIN = Path(sys.executable).parent
# Types of the generated package and of attrs, which makes its classes; httpx and all that it imports would take longer
# than everything else.
MYPY = """\
[mypy]
strict = true
no_site_packages = true
follow_imports = silent
[mypy-attr.*]
ignore_errors = true
"""
WRONG = """\
from uuid import uuid4
from pulse_plan_token_vault_client import AuthenticatedClient
from pulse_plan_token_vault_client.api.tokens import patch_token
from pulse_plan_token_vault_client.models import PatchTokenRequest, StoreTokenRequest

StoreTokenRequest(accessToken="x")
PatchTokenRequest(status="fine")
patch_token.sync(uuid4(), "google", client=AuthenticatedClient(base_url="", token=""), body=StoreTokenRequest("x"))
"""


def _run(*command: str | Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])  # the generator runs ruff
    environment = {"PATH": path, "NO_COLOR": "1", **variables}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the generated package, made without a warning."""
    folder = tmp_path_factory.mktemp("generated")
    document, output = ROOT / "docs" / "openapi.json", folder / "client"
    options = ("--path", document, "--output-path", output, "--fail-on-warning")
    done = _run(BIN / "openapi-python-client", "generate", *options, folder=folder)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "warning" not in done.stdout.lower()
    return output


def test_a_typed_program_stores_reveals_patches_rotates_and_deletes(
    generated: Path, sqlite_service: tuple[Service, SqliteStore]
) -> None:
    service, _ = sqlite_service
    done = _run(
        sys.executable,
        PROGRAM,
        folder=generated,
        PYTHONPATH=str(generated),
        VAULT_URL=service.url,
        VAULT_KEY=service.keys["full"],
    )
    assert done.returncode == 0, done.stderr


def test_mypy_takes_that_program_and_refuses_a_wrong_one(generated: Path, tmp_path: Path) -> None:
    (tmp_path / "mypy.ini").write_text(MYPY)
    (tmp_path / "wrong.py").write_text(WRONG)
    for name in ("attr", "attrs"):
        (tmp_path / name).symlink_to(Path(sysconfig.get_path("purelib")) / name)
    variables = {"MYPYPATH": os.pathsep.join([str(generated), str(tmp_path)])}
    done = _run(BIN / "mypy", "--no-error-summary", PROGRAM, "wrong.py", folder=tmp_path, **variables)
    found = [line.partition(" error: ")[0].rpartition("/")[2] for line in done.stdout.splitlines() if "error" in line]
    assert dict.fromkeys(found) == dict.fromkeys(["wrong.py:6:", "wrong.py:7:", "wrong.py:8:"]), done.stdout
