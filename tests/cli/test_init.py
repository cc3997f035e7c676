"""`token-vault init`: create the files of a first start once, and never change them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.process.home import Home, files_of, initialised_home, new_master_key, run, token_vault
from tests.support.process.server import Serve
from tests.support.stack.loopback import free_port

ENV = ".env"
SERVICE_KEYS = "data/service-keys.json"
_KEY = re.compile(r"ptv_[A-Za-z0-9_-]{43}")


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def _setting(folder: Path, name: str) -> str:
    lines = (folder / ENV).read_text().splitlines()
    return next(line.partition("=")[2] for line in lines if line.startswith(f"{name}="))


def _curl_lines(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("curl ")]


def test_an_empty_folder_gets_a_private_env_with_a_32_byte_key(tmp_path: Path) -> None:
    done = token_vault("init", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert _mode(tmp_path / ENV) == 0o600
    assert len(base64.b64decode(_setting(tmp_path, "TOKEN_ENCRYPTION_KEY"), validate=True)) == 32


def test_a_new_store_reads_no_pulseplan_format(tmp_path: Path) -> None:
    initialised_home(tmp_path)
    assert _setting(tmp_path, "ALLOW_LEGACY_FORMATS") == "false"


def test_a_secret_that_comes_from_a_file_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(new_master_key())
    settings = {"TOKEN_ENCRYPTION_KEY_FILE": "key"}
    done = token_vault("init", folder=tmp_path, settings=settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert "TOKEN_ENCRYPTION_KEY=" not in (tmp_path / ENV).read_text()
    assert _setting(tmp_path, "AUDIT_KEY")
    assert token_vault("doctor", folder=tmp_path, settings=settings).returncode == 0


def test_every_folder_gets_different_keys(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        home = initialised_home(tmp_path / name)
        made += [_setting(home.folder, "TOKEN_ENCRYPTION_KEY"), home.service_key]
    assert len(set(made)) == 4


def test_an_empty_folder_gets_a_private_file_with_one_service_key(tmp_path: Path) -> None:
    home = initialised_home(tmp_path)
    (entry,) = json.loads((tmp_path / SERVICE_KEYS).read_text())
    assert entry["sha256"] == hashlib.sha256(home.service_key.encode()).hexdigest()
    assert _mode(tmp_path / SERVICE_KEYS) == 0o600
    assert _setting(tmp_path, "SERVICE_KEYS_FILE") == SERVICE_KEYS


def test_the_files_are_private_under_every_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        token_vault("init", folder=tmp_path)
    finally:
        os.umask(before)
    assert _mode(tmp_path / ENV) == 0o600
    assert _mode(tmp_path / SERVICE_KEYS) == 0o600


def test_the_service_key_is_shown_alone_and_in_three_curl_lines(tmp_path: Path) -> None:
    printed = token_vault("init", folder=tmp_path).stdout
    (key,) = set(_KEY.findall(printed))
    assert [line.strip() for line in printed.splitlines()].count(key) == 1
    assert len(_curl_lines(printed)) == 3
    assert all(key in line for line in _curl_lines(printed))
    assert len(_KEY.findall(printed)) == 4


def test_the_master_key_is_not_shown(tmp_path: Path) -> None:
    printed = token_vault("init", folder=tmp_path).stdout
    assert _setting(tmp_path, "TOKEN_ENCRYPTION_KEY") not in printed


def test_the_service_key_itself_is_stored_nowhere(tmp_path: Path) -> None:
    home = initialised_home(tmp_path)
    stored = files_of(tmp_path)
    assert {ENV, SERVICE_KEYS} <= stored.keys()
    assert not [name for name, (content, _) in stored.items() if home.service_key.encode() in content]


def test_a_second_run_prints_nothing_and_changes_nothing(tmp_path: Path) -> None:
    token_vault("init", folder=tmp_path)
    before = files_of(tmp_path)
    again = token_vault("init", folder=tmp_path)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert files_of(tmp_path) == before


def test_existing_service_keys_are_kept(tmp_path: Path) -> None:
    home = initialised_home(tmp_path)
    before = files_of(tmp_path)[SERVICE_KEYS]
    (tmp_path / ENV).unlink()
    again = token_vault("init", folder=tmp_path, settings=dict(home.settings))
    assert again.returncode == 0
    assert files_of(tmp_path)[SERVICE_KEYS] == before
    assert not _KEY.search(again.stdout)


def test_an_existing_env_is_kept(tmp_path: Path) -> None:
    (tmp_path / ENV).write_text(f"TOKEN_ENCRYPTION_KEY={base64.b64encode(bytes(32)).decode()}\n")
    before = files_of(tmp_path)
    done = token_vault("init", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert files_of(tmp_path) == before


def test_tokens_without_their_master_key_stop_init(tmp_path: Path) -> None:
    """A new key beside an old database would make every stored token unreadable, and look like success."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "vault.db").write_bytes(b"rows")
    before = files_of(tmp_path)
    done = token_vault("init", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "master key" in done.stderr
    assert files_of(tmp_path) == before


def _paste(lines: list[str], folder: Path) -> CompletedProcess[str]:
    """Run the lines in bash unchanged; curl's configuration file makes it print the status of each answer."""
    (folder / ".curlrc").write_text('silent\nshow-error\nnoproxy = "*"\nwrite-out = "\\n%{http_code}\\n"\n')
    return run("bash", folder=folder, settings={"HOME": str(folder)}, text="\n".join(lines) + "\n")


@pytest.mark.skipif(shutil.which("curl") is None, reason="the printed lines need curl")
@pytest.mark.skipif(shutil.which("bash") is None, reason="the printed lines need bash")
def test_the_printed_lines_work_unchanged_in_bash(tmp_path: Path, serve: Serve) -> None:
    settings = {"PORT": str(free_port())}
    printed = token_vault("init", folder=tmp_path, settings=settings).stdout
    with serve(Home(folder=tmp_path, service_key="", settings=settings), installed=True):
        pasted = _paste(_curl_lines(printed), tmp_path)
    assert (pasted.returncode, pasted.stderr) == (0, "")
    answers = pasted.stdout.splitlines()
    assert answers[1::2] == ["201", "200", "200"]
    stored, revealed, rotated = (json.loads(line) for line in answers[0::2])
    assert revealed["access_token"] == "1234~my-canvas-token"
    assert stored["version"] == revealed["version"] == rotated["version"] - 1


def test_tokens_outlive_a_restart(tmp_path: Path, serve: Serve) -> None:
    home = initialised_home(tmp_path)
    path = "/v1/users/cd613e30-d8f1-4adf-91b7-584a2265b1f5/tokens/canvas"
    with serve(home) as server:
        with server.client() as client:
            assert client.put(path, json={"access_token": "kept"}).status_code == 201
        server.stop()
    token_vault("init", folder=tmp_path, settings=dict(home.settings))
    with serve(home) as server, server.client() as client:
        assert client.get(path).json()["access_token"] == "kept"
