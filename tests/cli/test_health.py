"""`token-vault health` beside vaults with and without TLS, and what it makes of one that stands still."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.support.process.certificates import new_authority
from tests.support.process.home import Home, new_home, run, token_vault
from tests.support.process.started import started
from tests.support.stack.loopback import LOOPBACK
from tests.support.stack.reaper import Reaper

ALIVE = (0, "ok\n", "")


def _health(home: Home, *options: str, **settings: str) -> tuple[int, str, str]:
    done = token_vault("health", *options, folder=home.folder, settings={**home.settings, **settings})
    return done.returncode, done.stdout, done.stderr


def _home(folder: Path, kind: str) -> Home:
    if kind == "plain":
        return new_home(folder)
    # long expired, and of a CA that nobody knows: a reason to renew it, and none to restart the process
    certificate, key = new_authority(folder, "servers").issue(folder, "vault", days=-1)
    home = new_home(folder, TLS_CERT_FILE=str(certificate), TLS_KEY_FILE=str(key))
    if kind == "TLS":
        return home
    clients = new_authority(folder, "clients")
    return Home(folder, home.service_key, {**home.settings, "TLS_CLIENT_CA_FILE": str(clients.file)})


@pytest.mark.parametrize("kind", ["plain", "TLS", "TLS with client certificates"])
def test_it_follows_the_settings_and_tells_a_vault_that_stands_still_or_is_gone(
    tmp_path: Path, stack_reaper: Reaper, kind: str
) -> None:
    home = _home(tmp_path, kind)
    with started(home, reaper=stack_reaper) as vault:
        assert _health(home) == ALIVE
        assert _health(home, HOST="0.0.0.0") == ALIVE  # noqa: S104  as what listens is told
        os.kill(vault.pid, signal.SIGSTOP)
        try:
            code, _, stands_still = _health(home)
        finally:
            os.kill(vault.pid, signal.SIGCONT)
        assert (code, len(stands_still.splitlines())) == (1, 1)
        assert _health(home) == ALIVE
        if kind != "plain":
            assert _health(home, TLS_CERT_FILE="", TLS_KEY_FILE="", TLS_CLIENT_CA_FILE="")[0] == 1, "it speaks TLS"
        assert "Traceback" not in vault.output
    code, _, gone = _health(home)
    assert (code, gone) == (1, _no_vault(home, "Connection refused"))


def test_it_needs_no_secret_and_minds_no_other_setting(tmp_path: Path, stack_reaper: Reaper) -> None:
    home = new_home(tmp_path)
    with started(home, reaper=stack_reaper):
        done = token_vault(
            "health", folder=tmp_path, settings={"PORT": home.settings["PORT"], "SERVICE_KEYS": "broken"}
        )
    assert done.returncode == 0


NO_HOST = "is neither an address nor a host's name"
WRONG: list[tuple[list[str], dict[str, str], str]] = [
    ([], {"PORT": "wrong"}, "PORT: input should be a valid integer, unable to parse string as an integer"),
    ([], {"TLS_KEY_FILE": "vault.key"}, "TLS_CERT_FILE and TLS_KEY_FILE are needed together, or neither"),
    ([], {"TLS_CLIENT_CA_FILE": "callers.pem"}, "TLS_CERT_FILE is needed because TLS_CLIENT_CA_FILE is set"),
    ([], {"HOST": "a..b"}, f"HOST: {NO_HOST}"),
    (["--host", "a..b"], {}, f"--host {NO_HOST}"),
    (["--host", "a b"], {}, f"--host {NO_HOST}"),
    (["--port", "0"], {}, "Invalid value for '--port': 0 is not in the range 1<=x<=65535."),
    (["--nothing"], {}, "No such option '--nothing'."),
]


@pytest.mark.parametrize(("options", "settings", "message"), WRONG)
def test_whatever_is_wrong_is_one_line_and_1_since_docker_keeps_2_for_itself(
    tmp_path: Path, options: list[str], settings: dict[str, str], message: str
) -> None:
    assert _health(new_home(tmp_path), *options, **settings) == (1, "", f"Error: {message}\n")


@pytest.mark.parametrize("kind", ["plain", "TLS", "TLS with client certificates"])
def test_what_says_nothing_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    home = _home(tmp_path, kind)
    with closing(socket.create_server((LOOPBACK, int(home.settings["PORT"])))):
        assert _health(home) == (1, "", _no_vault(home, "no answer in time"))


@pytest.mark.parametrize("begin", [b"HTTP/1.1 200", b""], ids=["a beginning of an answer", "bytes"])
def test_what_says_a_byte_now_and_then_is_not_waited_for_either(tmp_path: Path, begin: bytes) -> None:
    home = new_home(tmp_path)
    ended = threading.Event()

    def trickle(server: socket.socket) -> None:
        connection, _ = server.accept()
        with closing(connection), suppress(OSError):
            connection.sendall(begin)
            while not ended.wait(0.4):
                connection.sendall(b"x")

    with closing(socket.create_server((LOOPBACK, int(home.settings["PORT"])))) as server:
        thread = threading.Thread(target=trickle, args=(server,))
        thread.start()
        try:
            assert _health(home) == (1, "", _no_vault(home, "no answer in time"))
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "what answers is no HTTP"),
        (b"HTTP/1.1 2000 OK\r\n", "what answers is no HTTP"),
        (b"HTTP/1.1 200" + b"0" * 1_000, "what answers is no HTTP"),
        (b"", "what answers is no HTTP"),
        (b"HTTP/1.1 503 Service Unavailable\r\n", "/healthz answers 503"),
    ],
)
def test_what_answers_otherwise_is_told_in_a_few_words(tmp_path: Path, answer: bytes, words: str) -> None:
    home = new_home(tmp_path)

    def reply(server: socket.socket) -> None:
        connection, _ = server.accept()
        with closing(connection):
            assert connection.recv(1_000).startswith(b"GET /healthz HTTP/1.1\r\n")
            connection.sendall(answer)

    with closing(socket.create_server((LOOPBACK, int(home.settings["PORT"])))) as server:
        thread = threading.Thread(target=reply, args=(server,))
        thread.start()
        assert _health(home) == (1, "", _no_vault(home, words))
        thread.join()


def _no_vault(home: Home, words: str) -> str:
    return f"Error: no vault answers at {LOOPBACK}, port {home.settings['PORT']}: {words}\n"


def test_it_imports_next_to_nothing_for_it_runs_every_few_seconds(tmp_path: Path) -> None:
    code = "import sys, app.cli.group, app.cli.health; print(*{name.partition('.')[0] for name in sys.modules})"
    imported = run(sys.executable, "-c", code, folder=tmp_path).stdout.split()
    assert {"click", "pydantic_settings"} <= set(imported)
    assert not {"structlog", "cryptography", "uvicorn", "fastapi", "apsw", "boto3"} & set(imported)
