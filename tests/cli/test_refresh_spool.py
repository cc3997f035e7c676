"""REFRESH_SPOOL_DIR: what stops the start, and what `doctor` says of it."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from app.refresh.spool import RefreshSpool
from app.tokens import transitions
from tests.support.oauth.stand_in import OAuthStandIn
from tests.support.process.home import Home, new_home, require_refusal, token_vault
from tests.support.process.server import Serve
from tests.support.spool import Crash
from tests.support.stores.stores import token


def _home(folder: Path) -> Home:
    provider = OAuthStandIn()  # its entry alone: nothing is refreshed
    return new_home(folder, OAUTH_PROVIDERS=json.dumps({"acme": provider.entry()}), REFRESH_SPOOL_DIR="data/spool")


@pytest.mark.parametrize("wrong", ["readable", "a file"])
def test_a_directory_that_is_not_private_stops_the_start(tmp_path: Path, wrong: str) -> None:
    home, spool = _home(tmp_path), tmp_path / "data" / "spool"
    spool.parent.mkdir()
    if wrong == "a file":
        spool.write_text("")
    else:
        spool.mkdir(mode=0o755)
    done = token_vault("serve", folder=tmp_path, settings=home.settings)
    require_refusal(done, 2, "REFRESH_SPOOL_DIR", "0700" if wrong == "readable" else "not a directory")
    assert [each for each in _doctor(home) if each.startswith("FAIL  spool")] != []


def test_doctor_finds_what_is_left_in_the_spool(tmp_path: Path, serve: Serve) -> None:
    home, spool = _home(tmp_path), tmp_path / "data" / "spool"
    assert _doctor(home) == ["ok    spool         data/spool does not exist yet; the first start creates it"]
    with serve(home):
        assert _doctor(home) == ["ok    spool         data/spool is private"]
    (spool / f"{uuid4()}.refresh").write_text("")
    asyncio.run(_leave_unwritten(spool))
    (spool / "notes.txt").write_text("")
    _, left, damaged, foreign = _doctor(home)
    assert left.startswith("warn  spool         1 refreshes are not stored yet")
    assert damaged.startswith("warn  spool         1 files are damaged")
    assert foreign.startswith("warn  spool         1 files are not the vault's")


def test_a_spool_without_providers_has_no_effect(tmp_path: Path) -> None:
    done = token_vault("doctor", folder=tmp_path, settings=new_home(tmp_path, REFRESH_SPOOL_DIR="spool").settings)
    assert "REFRESH_SPOOL_DIR has no effect without OAUTH_PROVIDERS_FILE" in done.stdout


async def _leave_unwritten(spool: Path) -> None:
    claimed = transitions.claimed(token(), str(uuid4()))
    with suppress(Crash):
        async with RefreshSpool(spool).kept(claimed, claimed, intent=None):
            raise Crash


def _doctor(home: Home) -> list[str]:
    done = token_vault("doctor", folder=home.folder, settings=home.settings)
    return [line for line in done.stdout.splitlines() if line[6:].startswith("spool")]
