"""`token-vault refresh`: refreshes what is due, and says what it could not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.tokens.models import TokenId
from tests.support.audit.trails import KEY_TEXT
from tests.support.oauth.stand_in import Answer, OAuthStandIn, oauth_stand_in
from tests.support.process.home import require_refusal, token_vault
from tests.support.refresh import USER, replicas
from tests.support.rewrap.stored_rows import key_settings
from tests.support.stores.stores import SqliteStore


@pytest.fixture
def provider() -> Iterator[OAuthStandIn]:
    with oauth_stand_in() as stand_in:
        yield stand_in


def _run(folder: Path, provider: OAuthStandIn, *options: str) -> tuple[int, dict[str, list[str]], str]:
    """Return the exit code, the rows of the summary by provider, and the last line."""
    settings = {
        **key_settings(1),
        "SQLITE_PATH": str(folder / "vault.db"),
        "OAUTH_PROVIDERS": json.dumps({"google": provider.entry(), "acme": provider.entry()}),
        "AUDIT_LOG": "audit",
        "AUDIT_KEY": KEY_TEXT,
    }
    done = token_vault("refresh", *options, folder=folder, settings=settings)
    assert done.stderr == ""
    rows = [re.split(" {2,}", line) for line in done.stdout.partition("\n\n")[0].splitlines()[1:]]
    return done.returncode, {name: cells for name, *cells in rows}, done.stdout.splitlines()[-1]


def _audit(folder: Path) -> str:
    return "".join(file.read_text() for file in folder.glob("audit*"))


async def _stored(folder: Path, provider: OAuthStandIn, *names: str) -> dict[str, str]:
    """Store a token that expires in an hour under each name; return its refresh token."""
    seeds = {name: provider.seed() for name in names}
    async with SqliteStore(folder / "vault.db").open() as tokens, replicas(tokens, provider) as [replica]:
        for name, seed in seeds.items():
            await replica.store(token_id=TokenId(USER, name), refresh_token=seed)
    return seeds


async def test_due_tokens_are_refreshed_and_counted(tmp_path: Path, provider: OAuthStandIn) -> None:
    await _stored(tmp_path, provider, "google", "gmail", "acme")
    assert _run(tmp_path, provider, "--due-within", "30m")[:2] == (
        0,
        dict.fromkeys(("acme", "gmail", "google"), ["0"] * 3),
    )
    code, rows, last = _run(tmp_path, provider, "--due-within", "2h", "--dry-run")
    assert (code, rows, last) == (
        *(0, {"acme": ["1"], "gmail": ["1"], "google": ["1"]}),
        "Nothing was asked or written.",
    )
    assert provider.requests == []
    assert "refresh-command" not in _audit(tmp_path)
    code, rows, last = _run(tmp_path, provider, "--due-within", "2h", "--provider", "gmail")
    assert (code, rows) == (0, {"gmail": ["1", "1", "0"], "google": ["1", "1", "0"]}), "both names are Google's"
    assert last == "Every token that was due is refreshed."
    assert provider.refreshes == 2
    assert "refresh-command" in _audit(tmp_path)


async def test_a_failure_is_counted_and_is_exit_code_1(tmp_path: Path, provider: OAuthStandIn) -> None:
    seeds = await _stored(tmp_path, provider, "google", "acme")
    provider.answers_for = {seeds["google"]: Answer(status=500)}
    code, rows, last = _run(tmp_path, provider, "--due-within", "2h")
    assert code == 1
    assert rows["google"] == ["1", "0", "1", "provider_unavailable 1"]
    assert rows["acme"] == ["1", "1", "0"]
    assert last.startswith("Some tokens were not refreshed.")


async def test_a_paused_provider_is_named(tmp_path: Path, provider: OAuthStandIn) -> None:
    await _stored(tmp_path, provider, "google", "gmail")
    provider.clients.clear()
    code, rows, _ = _run(tmp_path, provider, "--due-within", "2h")
    assert code == 1
    assert "provider_misconfigured" in str(rows)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--due-within", "soon"), ("--due-within",)),
        (("--due-within", "900000d"), ("--due-within",)),
        (("--provider", "gogle"), ("--provider", "no entry")),
    ],
)
async def test_a_wrong_option_is_one_line_and_exit_code_2(
    tmp_path: Path, provider: OAuthStandIn, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    await _stored(tmp_path, provider, "google")
    settings = {
        **key_settings(1),
        "SQLITE_PATH": str(tmp_path / "vault.db"),
        "OAUTH_PROVIDERS": json.dumps({"google": provider.entry()}),
    }
    require_refusal(token_vault("refresh", *options, folder=tmp_path, settings=settings), 2, *words)


async def test_it_refuses_to_run_without_a_provider(tmp_path: Path, provider: OAuthStandIn) -> None:
    await _stored(tmp_path, provider, "google")
    settings = {**key_settings(1), "SQLITE_PATH": str(tmp_path / "vault.db")}
    require_refusal(token_vault("refresh", folder=tmp_path, settings=settings), 2, "no OAuth provider is configured")


async def test_a_list_without_providers_refreshes_nothing(tmp_path: Path, provider: OAuthStandIn) -> None:
    """As the CronJob of a vault that refreshes nothing."""
    await _stored(tmp_path, provider, "google")
    (tmp_path / "providers.json").write_text("{}")
    settings = {
        **key_settings(1),
        "SQLITE_PATH": str(tmp_path / "vault.db"),
        "OAUTH_PROVIDERS_FILE": str(tmp_path / "providers.json"),
    }
    done = token_vault("refresh", folder=tmp_path, settings=settings)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "Every token that was due is refreshed."), done.stderr
