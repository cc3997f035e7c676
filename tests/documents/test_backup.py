"""docs/backup.md, word for word, on PostgreSQL and on SQLite: back up, lose the rows, restore, and go on."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.support.paths import ROOT
from tests.support.process.home import COMMAND, Home, new_home, new_master_key, token_vault
from tests.support.process.server import Serve
from tests.support.process.wire import token_path
from tests.support.security.keys import OTHER_MASTER_KEY
from tests.support.stack.postgres import Postgres

PAGE = (ROOT / "docs" / "backup.md").read_text()


def _commands(heading: str) -> str:
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"^```sh\n(.*?)^```$", section, re.DOTALL | re.MULTILINE))


@dataclass(frozen=True, slots=True)
class Place:
    """A vault's folder and settings, and the databases that its rows are in before and after their loss."""

    store: str
    home: Home
    owner_urls: tuple[str, str]
    psql: Path

    def follow(self, heading: str, *, restored: bool = False) -> None:
        """Run the commands of a section."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", _commands(heading)],
            cwd=self.home.folder,
            env={
                "PATH": f"{Path(COMMAND).parent}:{self.psql.parent}:{os.environ['PATH']}",
                "OWNER_URL": self.owner_urls[restored],
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def dry_run(self) -> subprocess.CompletedProcess[str]:
        return token_vault("rewrap", "--dry-run", folder=self.home.folder, settings=self.home.settings)

    def run(self, *words: str) -> str:
        done = token_vault(*words, folder=self.home.folder, settings=self.home.settings)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(params=["PostgreSQL", "SQLite"])
def place(request: pytest.FixtureRequest, postgres: Postgres, tmp_path: Path) -> Iterator[Place]:
    settings = {"AUDIT_LOG": str(tmp_path / "audit.jsonl"), "AUDIT_KEY": new_master_key()}
    if request.param == "SQLite":
        yield Place("SQLite", new_home(tmp_path, ALLOW_LEGACY_FORMATS="false", **settings), ("", ""), postgres.psql)
        return
    with postgres.new_database() as before, postgres.new_database() as after:
        before.migrate()
        urls = (postgres.uri(before.name), postgres.uri(after.name))
        home = new_home(
            tmp_path, TOKEN_STORE="postgres", DATABASE_URL=urls[0], ALLOW_LEGACY_FORMATS="false", **settings
        )
        yield Place("PostgreSQL", home, urls, postgres.psql)


def _lose_the_rows(place: Place) -> Place:
    """Return the place with an empty database, or without its file."""
    if place.store == "SQLite":
        (place.home.folder / "data" / "vault.db").unlink()
        return place
    settings = {**place.home.settings, "DATABASE_URL": place.owner_urls[1]}
    return Place(place.store, Home(place.home.folder, place.home.service_key, settings), place.owner_urls, place.psql)


def _with_a_new_master_key(place: Place, *, previous: Mapping[str, str] | None = None) -> Place:
    keys = {
        "TOKEN_ENCRYPTION_KEY": OTHER_MASTER_KEY,
        "ENCRYPTION_KEY_VERSION": "2",
        "TOKEN_ENCRYPTION_PREVIOUS_KEYS": json.dumps(previous or {}),
    }
    return replace(place, home=replace(place.home, settings={**place.home.settings, **keys}))


def _etag(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code in {200, 201}, answer.text
    return {"If-Match": answer.headers["etag"]}


def test_a_restore_brings_the_rows_and_the_trail_says_what_is_newer(place: Place, serve: Serve) -> None:
    kept, deleted, later = (token_path(uuid4()) for _ in range(3))
    with serve(place.home) as server, server.client() as client:
        for path in (kept, deleted):
            _etag(client.put(path, json={"access_token": f"CANARY of {path}", "refresh_token": "first"}))
        place.follow(f"Back up {place.store}")
        backup = place.home.folder / ("vault-backup.db" if place.store == "SQLite" else "oauth_tokens.sql")
        assert b"CANARY" not in backup.read_bytes()
        assert backup.stat().st_mode & 0o077 == 0
        since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        seen = _etag(client.post(f"{kept}/rotate", json={"access_token": "newer", "refresh_token": "second"}))
        assert client.delete(deleted).status_code == 204
        _etag(client.put(later, json={"access_token": "lost"}))
        server.stop()
    lost = _lose_the_rows(place)
    lost.follow(f"Restore {lost.store}", restored=True)
    rotated = _with_a_new_master_key(lost)  # since the backup
    assert "without them tokens cannot be read" in rotated.run("encryption", "status", "--verify")
    assert rotated.dry_run().returncode != 0
    lost = _with_a_new_master_key(lost, previous={"1": lost.home.settings["TOKEN_ENCRYPTION_KEY"]})
    assert json.loads(lost.run("encryption", "status", "--verify", "--json"))["tokens"] == 2
    assert re.search(r"^readable +2$", lost.dry_run().stdout, re.MULTILINE)
    lost.run("audit", "verify")
    with serve(lost.home) as server, server.client() as client:
        shown = client.get(kept, params={"include": "refresh_token"}).json()
        assert (shown["access_token"], shown["refresh_token"]) == (f"CANARY of {kept}", "first")
        # without the lift of the versions this would be the version that was seen before the loss
        _etag(client.post(f"{kept}/rotate", json={"access_token": "other"}))
        stale = client.post(f"{kept}/rotate", json={"access_token": "stale"}, headers=seen)
        assert (stale.status_code, stale.json()["code"]) == (412, "version_conflict")
        assert client.get(deleted).status_code == 200
        assert client.get(later).status_code == 404
        _etag(client.put(later, json={"access_token": "again"}))
    for operation, path in (("delete", deleted), ("rotate", kept), ("store", later)):
        printed = lost.run(
            "audit", "show", "--since", since, "--outcome", "success", "--operation", operation, "--json"
        )
        users = {json.loads(line)["user_id"] for line in printed.splitlines()}
        assert path.split("/")[3] in users
