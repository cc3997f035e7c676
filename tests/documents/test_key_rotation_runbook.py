"""docs/key-rotation.md, followed word for word.

Its settings go into `.env`, its commands are run, and their output must be what the page shows. A service runs beside,
and is restarted with new settings; after each step it must reveal every token as before.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Final, Self

import pytest

from app.rewrap.background import ROWS_PER_SECOND
from app.rewrap.sweep import RETRY_SECONDS
from app.security.encryption_service import EncryptionService
from tests.support.paths import ROOT
from tests.support.process.home import Home, new_home, token_vault
from tests.support.process.server import Serve, Server
from tests.support.process.wire import Wire, token_path, wires
from tests.support.rewrap.command import rewrap, without_progress
from tests.support.rewrap.stored_rows import (
    KEYS,
    Row,
    Rows,
    SqliteRows,
    SupabaseRows,
    access_of,
    encryption,
    key_settings,
    local_encryption,
    pulseplan_rows,
    rows_of_users,
    rows_under_first,
)
from tests.support.stack.kms import Kms
from tests.support.stack.supabase import SupabaseStack
from tests.support.waiting import eventually

PAGE: Final = (ROOT / "docs" / "key-rotation.md").read_text()
TOKENS: Final = 120
ARN_A: Final = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
ARN_B: Final = "arn:aws:kms:eu-west-1:123456789012:key/5678efab-56ef-34cd-12ab-567890abcdef"
_TIMES: Final = re.compile(r"^(seconds|rows/s) +[0-9.,]+$", re.MULTILINE)
_BATCH: Final = 100


def section(heading: str) -> str:
    """Return the section below a heading."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found, heading
    return found[1]


def steps(heading: str) -> list[tuple[str, str]]:
    """Return the blocks below a heading in order: `ini` for settings, `console` for commands with their output."""
    return re.findall(r"^```(ini|console)\n(.*?)^```$", section(heading), re.DOTALL | re.MULTILINE)


class Operator:
    """Follows the page, in the folder of a vault whose tokens are known."""

    def __init__(self, *, home: Home, serve: Serve, stands_for: Mapping[str, str]) -> None:
        self._home = home
        self._serve = serve
        self._stands_for = dict(stands_for)
        self._settings = dict(home.settings)
        self._stack = ExitStack()
        self._server: Server | None = None
        self.printed: list[str] = []
        self.holds: dict[tuple[str, str, str], str] = {}

    def __enter__(self) -> Self:
        self._restart()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def follow(self, heading: str) -> None:
        """Apply every block below this heading."""
        done = steps(heading)
        assert done, heading
        for language, block in done:
            if language == "ini":
                self._set(block)
            else:
                self._type(block)
            self.require_every_token()

    def require_every_token(self) -> None:
        """Require that the running service reveals each token as it was."""
        assert self._server is not None
        keys = list(self.holds)
        with wires(self._server, 1) as [wire]:
            for at in range(0, len(keys), _BATCH):
                names = ("user_id", "provider", "service_type")
                chunk = [dict(zip(names, key, strict=True)) for key in keys[at : at + _BATCH]]
                expected = [self.holds[key] for key in keys[at : at + _BATCH]]
                eventually(lambda: _revealed(wire, chunk) == expected, within_seconds=120)  # noqa: B023  called at once

    def store(self, user_id: str, secret: str) -> str:
        """Store a token through the service; return the encryption method of the answer."""
        assert self._server is not None
        with wires(self._server, 1) as [wire]:
            answer = wire.call("PUT", token_path(user_id), {"access_token": secret})
        assert answer.status in {200, 201}, answer
        return str(answer.body["encryption_method"])

    @property
    def settings(self) -> dict[str, str]:
        return dict(self._settings)

    def _set(self, block: str) -> None:
        for line in self._filled_in(block).splitlines():
            name, _, value = line.partition("=")
            self._settings[name] = value
        self._restart()

    def _type(self, block: str) -> None:
        for command, expected in commands(block):
            printed = self._run(command)
            self.printed.append(printed)
            if command == "token-vault keys generate":
                self._stands_for["<key of version 2>"] = printed.strip()
            else:
                assert comparable(printed) == comparable(self._filled_in(expected)), command

    def _run(self, command: str) -> str:
        program, *arguments = shlex.split(command)
        assert program == "token-vault"
        done = token_vault(*arguments, folder=self._home.folder)
        assert done.returncode == 0, done
        return done.stderr + done.stdout

    def _restart(self) -> None:
        self._stack.close()
        lines = [f"{name}={value}" for name, value in self._settings.items()]
        (self._home.folder / ".env").write_text("\n".join(lines) + "\n")
        # the environment holds only the port, so the service reads `.env` too
        home = Home(self._home.folder, self._home.service_key, {"PORT": self._home.settings["PORT"]})
        context: AbstractContextManager[Server] = self._serve(home)
        self._server = self._stack.enter_context(context)

    def _filled_in(self, text: str) -> str:
        for name, value in self._stands_for.items():
            text = text.replace(name, value)
        assert "<" not in text, "a placeholder is left"
        return text


def _revealed(wire: Wire, token_ids: list[dict[str, str]]) -> list[str | None]:
    """Return the access tokens; `None` for one whose key a busy machine derives late."""
    answer = wire.call("POST", "/v1/tokens/batch-get", {"tokens": token_ids})
    if answer.status == 503:  # late for each of them
        return [None] * len(token_ids)
    assert answer.status == 200, answer
    results = answer.body["results"]
    assert {one["problem"]["code"] for one in results if one.get("problem")} <= {"key_unavailable"}, results
    return [one["token"]["access_token"] if one.get("token") else None for one in results]


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a console with the output below it."""
    for typed in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, output = typed.partition("\n")
        yield command, output


def comparable(output: str) -> str:
    """Return the output without durations, and without the column widths that depend on them."""
    return re.sub(" {2,}", "  ", _TIMES.sub(r"\1", without_progress(output).strip("\n")))


def _operator(
    rows: Rows, folder: Path, serve: Serve, settings: Mapping[str, str], stands_for: Mapping[str, str]
) -> Operator:
    home = new_home(folder, **{**settings, **rows.settings(), "REWRAP_ON_READ": "false"})
    return Operator(home=home, serve=serve, stands_for=stands_for)


def _fill(rows: Rows, operator: Operator, sealed: list[Row]) -> None:
    rows.insert(sealed)
    for row in sealed:
        operator.holds[row["user_id"], row["provider"], row["service_type"]] = access_of(row["id"])


def _schemes(rows: Rows) -> set[str | None]:
    return {row["encryption_scheme"] for row in rows.rows().values()}


def test_a_new_master_key(sqlite: SqliteRows, tmp_path: Path, serve: Serve) -> None:
    stands_for = {"<key of version 1>": KEYS[1]}
    with _operator(sqlite, tmp_path, serve, key_settings(1), stands_for) as operator:
        _fill(sqlite, operator, _rows(local_encryption(1)))
        operator.follow("A new master key")
        assert _schemes(sqlite) == {"local:v2"}
        assert KEYS[1] not in (tmp_path / ".env").read_text(), "the old key is out"
        assert operator.store("cd613e30-d8f1-4adf-91b7-584a2265b1f5", "new") == "aes256-gcm-v2"


def test_from_the_master_key_to_kms(supabase: SupabaseStack, kms: Kms, tmp_path: Path, serve: Serve) -> None:
    rows = SupabaseRows(supabase)
    settings = kms.environment() | {"USE_KMS": "false", "KMS_KEY_ID": ""} | key_settings(1)
    with _operator(rows, tmp_path, serve, settings, {ARN_A: kms.key_arn}) as operator:
        _fill(rows, operator, _rows(local_encryption(1)))
        operator.follow("From the master key to KMS")
        assert _schemes(rows) == {f"kms:{kms.key_arn}"}
        assert KEYS[1] not in (tmp_path / ".env").read_text(), "the master key is out"
        assert operator.store("cd613e30-d8f1-4adf-91b7-584a2265b1f5", "new") == "kms"


def test_from_one_kms_key_to_another(kms: Kms, sqlite: SqliteRows, tmp_path: Path, serve: Serve) -> None:
    other = kms.create_key()
    with _operator(sqlite, tmp_path, serve, kms.environment(), {ARN_A: kms.key_arn, ARN_B: other}) as operator:
        _fill(sqlite, operator, _rows(encryption(kms.environment())))
        operator.follow("From one KMS key to another")
        assert _schemes(sqlite) == {f"kms:{other}"}
        kms.disable(kms.key_arn)
        operator._restart()  # noqa: SLF001  empties the cache
        operator.require_every_token()


def test_leaving_kms(kms: Kms, sqlite: SqliteRows, tmp_path: Path, serve: Serve) -> None:
    stands_for = {"<key of version 1>": KEYS[1], ARN_A: kms.key_arn}
    with _operator(sqlite, tmp_path, serve, kms.environment() | {"TOKEN_ENCRYPTION_KEY": ""}, stands_for) as operator:
        _fill(sqlite, operator, _rows(encryption(kms.environment())))
        operator.follow("Leaving KMS")
        assert _schemes(sqlite) == {"local:v1"}
        kms.faults.down()
        operator.require_every_token()


def test_from_pulseplans_formats(sqlite: SqliteRows, tmp_path: Path, serve: Serve) -> None:
    with _operator(sqlite, tmp_path, serve, key_settings(1), {}) as operator:
        old = pulseplan_rows()
        _fill(sqlite, operator, rows_under_first(TOKENS - len(old)))
        sqlite.insert(row for row, _ in old)
        for row, secret in old:
            operator.holds[row["user_id"], row["provider"], row["service_type"]] = secret
        operator.follow("From PulsePlan's formats")
        assert _schemes(sqlite) == {"local:v1"}


def _rows(service: EncryptionService) -> list[Row]:
    return rows_of_users(service, TOKENS, users=10)


def test_the_requests_to_kms_are_those_of_the_table(kms: Kms, sqlite: SqliteRows, tmp_path: Path) -> None:
    table = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([0-9])", section("Running it"), re.MULTILINE)
    stated = {(source, target): int(requests) for source, target, requests in table}
    rows, other = 40, kms.create_key()
    to_kms = sqlite.settings() | key_settings(1) | kms.environment()
    sqlite.insert(rows_under_first(rows))

    def requests_for_each_row(settings: dict[str, str]) -> int:
        kms.forget_requests()
        assert rewrap(folder=tmp_path, settings=settings).exit_code == 0
        # one more request proves the primary, and the rows before the first answer cost more
        return len(kms.operations()) // rows

    assert requests_for_each_row(to_kms) == stated["the master key", "KMS"]
    to_other = to_kms | {"KMS_KEY_ID": other, "KMS_PREVIOUS_KEY_IDS": f'["{kms.key_arn}"]'}
    assert requests_for_each_row(to_other) == stated["KMS", "another key of KMS"]
    assert requests_for_each_row(to_other | {"USE_KMS": "false"}) == stated["KMS", "the master key"]


def test_the_durations_and_rates_on_the_page_are_those_of_the_code() -> None:
    assert f"{RETRY_SECONDS / 60:.0f}" == "5"
    assert "for five minutes at most" in section("What it reports")
    assert f"at {ROWS_PER_SECOND:.0f} rows a second" in section("Running it")


def test_every_line_of_the_summary_is_explained() -> None:
    [summary] = [block for _, block in steps("From one KMS key to another") if "\ndue " in block]
    printed = re.findall(r"^([a-z ]+?)  +[0-9]", summary.partition("\n\n")[0], re.MULTILINE)
    explained = re.findall(
        r"^\| `([a-z ]+)` \| (?!nothing|something|it could)", section("What it reports"), re.MULTILINE
    )
    assert set(printed) - {"seconds"} <= set(explained)
    assert len(printed) >= 7


def test_wrong_output_on_the_page_is_noticed(sqlite: SqliteRows, tmp_path: Path, serve: Serve) -> None:
    with (
        _operator(sqlite, tmp_path, serve, key_settings(1), {}) as operator,
        pytest.raises(AssertionError, match="status"),
    ):
        operator._type("$ token-vault encryption status\nAll is well.\n")  # noqa: SLF001  one command of a page
