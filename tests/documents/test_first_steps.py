"""docs/first-steps.md, pasted into a folder that `make run` has set up."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from tests.support.oauth.stand_in import CLIENT_ID, CLIENT_SECRET, oauth_stand_in
from tests.support.paths import ROOT
from tests.support.process.home import AS_USERS_HAVE_IT, Home, initialised_home
from tests.support.process.server import Serve
from tests.support.process.wire import token_path, wires
from tests.support.stack.kms import REGION, Kms
from tests.support.stack.postgres import Database, Postgres

PAGE: Final = (ROOT / "docs" / "first-steps.md").read_text()
GOOGLE: Final = '{"google": {'
USER: Final = str(uuid4())


@pytest.fixture
def home(tmp_path: Path, serve: Serve) -> Home:
    """A folder after `make run` and a first token, with the environment where the page expects it."""
    home = initialised_home(tmp_path)
    with serve(home) as server, wires(server, 1) as [wire]:
        assert wire.call("PUT", token_path(USER, "canvas"), {"access_token": "1234~first"}).status == 201
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    return home


def _call_after_a_start(home: Home, serve: Serve, *calls: tuple[Any, ...], **environment: str) -> list[Any]:
    """Start the vault again, as the page says, and return the body of each answer."""
    with serve(replace(home, settings={**home.settings, **environment})) as server, wires(server, 1) as [wire]:
        answers = [wire.call(*call) for call in calls]
    assert all(answer.status in {200, 201} for answer in answers), answers
    return [answer.body for answer in answers]


def _paste(heading: str, folder: Path, *, replacing: dict[str, str], **environment: str) -> str:
    [block] = re.findall(rf"^## {heading}\n.*?^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    for written, meant in replacing.items():
        assert written in block, written
        block = block.replace(written, meant)
    done = subprocess.run(
        ["bash", "-ec", block],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **AS_USERS_HAVE_IT, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_postgresql(home: Home, serve: Serve, postgres: Postgres, empty_database: Database) -> None:
    name, socket = empty_database.name, postgres.socket.parent
    replacing = {
        "postgresql://postgres:PASSWORD@db.abcdefgh.supabase.co:5432/postgres?sslrootcert=supabase-ca.crt": (
            postgres.uri(name)
        ),
        "@db.abcdefgh.supabase.co:5432/postgres?sslrootcert=supabase-ca.crt": f"@/{name}?host={socket}",
        "vault_login": "first_steps_login",
    }
    try:
        path = f"{postgres.psql.parent}:{os.environ['PATH']}"
        printed = _paste("PostgreSQL", home.folder, replacing=replacing, PATH=path)
        google = token_path(USER, "google")
        _, revealed = _call_after_a_start(home, serve, ("PUT", google, {"access_token": "second"}), ("GET", google))
    finally:
        empty_database.sql("drop role if exists first_steps_login")
    assert "may use oauth_tokens and no other table" in printed
    assert "FAIL" not in printed
    assert revealed["access_token"] == "second"


def test_aws_kms(home: Home, serve: Serve, kms: Kms) -> None:
    variables = {
        "AWS_ENDPOINT_URL_KMS": kms.url,
        "AWS_ACCESS_KEY_ID": "administrator",
        "AWS_SECRET_ACCESS_KEY": "none",
    }
    printed = _paste("AWS KMS", home.folder, replacing={"eu-west-1": REGION}, **variables)
    assert "FAIL" not in printed
    [revealed] = _call_after_a_start(home, serve, ("GET", token_path(USER, "canvas")), **variables)
    assert (revealed["access_token"], revealed["encryption_method"]) == ("1234~first", "kms")
    assert "rewrapped  1" in re.sub(" +", "  ", printed)
    assert "New tokens are encrypted under kms:" in printed


def test_refreshing_tokens(home: Home, serve: Serve) -> None:
    with oauth_stand_in() as provider:
        entry = f'{GOOGLE}"token_url": "{provider.token_url}", "client_auth": "post", "rotation": "none", '
        replacing = {
            f'{GOOGLE}"preset": "google", ': f'{entry}"allow_insecure": true, ',
            "1234.apps.googleusercontent.com": CLIENT_ID,
            "GOCSPX-the-client-secret": CLIENT_SECRET,
        }
        printed = _paste("Refreshing tokens", home.folder, replacing=replacing)
        google = token_path(USER, "google")
        stored = {"access_token": "old", "expires_at": "2026-01-01T00:00:00Z", "refresh_token": provider.seed()}
        _, revealed = _call_after_a_start(home, serve, ("PUT", google, stored), ("GET", google))
    assert (revealed["access_token"] != "old", revealed["min_ttl_met"]) == (True, True)
    assert "ok    google" in printed
    assert CLIENT_SECRET not in printed
