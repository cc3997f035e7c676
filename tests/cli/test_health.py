"""`token-vault health` against vaults with and without TLS, stopped ones, and other servers."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from tests.support.process.certificates import new_authority
from tests.support.process.home import Home, new_home, run, token_vault
from tests.support.process.server import Serve
from tests.support.stack.loopback import LOOPBACK

ALIVE = (0, "ok\n", "")
KINDS = ("plain", "TLS", "TLS with client certificates")


def _health(home: Home, *options: str, **settings: str) -> tuple[int, str, str]:
    done = token_vault("health", *options, folder=home.folder, settings={**home.settings, **settings})
    return done.returncode, done.stdout, done.stderr


def _home(folder: Path, kind: str) -> Home:
    if kind == "plain":
        return new_home(folder)
    # expired, and of an unknown CA: no reason to restart the process
    certificate, key = new_authority(folder, "servers").issue(folder, "vault", days=-1)
    home = new_home(folder, TLS_CERT_FILE=str(certificate), TLS_KEY_FILE=str(key))
    if kind == "TLS":
        return home
    clients = new_authority(folder, "clients")
    return Home(folder, home.service_key, {**home.settings, "TLS_CLIENT_CA_FILE": str(clients.file)})


@pytest.mark.parametrize("kind", KINDS)
def test_a_running_vault_is_alive_and_a_stopped_one_is_not(tmp_path: Path, serve: Serve, kind: str) -> None:
    home = _home(tmp_path, kind)
    with serve(home) as vault:
        assert _health(home) == ALIVE
        assert _health(home, HOST="0.0.0.0") == ALIVE  # noqa: S104  a server's address
        assert _health(home, SERVICE_KEYS="broken", TOKEN_ENCRYPTION_KEY="") == ALIVE, "it reads no other setting"
        if kind == "plain":
            os.kill(vault.pid, signal.SIGSTOP)
            try:
                assert _health(home) == (1, "", _no_vault(home, "no answer in time"))
            finally:
                os.kill(vault.pid, signal.SIGCONT)
            assert _health(home) == ALIVE
        else:
            assert _health(home, TLS_CERT_FILE="", TLS_KEY_FILE="", TLS_CLIENT_CA_FILE="")[0] == 1, "it speaks TLS"
        assert "Traceback" not in vault.output
    assert _health(home) == (1, "", _no_vault(home, "Connection refused"))


NO_HOST = "is neither an address nor a host name"
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
def test_a_wrong_option_or_setting_is_exit_code_1_as_docker_reserves_2(
    tmp_path: Path, options: list[str], settings: dict[str, str], message: str
) -> None:
    assert _health(new_home(tmp_path), *options, **settings) == (1, "", f"Error: {message}\n")


def test_a_silent_or_slow_server_is_no_vault_after_the_deadline(tmp_path: Path) -> None:
    ended = threading.Event()

    def trickle(server: socket.socket, begin: bytes) -> None:
        connection, _ = server.accept()
        with closing(connection), suppress(OSError):
            connection.sendall(begin)
            while not ended.wait(0.4):
                connection.sendall(b"x")

    homes = []
    for name in (*KINDS, "bytes of a status line", "bytes of no status line"):
        (tmp_path / name).mkdir()
        homes.append(_home(tmp_path / name, name if name in KINDS else "plain"))
    # all at the same time, because each takes the whole deadline
    with ThreadPoolExecutor() as threads, ExitStack() as stack:
        stack.callback(ended.set)
        servers = [
            stack.enter_context(closing(socket.create_server((LOOPBACK, int(home.settings["PORT"]))))) for home in homes
        ]
        for server, begin in zip(servers[-2:], (b"HTTP/1.1 200", b""), strict=True):
            threads.submit(trickle, server, begin)
        answers = list(threads.map(_health, homes))
        ended.set()
    assert answers == [(1, "", _no_vault(home, "no answer in time")) for home in homes]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the answer is not HTTP"),
        (b"HTTP/1.1 2000 OK\r\n", "the answer is not HTTP"),
        (b"HTTP/1.1 200" + b"0" * 1_000, "the answer is not HTTP"),
        (b"", "the answer is not HTTP"),
        (b"HTTP/1.1 503 Service Unavailable\r\n", "/healthz answers 503"),
    ],
)
def test_another_answer_is_described(tmp_path: Path, answer: bytes, words: str) -> None:
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


def test_health_imports_few_libraries_because_it_runs_every_few_seconds(tmp_path: Path) -> None:
    code = "import sys, app.cli.group, app.cli.health; print(*{name.partition('.')[0] for name in sys.modules})"
    imported = run(sys.executable, "-c", code, folder=tmp_path).stdout.split()
    assert {"click", "pydantic_settings"} <= set(imported)
    assert not {"structlog", "cryptography", "uvicorn", "fastapi", "apsw", "boto3"} & set(imported)
