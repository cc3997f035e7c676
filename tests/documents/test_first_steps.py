"""docs/first-steps.md, pasted into a folder that `make run` has set up."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from tests.support.oauth.stand_in import CLIENT_SECRET, oauth_stand_in
from tests.support.paths import ROOT
from tests.support.process.home import AS_USERS_HAVE_IT, initialised_home
from tests.support.process.server import Serve
from tests.support.process.wire import token_path, wires
from tests.support.stack.kms import REGION, Kms
from tests.support.stack.postgres import Database, Postgres

PAGE: Final = (ROOT / "docs" / "first-steps.md").read_text()
GOOGLE: Final = '{"google": {'


@pytest.fixture
def folder(tmp_path: Path, serve: Serve) -> Path:
    """A folder after `make run` and a first token, with the environment where the page expects it."""
    home = initialised_home(tmp_path)
    with serve(home) as server, wires(server, 1) as [wire]:
        assert wire.call("PUT", token_path(str(uuid4()), "canvas"), {"access_token": "1234~first"}).status == 201
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    return tmp_path


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


def test_postgresql(folder: Path, postgres: Postgres, empty_database: Database) -> None:
    name, socket = empty_database.name, postgres.socket.parent
    replacing = {
        "postgresql://postgres:PASSWORD@db.abcdefgh.supabase.co:5432/postgres?sslrootcert=supabase-ca.crt": (
            postgres.uri(name)
        ),
        "@db.abcdefgh.supabase.co:5432/postgres?sslrootcert=supabase-ca.crt": f"@/{name}?host={socket}",
        "vault_login": "first_steps_login",
    }
    try:
        printed = _paste("PostgreSQL", folder, replacing=replacing, PATH=f"{postgres.psql.parent}:{os.environ['PATH']}")
    finally:
        empty_database.sql("drop role if exists first_steps_login")
    assert "may use oauth_tokens and no other table" in printed
    assert "FAIL" not in printed


def test_aws_kms(folder: Path, kms: Kms) -> None:
    printed = _paste(
        "AWS KMS",
        folder,
        replacing={"eu-west-1": REGION},
        AWS_ENDPOINT_URL_KMS=kms.url,
        AWS_ACCESS_KEY_ID="administrator",
        AWS_SECRET_ACCESS_KEY="none",
    )
    assert "FAIL" not in printed
    assert "rewrapped  1" in re.sub(" +", "  ", printed)
    assert "New tokens are encrypted under kms:" in printed


def test_refreshing_tokens(folder: Path) -> None:
    with oauth_stand_in() as provider:
        entry = f'{GOOGLE}"token_url": "{provider.token_url}", "client_auth": "post", "rotation": "none", '
        replacing = {
            f'{GOOGLE}"preset": "google", ': f'{entry}"allow_insecure": true, ',
            "GOCSPX-the-client-secret": CLIENT_SECRET,
        }
        printed = _paste("Refreshing tokens", folder, replacing=replacing)
    assert "ok    google" in printed
    assert CLIENT_SECRET not in printed
