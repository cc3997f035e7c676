"""AWS credentials that come late, or from a service that hangs: the vault recovers without a restart."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from app.composition.encryption import build_encryption
from app.config.settings import Settings
from app.errors import KeyDenied, KeyUnavailable
from app.security.context import TokenContext
from app.security.kms import client as kms_client
from app.security.kms.boto_clients import CONNECT_SECONDS, READ_SECONDS, open_kms_client
from app.security.kms.errors import EXPIRED_AT_ONCE
from tests.support.security.envelopes import HERE, TOKEN, Envelope, envelope
from tests.support.stack.kms import Kms

_ROLE = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><AssumedRoleUser><Arn>arn:aws:sts::1:assumed-role/r/s</Arn>
<AssumedRoleId>a:b</AssumedRoleId></AssumedRoleUser><Credentials><AccessKeyId>application</AccessKeyId>
<SecretAccessKey>x</SecretAccessKey><SessionToken>t</SessionToken><Expiration>{expiry}</Expiration></Credentials>
</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""


class _Aws(ThreadingHTTPServer):
    """The parts of the instance metadata service and of STS that boto3 uses."""

    daemon_threads = True
    up = True
    answers = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: _Aws

    def log_message(self, *_: object) -> None: ...

    def do_PUT(self) -> None:
        self._send(b"token" if self.server.up else b"", status=200 if self.server.up else 503)

    def do_GET(self) -> None:
        if not self.server.up:
            self._send(b"", status=503)
        elif self.path == "/role":  # a container's
            names = {"AccessKeyId": "application", "SecretAccessKey": "x", "Token": "t"}
            self._send(json.dumps({**names, "Expiration": _in_an_hour()}).encode())
        elif self.path.endswith("security-credentials/"):
            self._send(b"role")
        else:
            names = {"Code": "Success", "AccessKeyId": "application", "SecretAccessKey": "x", "Token": "t"}
            self._send(json.dumps({**names, "Expiration": _in_an_hour()}).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if not self.server.up:
            self.server.answers.wait(60)  # longer than any test waits
        self._send(_ROLE.format(expiry=_in_an_hour()).encode())

    def _send(self, body: bytes, *, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _in_an_hour() -> str:
    return (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Aws]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    server = _Aws(("127.0.0.1", 0), _Handler)
    server.answers = threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    yield server
    server.answers.set()
    server.shutdown()
    thread.join()
    server.server_close()


def _settings(kms: Kms) -> Settings:
    given: dict[str, Any] = {name.lower(): value for name, value in kms.environment().items()}
    return Settings.model_validate({**given, "aws_access_key_id": None, "aws_secret_access_key": None})


def _process(kms: Kms) -> Envelope:
    connection = _settings(kms).kms_connection()
    return envelope(kms, boto_client=open_kms_client(connection), reconnect=lambda: open_kms_client(connection))


def test_an_instance_role_that_comes_late_is_found_without_a_restart(kms: Kms, aws: _Aws) -> None:
    aws.up = False
    process = _process(kms)
    with pytest.raises(KeyDenied, match="no usable AWS credentials"):
        process.seal()
    aws.up = True
    _eventually_seals(process)


def test_a_hung_sts_is_unavailable_at_the_deadline_of_kms(
    kms: Kms, aws: _Aws, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("a web identity token")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/r")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{aws.server_port}")
    assert _process(kms).open(_process(kms).seal()) == TOKEN
    process = _process(kms)
    aws.up = False
    with pytest.raises(KeyUnavailable):
        process.seal()
    aws.up = True  # the request before still hangs; new ones are answered
    _eventually_seals(process)


def _eventually_seals(process: Envelope) -> None:
    """Require a success within 30 seconds."""
    give_up_at = time.monotonic() + 30
    while True:
        process.clock.advance(10)  # the breaker's pause, not the network's
        try:
            process.seal(TokenContext(f"user {time.monotonic()}", "canvas"))
        except (KeyDenied, KeyUnavailable):
            assert time.monotonic() < give_up_at
            time.sleep(0.2)
        else:
            return


def test_the_user_agent_names_the_vault() -> None:
    given = {"use_kms": True, "kms_key_id": "alias/x", "aws_region": "eu-west-1"}
    client = open_kms_client(Settings.model_validate(given).kms_connection())
    assert client.meta.config.user_agent.startswith("pulseplan-token-vault/")


def test_the_session_token_in_the_settings_is_sent(kms: Kms) -> None:
    given = {name.lower(): value for name, value in kms.environment().items()}
    settings = Settings.model_validate({**given, "aws_session_token": "a-session-token"})
    envelope(kms, boto_client=open_kms_client(settings.kms_connection())).seal()
    assert [request.session_token for request in kms.requests] == ["a-session-token"]


@pytest.mark.usefixtures("aws")
def test_credentials_that_expire_as_soon_as_they_are_renewed_are_a_denial(
    kms: Kms, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expired = {"Version": 1, "AccessKeyId": "application", "SecretAccessKey": "x", "SessionToken": "t"}
    (tmp_path / "credentials.json").write_text(json.dumps({**expired, "Expiration": "2020-01-01T00:00:00Z"}))
    (tmp_path / "config").write_text(f"[default]\ncredential_process = cat {tmp_path / 'credentials.json'}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    process = _process(kms)
    with pytest.raises(KeyDenied, match="no usable AWS credentials"):
        process.seal()
    assert process.counters.counts[f"kms_requests.GenerateDataKey.{EXPIRED_AT_ONCE}"] == 1
    expired["Expiration"] = _in_an_hour()
    (tmp_path / "credentials.json").write_text(json.dumps(expired))
    _eventually_seals(process)


def test_a_missing_web_identity_file_is_a_denial(
    kms: Kms, aws: _Aws, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/r")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{aws.server_port}")
    process = _process(kms)
    for _ in range(8):
        with pytest.raises(KeyDenied, match="no usable AWS credentials"):
            process.seal()
    assert process.counters.breaker == "closed"
    (tmp_path / "token").write_text("a web identity token")
    _eventually_seals(process)


def test_missing_container_credentials_do_not_stop_the_start(
    kms: Kms, aws: _Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{aws.server_port}/role")
    aws.up = False
    with closing(build_encryption(_settings(kms))) as encryption:
        with pytest.raises(KeyDenied, match="no usable AWS credentials"):
            encryption.service.seal(TOKEN, HERE)
        aws.up = True
        give_up_at = time.monotonic() + 30
        while True:
            try:
                encryption.service.seal(TOKEN, HERE)
            except (KeyDenied, KeyUnavailable):
                assert time.monotonic() < give_up_at
                time.sleep(0.2)
            else:
                break


def test_credentials_are_not_looked_for_at_each_call(kms: Kms, aws: _Aws) -> None:
    aws.up = False
    connection, made = _settings(kms).kms_connection(), []

    def connect() -> Any:
        made.append(open_kms_client(connection))
        return made[-1]

    process = envelope(kms, boto_client=connect(), reconnect=connect)
    for _ in range(6):
        process.clock.advance(1)  # for as long a denial is remembered
        with pytest.raises(KeyDenied):
            process.seal()
        time.sleep(0.05)
    assert len(made) == 2


def test_the_time_outs_are_as_designed(kms: Kms) -> None:
    config = kms.client().meta.config
    assert (config.connect_timeout, config.read_timeout) == (CONNECT_SECONDS, READ_SECONDS) == (1, 2)
    assert config.retries["total_max_attempts"] == 1
    assert kms_client.DEADLINE_SECONDS == 2.5
