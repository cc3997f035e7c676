"""A stand-in for AWS KMS over HTTP: moto's server in this process, behind a gate that adds what moto lacks.

`python -m tests.support.stack.kms` serves until SIGTERM or SIGINT. It prints one line of JSON, its
address and a key, when it is up.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final
from unittest import mock

import boto3
from botocore.config import Config
from moto.kms.models import kms_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from app.config.settings import Settings
from app.security.kms.boto_clients import open_kms_client
from tests.support.stack.kms_faults import KmsFaults, KmsRequest
from tests.support.stack.kms_gate import ADMINISTRATOR, KmsGate
from tests.support.stack.loopback import LOOPBACK, free_port

REGION: Final = "eu-west-1"
_STOP_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.02


class Kms:
    """A KMS with a key, `key_arn`, and its `alias`; `renew` creates the next ones.

    Keys are named by id, ARN or alias. The methods act as an administrator, whose requests meet no fault and are not
    recorded.
    """

    def __init__(self) -> None:
        """Choose a port; connections are refused until `running`."""
        self._listener: _Listener | None = None
        self._port = free_port()
        self.faults = KmsFaults(listen=self._listen, refuse=self._refuse)
        # the type stub of moto's application lacks what makes it callable
        moto: Any = DomainDispatcherApplication(create_backend_app)
        self._gate = KmsGate(moto=moto, faults=self.faults)
        self._admin = boto3.client(
            "kms",
            region_name=REGION,
            endpoint_url=self.url,
            aws_access_key_id=ADMINISTRATOR,
            aws_secret_access_key="none",
            config=Config(retries={"total_max_attempts": 1, "mode": "standard"}),
        )
        self._client: Any = None
        self.key_arn = ""
        self.alias = ""

    @property
    def url(self) -> str:
        """The value of `AWS_ENDPOINT_URL_KMS`."""
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def requests(self) -> list[KmsRequest]:
        """The requests since `forget_requests`, also refused ones, without the administrator's."""
        return list(self._gate.requests)

    def operations(self) -> list[str]:
        """Return the operations of `requests`."""
        return [request.operation for request in self.requests]

    def forget_requests(self) -> None:
        """Empty `requests`."""
        self._gate.requests.clear()

    def environment(self) -> dict[str, str]:
        """Return the settings of a process that uses this KMS."""
        return {
            "USE_KMS": "true",
            "KMS_KEY_ID": self.key_arn,
            "AWS_ENDPOINT_URL_KMS": self.url,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "application",
            "AWS_SECRET_ACCESS_KEY": "none",
        }

    def client(self) -> Any:
        """Return a client as the service makes it, the same one each time."""
        if self._client is None:
            settings = {name.lower(): value for name, value in self.environment().items()}
            self._client = open_kms_client(Settings.model_validate(settings).kms_connection())
        return self._client

    def create_key(self) -> str:
        """Return the ARN of a new key."""
        return str(self._admin.create_key()["KeyMetadata"]["Arn"])

    def create_alias(self, key_id: str) -> str:
        """Return a new alias of this key."""
        alias = f"alias/{uuid.uuid4()}"
        self._admin.create_alias(AliasName=alias, TargetKeyId=key_id)
        return alias

    def move_alias(self, alias: str, key_id: str) -> None:
        """Point the alias at this key."""
        self._admin.update_alias(AliasName=alias, TargetKeyId=key_id)

    def disable(self, key_id: str) -> None:
        """Disable the key."""
        self._admin.disable_key(KeyId=_bare(key_id))

    def enable(self, key_id: str) -> None:
        """Enable the key again."""
        self._admin.enable_key(KeyId=_bare(key_id))

    def schedule_deletion(self, key_id: str) -> None:
        """Schedule the key's deletion in 30 days."""
        self._admin.schedule_key_deletion(KeyId=_bare(key_id), PendingWindowInDays=30)

    def cancel_deletion(self, key_id: str) -> None:
        """Cancel the deletion; the key is disabled afterwards."""
        self._admin.cancel_key_deletion(KeyId=_bare(key_id))

    def enable_rotation(self, key_id: str) -> None:
        """Switch yearly rotation on."""
        self._admin.enable_key_rotation(KeyId=key_id)

    def rotate_now(self, key_id: str) -> None:
        """Rotate on demand; moto keeps its key material."""
        self._admin.rotate_key_on_demand(KeyId=key_id)

    def encrypt(self, key_id: str, plaintext: bytes, context: dict[str, str]) -> bytes:
        """Return the blob of KMS Encrypt."""
        answer = self._admin.encrypt(KeyId=key_id, Plaintext=plaintext, EncryptionContext=context)
        return bytes(answer["CiphertextBlob"])

    def generate_data_key(self, key_id: str, context: dict[str, str]) -> tuple[bytes, bytes]:
        """Return a data key and its wrapped form."""
        answer = self._admin.generate_data_key(KeyId=key_id, KeySpec="AES_256", EncryptionContext=context)
        return bytes(answer["Plaintext"]), bytes(answer["CiphertextBlob"])

    def renew(self) -> None:
        """Clear faults and requests, and create a new key and alias."""
        self.faults.clear()
        self.key_arn = self.create_key()
        self.alias = self.create_alias(self.key_arn)
        self.forget_requests()

    def empty(self) -> None:
        """Delete every key of the account, and `renew`."""
        kms_backends.reset()
        self.renew()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve until the block ends."""
        self._listen()
        try:
            # moto also makes an RSA key pair for each symmetric key, which takes longer than most tests
            with mock.patch("moto.kms.models.generate_private_key", return_value=None):
                self.renew()
                yield
        finally:
            self.faults.clear()
            self._refuse()
            for client in (self._admin, self._client):
                if client is not None:
                    client.close()

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = _Listener(LOOPBACK, self._port, self._gate, handler=_Handler)
            self._listener.start()

    def _refuse(self) -> None:
        if self._listener is not None:
            self._listener.stop()
            self._listener = None


class _Handler(WSGIRequestHandler):
    def log_request(self, *_: object) -> None:
        """Log no request."""


class _Listener(ThreadedWSGIServer):
    """A listening socket, its thread, and its connections."""

    request_queue_size = 1024

    def start(self) -> None:
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(_POLL_SECONDS,), name="kms", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join(timeout=_STOP_SECONDS)
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def finish_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        try:
            super().finish_request(request, client_address)
        finally:
            self._connections.discard(request)


def _bare(key_id: str) -> str:
    """Return the id without the rest of the ARN: moto changes a key's state under that name alone."""
    return key_id.rpartition("/")[2]


def main() -> None:
    """Serve."""
    # not an exception, which could interrupt the start half-way
    stopped = threading.Event()
    for stop_signal in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop_signal, lambda *_: stopped.set())
    kms = Kms()
    with kms.running():
        sys.stdout.write(f"{json.dumps({'AWS_ENDPOINT_URL_KMS': kms.url, 'KMS_KEY_ID': kms.key_arn})}\n")
        sys.stdout.flush()
        stopped.wait()


if __name__ == "__main__":
    main()
