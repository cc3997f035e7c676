"""`<NAME>_FILE` names a file that holds a secret setting."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from app.config import audit, listening, settings, source
from app.config.audit import AuditReaderSettings
from app.config.secret_files import MAXIMUM_FILE_BYTES, file_fields
from app.config.settings import Settings, SettingsError, load_settings
from app.config.source import EnvironmentSettings, loaded
from tests.support.security.keys import MASTER_KEY, OTHER_MASTER_KEY

CANARY = "CANARY-secret-value"
VALUES = {
    "TOKEN_ENCRYPTION_KEY": MASTER_KEY,
    "TOKEN_ENCRYPTION_PREVIOUS_KEYS": f'{{\n  "2": "{OTHER_MASTER_KEY}"\n}}',
    "AUDIT_KEY": MASTER_KEY,
    "AUDIT_PREVIOUS_KEYS": f'["{OTHER_MASTER_KEY}"]',
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "aws/secret+key",
}
NEEDED = {"USER_JWT_SECRET": {"USER_JWT_ISSUER": "https://issuer.example"}}
SECRETS = sorted(name.upper() for name in file_fields(Settings))


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    umask = os.umask(0o022)
    yield
    os.umask(umask)


def _set(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def _refusal(monkeypatch: pytest.MonkeyPatch, path: Path | str) -> str:
    """Return the one line that refuses this file of the master key."""
    _set(monkeypatch, TOKEN_ENCRYPTION_KEY_FILE=str(path))
    with pytest.raises(SettingsError) as caught:
        load_settings()
    line = str(caught.value)
    assert line.startswith("TOKEN_ENCRYPTION_KEY_FILE: ")
    assert "CANARY" not in line
    assert str(path) not in line
    assert "\n" not in line
    assert caught.value.__cause__ is None
    return line


def test_the_secrets_are_those_that_must_not_be_shown() -> None:
    assert set(SECRETS) >= {*VALUES, "SUPABASE_SERVICE_KEY", "AWS_SESSION_TOKEN"}
    assert "SERVICE_KEYS" not in SECRETS, "its file has a setting of its own, and is read again when it changes"


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_from_a_file_is_as_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    values = {**VALUES, name: VALUES.get(name, MASTER_KEY), **NEEDED.get(name, {})}
    _set(monkeypatch, **values)
    from_environment = load_settings()
    file = tmp_path / "secret"
    file.write_text(values[name] + "\n")
    monkeypatch.delenv(name)
    _set(monkeypatch, **{f"{name}_FILE": str(file)})
    assert load_settings() == from_environment
    assert getattr(from_environment, name.lower())


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"a master key with spaces, kept \n", "a master key with spaces, kept "),
        (b"dev-only key, which is no base64\r\n\r\n", "dev-only key, which is no base64"),
        (b"\xef\xbb\xbfdev-only key, which is no base64", "dev-only key, which is no base64"),
        ("ein Schlüssel aus Wörtern".encode(), "ein Schlüssel aus Wörtern"),
        (b"k" * MAXIMUM_FILE_BYTES, "k" * MAXIMUM_FILE_BYTES),
    ],
)
def test_only_line_breaks_at_the_end_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes, secret: str
) -> None:
    (tmp_path / "key").write_bytes(content)
    _set(monkeypatch, TOKEN_ENCRYPTION_KEY_FILE="key")
    key = load_settings().token_encryption_key
    assert key is not None
    assert key.get_secret_value() == secret


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b" \t\n", "is empty"),
        (CANARY.encode() * (MAXIMUM_FILE_BYTES // len(CANARY) + 1), "is over 64 KiB"),
        (CANARY.encode() + b"\xff\xfe", "is not UTF-8 text"),
        (CANARY.encode() + b"\0" + CANARY.encode(), "is not UTF-8 text"),
        (CANARY.encode("utf-16"), "is not UTF-8 text"),
    ],
)
def test_a_wrong_content_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "key").write_bytes(content)
    assert reason in _refusal(monkeypatch, tmp_path / "key")


@pytest.mark.parametrize(
    ("mode", "folder", "reason"),
    [(0o620, 0o700, "write to the file"), (0o602, 0o700, "write to the file"), (0o600, 0o770, "write to its folder")],
)
def test_a_file_that_others_can_change_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: int, folder: int, reason: str
) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key").write_text(CANARY)
    (tmp_path / "secrets" / "key").chmod(mode)
    (tmp_path / "secrets").chmod(folder)
    assert f"other users can {reason}" in _refusal(monkeypatch, tmp_path / "secrets" / "key")


def test_a_sticky_folder_and_a_file_that_others_may_read_serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key").write_text(MASTER_KEY)
    (tmp_path / "secrets" / "key").chmod(0o444)
    (tmp_path / "secrets").chmod(0o1777)
    _set(monkeypatch, TOKEN_ENCRYPTION_KEY_FILE="secrets/key")
    assert load_settings().token_encryption_key is not None


def _directory(path: Path) -> None:
    path.mkdir()


def _circle(path: Path) -> None:
    path.symlink_to(path)


def _unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path.name)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda _: None, "No such file"),
        (_directory, "not a regular file"),
        (_circle, "symbolic links"),
        (os.mkfifo, "not a regular file"),
        (_unix_socket, "cannot be read"),
    ],
    ids=["nothing", "directory", "circle of links", "FIFO", "socket"],
)
def test_a_path_without_a_file_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(tmp_path / "key")
    assert reason in _refusal(monkeypatch, tmp_path / "key")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(CANARY)
    (tmp_path / "key").chmod(0)
    assert "Permission denied" in _refusal(monkeypatch, tmp_path / "key")


@pytest.mark.parametrize("secret", [CANARY, CANARY * 500], ids=["short", "too long for a path"])
def test_a_secret_given_as_the_path_is_not_shown(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    _refusal(monkeypatch, secret)


def test_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not a regular file" in _refusal(monkeypatch, "/dev/zero")


def test_links_are_followed_as_kubernetes_makes_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "key").write_text(MASTER_KEY)
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "key").symlink_to("..data/key")
    _set(monkeypatch, TOKEN_ENCRYPTION_KEY_FILE="key")
    assert load_settings().keyring() is not None


@pytest.mark.parametrize("places", ["environment", "env file", "env file and environment", "environment and env file"])
def test_a_secret_and_its_file_together_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, places: str
) -> None:
    (tmp_path / "key").write_text(f"{CANARY} in a file")
    first, _, second = places.partition(" and ")
    for name, value, place in (
        ("TOKEN_ENCRYPTION_KEY", f"{CANARY} as it is", first),
        ("TOKEN_ENCRYPTION_KEY_FILE", "key", second or first),
    ):
        if place == "environment":
            _set(monkeypatch, **{name: value})
        else:
            with (tmp_path / ".env").open("a") as file:
                file.write(f"{name}={value}\n")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value) == ("TOKEN_ENCRYPTION_KEY and TOKEN_ENCRYPTION_KEY_FILE are both set; set one of them")


def test_every_wrong_file_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, TOKEN_ENCRYPTION_KEY_FILE="missing", AUDIT_KEY_FILE="/dev/null", AUDIT_KEY=CANARY)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    line = str(caught.value)
    assert all(name in line for name in ("TOKEN_ENCRYPTION_KEY_FILE: ", "AUDIT_KEY and AUDIT_KEY_FILE"))
    assert "CANARY" not in line


def test_empty_variables_are_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, TOKEN_ENCRYPTION_KEY=MASTER_KEY, TOKEN_ENCRYPTION_KEY_FILE="", AUDIT_KEY_FILE="")
    assert load_settings().audit_key is None


def test_a_wrong_secret_in_a_file_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(MASTER_KEY)
    (tmp_path / "previous").write_text(f'{{"2": "{CANARY}"')
    _set(monkeypatch, TOKEN_ENCRYPTION_KEY_FILE="key", TOKEN_ENCRYPTION_PREVIOUS_KEYS_FILE="previous")
    with pytest.raises(SettingsError, match="TOKEN_ENCRYPTION_PREVIOUS_KEYS: must be a JSON object") as caught:
        load_settings()
    assert "CANARY" not in str(caught.value)


def test_the_env_file_may_name_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text(OTHER_MASTER_KEY)
    (tmp_path / "ours").write_text(MASTER_KEY)
    (tmp_path / ".env").write_text("TOKEN_ENCRYPTION_KEY_FILE=theirs\n")
    key = load_settings().token_encryption_key
    assert key is not None
    assert key.get_secret_value() == OTHER_MASTER_KEY
    _set(monkeypatch, TOKEN_ENCRYPTION_KEY_FILE="ours")
    key = load_settings().token_encryption_key
    assert key is not None
    assert key.get_secret_value() == MASTER_KEY


def test_an_auditor_may_keep_the_key_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(MASTER_KEY)
    _set(monkeypatch, AUDIT_KEY_FILE="key")
    assert len(loaded(AuditReaderSettings).keys()) == 1


def test_every_class_of_settings_reads_files() -> None:
    classes = {
        value
        for module in (audit, listening, settings, source)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, BaseSettings) and value is not BaseSettings
    }
    assert len(classes) > 3
    assert [kind.__name__ for kind in classes if not issubclass(kind, EnvironmentSettings)] == []
