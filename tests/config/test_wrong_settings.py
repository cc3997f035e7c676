"""A wrong setting stops the start with one line that names it, never its value."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from tests.support.process.home import new_home, token_vault

VALUE = "sekrit"  # part of every wrong value
_LONG_KEY = base64.b64encode(f"{VALUE}-and-more-than-thirty-two-bytes".encode()).decode()

# one of each place that finds an error; tests/config/test_settings.py has every setting
WRONG = {
    "value of one setting": ("PORT", {"PORT": VALUE}),
    "JSON": ("TOKEN_ENCRYPTION_PREVIOUS_KEYS", {"TOKEN_ENCRYPTION_PREVIOUS_KEYS": f'{{"2": "{_LONG_KEY}"'}),
    "version as a name": (
        "TOKEN_ENCRYPTION_PREVIOUS_KEYS",
        {"TOKEN_ENCRYPTION_PREVIOUS_KEYS": f'{{"{_LONG_KEY}": "2"}}'},
    ),
    "short key": ("TOKEN_ENCRYPTION_KEY", {"TOKEN_ENCRYPTION_KEY": base64.b64encode(b"sekrit-15-bytes").decode()}),
    "missing setting": ("SUPABASE_URL", {"TOKEN_STORE": "supabase", "SUPABASE_SERVICE_KEY": f"{VALUE}-key"}),
    "service keys, not JSON": ("SERVICE_KEYS", {"SERVICE_KEYS": f'[{{"service": "{VALUE}"'}),
    "service keys, no hash": (
        "SERVICE_KEYS",
        {"SERVICE_KEYS": json.dumps([{"service": "a", "sha256": VALUE, "scopes": ["tokens:read"]}])},
    ),
    "service keys, unknown name": ("SERVICE_KEYS", {"SERVICE_KEYS": json.dumps([{VALUE: "a"}])}),
}


def _require_one_line(folder: Path, name: str, settings: dict[str, str]) -> None:
    done = token_vault("serve", folder=folder, settings={**new_home(folder).settings, **settings})
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert name in done.stderr
    for value in (VALUE, _LONG_KEY, base64.b64encode(VALUE.encode()).decode()[:7]):
        assert value not in done.stderr


@pytest.mark.parametrize(("name", "settings"), WRONG.values(), ids=WRONG)
def test_a_wrong_setting_stops_the_start(tmp_path: Path, name: str, settings: dict[str, str]) -> None:
    _require_one_line(tmp_path, name, settings)
    assert not (tmp_path / "data").exists()


def test_a_wrong_setting_in_the_env_file_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"LOG_LEVEL={VALUE}\n")
    _require_one_line(tmp_path, "LOG_LEVEL", {})


def test_an_env_file_that_is_not_text_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"LOG_LEVEL=\xff\xfe\n")
    _require_one_line(tmp_path, ".env", {})


def test_a_database_that_is_a_directory_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / VALUE).mkdir()
    _require_one_line(tmp_path, "SQLITE_PATH", {"SQLITE_PATH": VALUE})


def test_a_database_that_cannot_be_created_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / VALUE).write_text("a file, so nothing can be made below it")
    _require_one_line(tmp_path, "SQLITE_PATH", {"SQLITE_PATH": f"{VALUE}/vault.db"})


def test_a_file_that_is_no_database_stops_the_start_and_is_unchanged(tmp_path: Path) -> None:
    content = f"{VALUE}, and certainly no database\n".encode() * 100
    (tmp_path / VALUE).write_bytes(content)
    _require_one_line(tmp_path, "SQLITE_PATH", {"SQLITE_PATH": VALUE})
    assert (tmp_path / VALUE).read_bytes() == content


def test_several_wrong_settings_are_one_line_that_names_all(tmp_path: Path) -> None:
    done = token_vault("serve", folder=tmp_path, settings={"PORT": VALUE, "LOG_LEVEL": VALUE, "USE_KMS": VALUE})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert all(name in line for name in ("PORT", "LOG_LEVEL", "USE_KMS"))
    assert VALUE not in line
