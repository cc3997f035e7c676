"""`token-vault refresh`: refreshes what is due, and says what it could not."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from app.refresh.rounds import CONCURRENT
from app.tokens.models import TokenId
from tests.support.audit.trails import KEY_TEXT
from tests.support.oauth.stand_in import Answer, OAuthStandIn, oauth_stand_in
from tests.support.process.home import COMMAND, COMMAND_SECONDS, environment, require_refusal, token_vault
from tests.support.process.prepared import PreparedCommand
from tests.support.refresh import USER, replicas
from tests.support.rewrap.stored_rows import key_settings
from tests.support.sizes import SOAK
from tests.support.stores.stores import SqliteStore
from tests.support.waiting import eventually_async


@pytest.fixture
def provider() -> Iterator[OAuthStandIn]:
    with oauth_stand_in() as stand_in:
        yield stand_in


def _settings(folder: Path, provider: OAuthStandIn) -> dict[str, str]:
    return {
        **key_settings(1),
        "SQLITE_PATH": str(folder / "vault.db"),
        "OAUTH_PROVIDERS": json.dumps({"google": provider.entry(), "acme": provider.entry()}),
        "AUDIT_LOG": "audit",
        "AUDIT_KEY": KEY_TEXT,
    }


def _run(folder: Path, provider: OAuthStandIn, *options: str) -> tuple[int, dict[str, list[str]], str]:
    """Return the exit code, the rows of the summary by provider, and the last line."""
    done = token_vault("refresh", *options, folder=folder, settings=_settings(folder, provider))
    assert done.stderr == ""
    return _parsed(done)


def _parsed(done: CompletedProcess[str]) -> tuple[int, dict[str, list[str]], str]:
    rows = [re.split(" {2,}", line) for line in done.stdout.partition("\n\n")[0].splitlines()[1:]]
    return done.returncode, {name: cells for name, *cells in rows}, done.stdout.splitlines()[-1]


def _started(folder: Path, provider: OAuthStandIn) -> PreparedCommand:
    return PreparedCommand(
        COMMAND,
        ("refresh", "--due-within", "2h", "--provider", "acme"),
        folder=folder,
        environment=environment(_settings(folder, provider)),
    )


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_a_signal_ends_it_after_the_tokens_in_flight(
    tmp_path: Path, provider: OAuthStandIn, number: signal.Signals
) -> None:
    seeds = [provider.seed() for _ in range(CONCURRENT + 3)]
    async with SqliteStore(tmp_path / "vault.db").open() as tokens, replicas(tokens, provider) as [replica]:
        ids = [TokenId(USER, "acme", f"s{index}") for index in range(len(seeds))]
        for token_id, seed in zip(ids, seeds, strict=True):
            await replica.store(token_id=token_id, refresh_token=seed)
        release = threading.Event()
        provider.always(Answer(commits=True, hold=release))
        command = _started(tmp_path, provider)
        await eventually_async(lambda: provider.refreshes == CONCURRENT)
        command.send_signal(number)
        release.set()
        done = command.end(COMMAND_SECONDS)
        assert provider.refreshes == CONCURRENT, "it began no more"
        stored = [await replica.refresh_token(token_id) for token_id in ids]
        assert all(map(provider.accepts, stored)), "each answer is stored"
    assert len(set(stored) & set(seeds)) == 3
    code, rows, last = _parsed(done)
    assert (code, rows["acme"][1:]) == (2, [str(CONCURRENT), "0"])
    assert last.startswith(f"Not finished: {number.name} stopped it.")


async def test_an_error_of_the_store_is_named_and_exit_code_2(tmp_path: Path, provider: OAuthStandIn) -> None:
    async with SqliteStore(tmp_path / "vault.db").open() as tokens, replicas(tokens, provider) as [replica]:
        for index in range(CONCURRENT + 1):
            await replica.store(token_id=TokenId(USER, "acme", f"s{index}"), refresh_token=provider.seed())
    release = threading.Event()
    provider.always(Answer(status=500, hold=release))
    command = _started(tmp_path, provider)
    await eventually_async(lambda: len(provider.requests) == CONCURRENT)
    _break_the_store(tmp_path)
    release.set()
    code, rows, last = _parsed(command.end(COMMAND_SECONDS))
    assert code == 2
    assert rows["acme"][:3] == [str(CONCURRENT + 1), "0", str(CONCURRENT + 1)]
    assert last.startswith("Not finished: store_misconfigured: ")
    assert "token-vault doctor" in last
    assert len(provider.requests) == CONCURRENT


@pytest.mark.skipif(not SOAK, reason="it waits for the fifteen seconds that a shutdown gives a refresh; make soak")
async def test_an_answer_that_cannot_be_stored_is_reported(tmp_path: Path, provider: OAuthStandIn) -> None:
    await _stored(tmp_path, provider, "acme")
    release = threading.Event()
    provider.always(Answer(commits=True, hold=release))
    command = _started(tmp_path, provider)
    await eventually_async(lambda: provider.refreshes == 1)
    _break_the_store(tmp_path)
    release.set()
    command.send_signal(signal.SIGTERM)
    code, _, last = _parsed(command.end(COMMAND_SECONDS))
    assert code == 2
    assert last.startswith("Not finished: SIGTERM stopped it, and 1 answer of a provider could not be stored.")


def _break_the_store(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "vault.db")) as database:
        database.execute("alter table oauth_tokens rename column access_token to another")
        database.commit()


async def test_progress_is_on_standard_error(tmp_path: Path, provider: OAuthStandIn) -> None:
    await _stored(tmp_path, provider, "acme")
    release = threading.Event()
    provider.always(Answer(commits=True, hold=release))
    command = _started(tmp_path, provider)
    await eventually_async(lambda: "1 due, 0 refreshed, 0 failed" in command.standard_error())
    release.set()
    done = command.end(COMMAND_SECONDS)
    code, rows, last = _parsed(done)
    assert (code, rows, last) == (0, {"acme": ["1", "1", "0"]}, "Every token that was due is refreshed.")
    assert {line.partition(" due")[0] for line in done.stderr.splitlines()} == {"1"}


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
