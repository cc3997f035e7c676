"""TLS that ends in the vault: accepted and refused callers, and errors in the files."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

import pytest

from app.server.tls import Tls, TlsError
from tests.support.process.certificates import Authority, new_authority
from tests.support.process.home import Home, new_home, token_vault
from tests.support.process.server import Serve, Server
from tests.support.process.wire import ANSWER_SECONDS, token_path
from tests.support.stack.loopback import LOOPBACK

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"


@dataclass(frozen=True, slots=True)
class TlsVault:
    """A vault with a certificate of `servers` that requires client certificates of `clients`."""

    home: Home
    server: Server
    servers: Authority
    clients: Authority
    folder: Path

    @property
    def port(self) -> int:
        return int(self.home.settings["PORT"])

    def context(self, client: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.servers.file))
        if client is not None:
            context.load_cert_chain(*client)
        return context

    def get(self, path: str, context: ssl.SSLContext) -> tuple[int, dict[str, str]]:
        connection = HTTPSConnection(LOOPBACK, self.port, timeout=ANSWER_SECONDS, context=context)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self.home.service_key}"})
            answer = connection.getresponse()
            answer.read()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory, serve: Serve) -> Iterator[TlsVault]:
    folder = tmp_path_factory.mktemp("tls")
    servers, clients = new_authority(folder, "servers"), new_authority(folder, "clients")
    certificate, key = servers.issue(folder, "vault")
    home = new_home(folder, TLS_CERT_FILE=str(certificate), TLS_KEY_FILE=str(key))
    with serve(home, "--tls-client-ca", str(clients.file)) as server:
        yield TlsVault(home, server, servers, clients, folder)


def test_a_client_of_the_right_ca_is_served_with_hsts(vault: TlsVault) -> None:
    context = vault.context(vault.clients.issue(vault.folder, "right"))
    for path, status in (("/healthz", 200), ("/readyz", 200), (token_path(USER), 404)):
        answered, headers = vault.get(path, context)
        assert answered == status
        assert headers["strict-transport-security"] == "max-age=31536000"


def test_a_client_without_a_certificate_is_refused(vault: TlsVault) -> None:
    with pytest.raises(OSError, match=r"(?i)certificate required|handshake|eof|reset|closed"):
        vault.get("/healthz", vault.context())


def test_a_client_of_another_ca_is_refused(vault: TlsVault) -> None:
    other = new_authority(vault.folder, "others").issue(vault.folder, "wrong")
    with pytest.raises(OSError, match=r"(?i)unknown ca|handshake|eof|reset|closed"):
        vault.get("/healthz", vault.context(other))


def test_a_client_certificate_of_the_servers_ca_is_refused(vault: TlsVault) -> None:
    with pytest.raises(OSError, match=r"(?i)unknown ca|decrypt|handshake|eof|reset|closed"):
        vault.get("/healthz", vault.context(vault.servers.issue(vault.folder, "peer")))


def test_plain_http_is_refused(vault: TlsVault) -> None:
    connection = HTTPConnection(LOOPBACK, vault.port, timeout=ANSWER_SECONDS)
    connection.request("GET", "/healthz")
    with pytest.raises(OSError, match=r"(?i)reset|closed"):
        connection.getresponse()
    connection.close()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_a_version_before_1_2_is_refused_and_1_2_is_not(vault: TlsVault) -> None:
    pair = vault.clients.issue(vault.folder, "old")
    old, current = vault.context(pair), vault.context(pair)
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(OSError, match=r"(?i)version|handshake|eof|reset|closed"):
        vault.get("/healthz", old)
    current.maximum_version = ssl.TLSVersion.TLSv1_2
    assert vault.get("/healthz", current)[0] == 200


def test_handshakes_that_never_end_delay_nobody(vault: TlsVault) -> None:
    context = vault.context(vault.clients.issue(vault.folder, "other"))
    with ExitStack() as silent:
        for _ in range(20):
            silent.callback(socket.create_connection((LOOPBACK, vault.port)).close)
        assert vault.get("/healthz", context)[0] == 200


def test_refused_callers_leave_no_traceback(vault: TlsVault) -> None:
    assert "Traceback" not in vault.server.output


def test_several_workers_serve_without_client_certificates(tmp_path: Path, serve: Serve) -> None:
    servers = new_authority(tmp_path, "servers")
    certificate, key = servers.issue(tmp_path, "vault")
    home = new_home(tmp_path)
    with serve(home, "--tls-cert", str(certificate), "--tls-key", str(key), workers=2) as server:
        vault = TlsVault(home, server, servers, servers, tmp_path)
        assert {vault.get("/healthz", vault.context())[0] for _ in range(10)} == {200}


# --- Wrong files.


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    servers = new_authority(folder, "servers")
    certificate, key = servers.issue(folder, "vault")
    _, other_key = servers.issue(folder, "other")
    _, locked_key = servers.issue(folder, "locked", password=b"CANARY-password")
    text = folder / "text"
    text.write_text("CANARY, no certificate")
    return {
        "certificate": str(certificate),
        "key": str(key),
        "other key": str(other_key),
        "locked key": str(locked_key),
        "text": str(text),
        "missing": str(folder / "missing"),
        "folder": str(folder),
    }


@pytest.mark.parametrize(
    ("certificate", "key", "client_ca", "named"),
    [
        ("missing", "key", None, "TLS_CERT_FILE: cannot be read"),
        ("folder", "key", None, "TLS_CERT_FILE: cannot be read"),
        ("text", "key", None, "TLS_CERT_FILE: contains no certificate"),
        ("certificate", "missing", None, "TLS_KEY_FILE: cannot be read"),
        ("certificate", "text", None, "TLS_KEY_FILE: contains no private key"),
        ("certificate", "certificate", None, "TLS_KEY_FILE: contains no private key"),
        ("certificate", "other key", None, "TLS_KEY_FILE: does not belong"),
        ("certificate", "locked key", None, "TLS_KEY_FILE: the key has a password"),
        ("certificate", "key", "missing", "TLS_CLIENT_CA_FILE: cannot be read"),
        ("certificate", "key", "key", "TLS_CLIENT_CA_FILE: contains no certificate"),
    ],
)
def test_a_wrong_file_is_named_but_not_its_content(
    files: dict[str, str], certificate: str, key: str, client_ca: str | None, named: str
) -> None:
    ca = None if client_ca is None else Path(files[client_ca])
    with pytest.raises(TlsError, match=named) as caught:
        Tls(certificate=Path(files[certificate]), key=Path(files[key]), client_ca=ca).check()
    assert "CANARY" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"--tls-cert": "certificate", "--tls-key": "other key"}, "TLS_KEY_FILE: does not belong"),
        ({"--tls-cert": "certificate"}, "TLS needs both"),
        ({"--tls-client-ca": "certificate"}, "TLS needs both"),
    ],
)
def test_a_wrong_file_stops_the_start_with_one_line(
    tmp_path: Path, files: dict[str, str], given: dict[str, str], named: str
) -> None:
    options = [word for option, file in given.items() for word in (option, files[file])]
    done = token_vault("serve", *options, folder=tmp_path, settings=new_home(tmp_path).settings)
    assert done.returncode == 2
    assert named in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("days", "state", "words"), [(90, "ok", "expires on"), (10, "warn", "renew it"), (-1, "FAIL", "expired on")]
)
def test_doctor_reports_when_the_certificate_expires(tmp_path: Path, days: int, state: str, words: str) -> None:
    certificate, key = new_authority(tmp_path, "servers").issue(tmp_path, "vault", days=days)
    home = new_home(tmp_path, TLS_CERT_FILE=str(certificate), TLS_KEY_FILE=str(key))
    done = token_vault("doctor", folder=tmp_path, settings=home.settings)
    [line] = [line for line in done.stdout.splitlines() if "TLS" in line]
    assert line.startswith(state)
    assert words in line
    assert done.returncode == (1 if state == "FAIL" else 0)


def test_doctor_names_a_wrong_file(tmp_path: Path, files: dict[str, str]) -> None:
    home = new_home(tmp_path, TLS_CERT_FILE=files["certificate"], TLS_KEY_FILE=files["other key"])
    done = token_vault("doctor", folder=tmp_path, settings=home.settings)
    assert done.returncode == 1
    assert "TLS_KEY_FILE: does not belong" in done.stdout
