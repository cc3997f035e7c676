"""`token-vault encryption status` and `token-vault keys retire`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from uuid import uuid4

import pytest

from tests.support.process.home import new_home, require_refusal, token_vault
from tests.support.process.server import Serve
from tests.support.rewrap.command import rewrap
from tests.support.rewrap.stored_rows import (
    KEYS,
    Rows,
    SqliteRows,
    SupabaseRows,
    broken_rows,
    encryption,
    key_settings,
    local_encryption,
    pulseplan_rows,
    sealed_row,
)
from tests.support.stack.kms import Kms
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import raw_row

SECOND = key_settings(2, 1)
THIRD = key_settings(3, 1, 2)
USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"


def _status(folder: Path, settings: dict[str, str], *arguments: str) -> CompletedProcess[str]:
    return token_vault("encryption", "status", *arguments, folder=folder, settings=settings)


def _retire(version: int, folder: Path, settings: dict[str, str]) -> CompletedProcess[str]:
    return token_vault("keys", "retire", str(version), folder=folder, settings=settings)


def _counted(folder: Path, settings: dict[str, str]) -> dict[str, Any]:
    done = _status(folder, settings, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    body: dict[str, Any] = json.loads(done.stdout)
    return body


def _mixed(rows: Rows, kms: Kms) -> dict[str, str]:
    """Insert rows of every format, and return the settings that read all of them."""
    settings = rows.settings() | SECOND | kms.environment()
    rows.insert(
        [
            *(sealed_row(local_encryption(1)) for _ in range(3)),
            *(sealed_row(local_encryption(2)) for _ in range(2)),
            *(sealed_row(encryption(settings)) for _ in range(4)),
            *(row for row, _ in pulseplan_rows()),
            raw_row(user_id=USER, access_token='{"algorithm":"KMS"}'),
            sealed_row(local_encryption(1)) | {"encryption_scheme": None},
            broken_rows()["nonsense"],
        ]
    )
    return settings


def test_every_format_is_counted_as_the_api_counts_it(
    kms: Kms, sqlite: SqliteRows, tmp_path: Path, serve: Serve
) -> None:
    settings = _mixed(sqlite, kms)
    old = len(pulseplan_rows())
    arn = kms.key_arn
    body = _counted(tmp_path, settings)
    by_scheme = {(one["scheme"], *one["materials"]): one["tokens"] for one in body["schemes"]}
    assert by_scheme == {
        ("local:v1",): 3,
        ("local:v2",): 2,
        (f"kms:{arn}",): 4,
        (None, "pulseplan-local:v1"): old,
        (None, "pulseplan-kms"): 1,
        (None, "local:v1"): 1,
        (None, "local:v1", "unknown"): 1,
    }
    assert body["key_versions"] == [
        {"version": 1, "tokens": 5 + old, "refused_above": 5 + old},
        {"version": 2, "tokens": 2, "refused_above": 7 + old},
    ]
    assert {name: body[name] for name in ("primary_scheme", "tokens", "due", "unknown")} == {
        "primary_scheme": f"kms:{arn}",
        "tokens": 12 + old,
        "due": 8 + old,
        "unknown": 2,
    }
    assert body["refused_without_legacy_formats"] == old
    home = new_home(tmp_path, **settings)
    with serve(home) as server, server.client() as client:
        assert client.get("/v1/encryption").json() == body


def test_the_table_holds_the_counts_and_no_secret(kms: Kms, rows: Rows, tmp_path: Path) -> None:
    settings = _mixed(rows, kms)
    old = len(pulseplan_rows())
    done = _status(tmp_path, settings)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [re.sub(" {2,}", "  ", line.strip()) for line in done.stdout.splitlines()]
    assert lines[0] == f"New tokens are encrypted under kms:{kms.key_arn}."
    for line in (
        "3  local:v1  due",
        f"4  kms:{kms.key_arn}  current",
        f"{old}  none; looks like pulseplan-local:v1  due",
        "1  none; looks like local:v1 and unknown  due",
        f"{12 + old}  total  {8 + old} due for rewrap",
        f"version 1  {5 + old}  reads  MIN_KEY_VERSION=2, {5 + old} in total",
        f"ALLOW_LEGACY_FORMATS=false would refuse {old} tokens.",
        "- Run `token-vault rewrap`: it rewraps the rows that are due.",
        "- 2 tokens of unknown format: `token-vault rewrap --dry-run` lists the unreadable rows.",
    ):
        assert line in lines, done.stdout
    secrets = [*KEYS.values(), *(value for name, value in settings.items() if name.startswith("SUPABASE_"))]
    assert [secret for secret in secrets if secret in done.stdout] == []


def test_after_a_rewrap_it_advises_to_retire_the_old_key(sqlite: SqliteRows, tmp_path: Path) -> None:
    settings = sqlite.settings() | SECOND
    sqlite.insert([sealed_row(local_encryption(1)) for _ in range(3)])
    assert "keys retire" not in _status(tmp_path, settings).stdout
    rewrap(folder=tmp_path, settings=settings)
    text = _status(tmp_path, settings).stdout
    assert "- No row is due." in text
    assert "- No token needs master key version 1: `token-vault keys retire 1`." in text
    assert "set ALLOW_LEGACY_FORMATS=false" in text


def test_a_missing_key_is_named(sqlite: SqliteRows, tmp_path: Path) -> None:
    sqlite.insert([sealed_row(local_encryption(1))])
    done = _status(tmp_path, sqlite.settings() | key_settings(2))
    assert re.search(r"version 1 +1 +missing", done.stdout)
    assert "Restore the master keys of version 1" in done.stdout


def test_the_key_behind_an_alias_is_unknown_while_kms_is_down(kms: Kms, sqlite: SqliteRows, tmp_path: Path) -> None:
    settings = sqlite.settings() | kms.environment() | {"KMS_KEY_ID": kms.alias}
    sqlite.insert([sealed_row(encryption(settings)) for _ in range(3)])
    assert _counted(tmp_path, settings)["due"] == 0
    kms.faults.down()
    done = _status(tmp_path, settings, "--json")
    body = json.loads(done.stdout)
    assert done.returncode == 1
    assert (body["primary_scheme"], body["due"], body["tokens"]) == (None, None, 3)
    assert done.stderr.startswith("Error: key_unavailable: KMS cannot be reached")
    done = _status(tmp_path, settings)
    assert "under a KMS key whose ARN is unknown" in done.stdout
    assert "due" not in done.stdout
    assert "current" not in done.stdout
    assert done.stderr.startswith("Error: key_unavailable: KMS cannot be reached")


def test_a_missing_database_is_exit_code_2(tmp_path: Path) -> None:
    settings = {"SQLITE_PATH": "elsewhere.db", **SECOND}
    for done in (_status(tmp_path, settings), _retire(1, tmp_path, settings)):
        require_refusal(done, 2, "SQLITE_PATH", "does not exist")
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_down_is_exit_code_2(supabase: SupabaseStack, tmp_path: Path) -> None:
    settings = SupabaseRows(supabase).settings() | SECOND
    supabase.stop_postgrest()
    for done in (_status(tmp_path, settings), _retire(1, tmp_path, settings)):
        require_refusal(done, 2, "store_unavailable")


def test_verify_counts_rows_that_claim_what_they_are_not(kms: Kms, rows: Rows, tmp_path: Path) -> None:
    settings = _mixed(rows, kms)
    honest = json.loads(_status(tmp_path, settings, "--json", "--verify").stdout)
    assert honest["disagreeing"] == 0
    assert {name: honest[name] for name in ("tokens", "unknown")} == {
        name: _counted(tmp_path, settings)[name] for name in ("tokens", "unknown")
    }
    rows.insert(
        [
            sealed_row(local_encryption(1)) | {"encryption_scheme": "local:v2"},
            sealed_row(local_encryption(2)) | {"encryption_scheme": f"kms:{kms.key_arn}"},
            pulseplan_rows()[0][0] | {"id": str(uuid4()), "service_type": "b", "encryption_scheme": "local:v2"},
        ]
    )
    assert _counted(tmp_path, settings)["tokens"] == honest["tokens"] + 3
    done = _status(tmp_path, settings, "--verify")
    assert done.returncode == 1
    assert "3 tokens whose row names another scheme" in done.stderr
    assert "local:v2; is local:v1" in done.stdout
    assert "local:v2; is pulseplan-local:v1" in done.stdout


# --- keys retire


def test_a_key_is_kept_while_a_row_hides_that_it_needs_it(rows: Rows, tmp_path: Path) -> None:
    settings = rows.settings() | SECOND
    rows.insert([sealed_row(local_encryption(2)), sealed_row(local_encryption(1)) | {"encryption_scheme": "local:v2"}])
    done = _retire(1, tmp_path, settings)
    assert done.returncode == 1
    assert "version 1 is still needed by 1 token" in done.stderr
    assert "1 token whose row names another scheme" in done.stderr


def test_a_version_is_kept_while_a_row_of_any_format_needs_it(rows: Rows, tmp_path: Path) -> None:
    settings = rows.settings() | SECOND
    old = pulseplan_rows()
    unmarked = sealed_row(local_encryption(1)) | {"encryption_scheme": None}
    half = sealed_row(local_encryption(2)) | {"encryption_scheme": None}
    half["refresh_token"] = sealed_row(local_encryption(1))["refresh_token"]  # one secret of two is enough
    rows.insert([sealed_row(local_encryption(1)), unmarked, half, *(row for row, _ in old)])
    before = rows.rows()
    done = _retire(1, tmp_path, settings)
    require_refusal(done, 1, f"version 1 is still needed by {3 + len(old)} tokens", "token-vault rewrap")
    assert rows.rows() == before

    rows.replace([sealed_row(local_encryption(1)), unmarked, *(row for row, _ in old)])
    assert rewrap(folder=tmp_path, settings=settings).exit_code == 0
    done = _retire(1, tmp_path, settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"None of {2 + len(old)} tokens needs master key version 1." in done.stdout
    assert _changes(done) == [
        "TOKEN_ENCRYPTION_PREVIOUS_KEYS: remove version 1; no other key is in it, so remove the setting",
        "MIN_KEY_VERSION=2: no token needs a lower version",
        "ALLOW_LEGACY_FORMATS=false: no token is in a PulsePlan format",
    ]
    assert "a proof only if no replica encrypts under version 1 any more" in " ".join(done.stdout.split())
    assert [key for key in KEYS.values() if key in done.stdout] == []
    left = rows.settings() | key_settings(2) | {"MIN_KEY_VERSION": "2", "ALLOW_LEGACY_FORMATS": "false"}
    assert rewrap("--dry-run", folder=tmp_path, settings=left).exit_code == 0
    assert _counted(tmp_path, left)["due"] == 0


def test_one_row_is_one_token(sqlite: SqliteRows, tmp_path: Path) -> None:
    """The PulsePlan format without a prefix means version 1."""
    row, _ = next((row, text) for row, text in pulseplan_rows() if not row["access_token"].startswith("v"))
    sqlite.insert([row])
    require_refusal(_retire(1, tmp_path, sqlite.settings() | SECOND), 1, "still needed by 1 token;")


def test_the_primary_version_is_kept(sqlite: SqliteRows, tmp_path: Path) -> None:
    require_refusal(_retire(2, tmp_path, sqlite.settings() | SECOND), 1, "version 2 is ENCRYPTION_KEY_VERSION")


def test_the_version_of_the_fallback_is_kept(kms: Kms, sqlite: SqliteRows, tmp_path: Path) -> None:
    settings = sqlite.settings() | key_settings(1) | kms.environment()
    sqlite.insert([sealed_row(encryption(settings)) for _ in range(2)])
    done = _retire(1, tmp_path, settings | {"KMS_FALLBACK_TO_LOCAL": "true"})
    require_refusal(done, 1, "KMS_FALLBACK_TO_LOCAL encrypts under it")
    kms.faults.down()
    done = _retire(1, tmp_path, settings)
    assert done.returncode == 0, "the command needs no KMS"
    assert _changes(done) == [
        "TOKEN_ENCRYPTION_KEY, ENCRYPTION_KEY_VERSION: remove both; KMS encrypts, and no token needs a master key",
        "ALLOW_LEGACY_FORMATS=false: no token is in a PulsePlan format",
    ]
    kms.faults.clear()
    done = token_vault("doctor", folder=tmp_path, settings=sqlite.settings() | kms.environment())
    assert "TOKEN_ENCRYPTION_KEY" not in done.stdout


def test_rows_of_unknown_format_keep_every_version(sqlite: SqliteRows, tmp_path: Path) -> None:
    settings = sqlite.settings() | SECOND
    nonsense = sealed_row(local_encryption(2)) | {"access_token": "nonsense", "encryption_scheme": None}
    for unknown in (nonsense, nonsense | {"access_token": "", "refresh_token": None}):
        sqlite.replace([unknown])
        require_refusal(_retire(1, tmp_path, settings), 1, "1 token of unknown format", "rewrap --dry-run")


def test_rows_under_a_strange_scheme_get_advice_that_helps(sqlite: SqliteRows, tmp_path: Path) -> None:
    settings = sqlite.settings() | SECOND
    row = sealed_row(local_encryption(1)) | {"encryption_scheme": "somebody's own"}
    sqlite.replace([row])
    text = _status(tmp_path, settings).stdout
    assert "somebody's own" in text
    assert "- 1 token with a scheme that the vault does not write: set their encryption_scheme to null" in text
    for misleading in ("of unknown format", "it rewraps the rows that are due"):
        assert misleading not in text
    strange = "1 token with a scheme that the vault does not write"
    require_refusal(_retire(1, tmp_path, settings), 1, strange, "`token-vault encryption status`", "to null")
    sqlite.replace([row | {"encryption_scheme": None}])
    assert rewrap(folder=tmp_path, settings=settings).exit_code == 0
    assert _retire(1, tmp_path, settings).returncode == 0


def test_a_version_in_the_middle_leaves_the_lower_ones(sqlite: SqliteRows, tmp_path: Path) -> None:
    sqlite.insert([sealed_row(local_encryption(1)), sealed_row(local_encryption(3))])
    done = _retire(2, tmp_path, sqlite.settings() | THIRD)
    assert done.returncode == 0
    assert _changes(done)[0] == "TOKEN_ENCRYPTION_PREVIOUS_KEYS: remove version 2; keep version 1"
    assert "MIN_KEY_VERSION" not in done.stdout, "version 1 is needed"


def test_under_kms_a_lower_version_replaces_the_retired_one(kms: Kms, sqlite: SqliteRows, tmp_path: Path) -> None:
    settings = sqlite.settings() | SECOND | kms.environment()
    sqlite.insert([sealed_row(local_encryption(1))])
    done = _retire(2, tmp_path, settings)
    assert _changes(done)[0].startswith("TOKEN_ENCRYPTION_KEY: set the key of version 1, set ENCRYPTION_KEY_VERSION=1")
    left = sqlite.settings() | key_settings(1) | kms.environment()
    assert rewrap(folder=tmp_path, settings=left).exit_code == 0


def test_a_version_that_is_not_configured_is_reported(sqlite: SqliteRows, tmp_path: Path) -> None:
    settings = sqlite.settings() | key_settings(2) | {"MIN_KEY_VERSION": "2", "ALLOW_LEGACY_FORMATS": "false"}
    done = _retire(1, tmp_path, settings)
    assert done.returncode == 0
    assert "These settings hold no key of version 1." in done.stdout
    assert "No setting is left to change." in done.stdout


@pytest.mark.parametrize("version", ["0", "-1", "v1", ""])
def test_a_version_is_a_number(tmp_path: Path, version: str) -> None:
    done = token_vault("keys", "retire", "--", version, folder=tmp_path, settings=SECOND)
    assert (done.returncode, done.stdout) == (2, "")


def _changes(done: CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return [line.strip() for line in done.stdout.splitlines() if line.startswith("  ")]
