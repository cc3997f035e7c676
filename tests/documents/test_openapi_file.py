"""docs/openapi.json, from which clients are generated, is what the vault serves."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import httpx

from scripts.write_openapi import OPENAPI_FILE, openapi_text
from tests.support.api.service import Service
from tests.support.paths import ROOT
from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.stores.stores import SqliteStore


def test_the_committed_document_is_current() -> None:
    assert OPENAPI_FILE.read_text() == openapi_text(), "run `make openapi`"


def test_the_committed_document_is_what_the_vault_serves(sqlite_service: tuple[Service, SqliteStore]) -> None:
    served = httpx.get(f"{sqlite_service[0].url}/openapi.json", trust_env=False, verify=PLAIN_HTTP).json()
    assert json.loads(OPENAPI_FILE.read_text()) == served


def test_settings_of_the_environment_do_not_change_the_document() -> None:
    script = "from scripts.write_openapi import openapi_text; print(openapi_text(), end='')"
    variables = {"METRICS": "false", "METRICS_PORT": "9100", "API_DOCS": "false", "SUPABASE_URL": "https://x.test"}
    written = subprocess.run(
        [sys.executable, "-c", script],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert written.stdout == OPENAPI_FILE.read_text()
