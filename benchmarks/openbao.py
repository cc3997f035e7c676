"""OpenBao, whose KV version 2 engine stores secrets as the vault does, with a token that a policy limits to them.

Its program is given by `--bao` (`make bench BAO=path`). It uses all processors, as it does by default.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.load import LOOPBACK
from benchmarks.requests import STORED
from benchmarks.servers import Server, Servers
from tests.support.stack.loopback import free_port

_STORAGES: Final = {
    "file": 'storage "file" {{ path = "{folder}/store" }}',
    "raft": 'storage "raft" {{ path = "{folder}/store"\n node_id = "one" }}',
}
_CONFIGURATION: Final = """
{storage}
listener "tcp" {{ address = "{host}:{port}"
 tls_disable = true }}
api_addr = "http://{host}:{port}"
cluster_addr = "http://{host}:{cluster_port}"
log_level = "error"
{audit}
"""
_AUDIT: Final = 'audit "file" "bench" {{ options {{ file_path = "{folder}/audit.log" }} }}'
_POLICY: Final = 'path "secret/data/users/*" { capabilities = ["create", "read", "update"] }'
_MOUNT_SECONDS: Final = 30.0  # until a raft node leads, and a new engine is ready
_REDIRECT: Final = 300  # a raft node redirects until it leads


@dataclass(frozen=True, slots=True)
class OpenBao:
    """A running server, and requests with the limited token."""

    server: Server
    token: str

    def reveal(self, user_id: str) -> bytes:
        return f"GET {_path(user_id)} HTTP/1.1\r\nHost: bao\r\nX-Vault-Token: {self.token}\r\n\r\n".encode()

    def store(self, user_id: str) -> bytes:
        body = json.dumps({"data": STORED}).encode()
        head = (
            f"POST {_path(user_id)} HTTP/1.1\r\nHost: bao\r\nX-Vault-Token: {self.token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@contextmanager
def running_openbao(servers: Servers, program: Path, storage: str, *, audit: bool) -> Iterator[OpenBao]:
    """Serve from a new store (`file` or `raft`), with a file as audit device or without."""
    name = f"openbao-{storage}{'-audit' if audit else ''}"
    folder, port = servers.folder / name, free_port()
    (folder / "store").mkdir(parents=True)
    configuration = folder / "openbao.hcl"
    configuration.write_text(
        _CONFIGURATION.format(
            storage=_STORAGES[storage].format(folder=folder),
            audit=_AUDIT.format(folder=folder) if audit else "",
            host=LOOPBACK,
            port=port,
            cluster_port=free_port(),
        )
    )
    command = [str(program), "server", f"-config={configuration}"]
    # an uninitialised OpenBao answers, but with 501
    with servers.serving(name, command, port, {"HOME": str(folder)}, health="/v1/sys/seal-status") as server:
        yield OpenBao(server, _prepare(port))


def _prepare(port: int) -> str:
    """Initialise, unseal, mount the engine; return a token with the policy."""
    first = _call(port, "/v1/sys/init", {"secret_shares": 1, "secret_threshold": 1})
    _call(port, "/v1/sys/unseal", {"key": first["keys"][0]})
    root = first["root_token"]
    _retrying(port, "/v1/sys/mounts/secret", {"type": "kv", "options": {"version": "2"}}, root)
    _retrying(port, "/v1/secret/data/first", {"data": STORED}, root)
    _retrying(port, "/v1/sys/policies/acl/bench", {"policy": _POLICY}, root)
    created = _call(port, "/v1/auth/token/create", {"policies": ["bench"], "no_default_policy": True}, root)
    token: str = created["auth"]["client_token"]
    return token


def _retrying(port: int, path: str, body: object, token: str) -> None:
    deadline = time.monotonic() + _MOUNT_SECONDS
    while True:
        try:
            _call(port, path, body, token)
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def _call(port: int, path: str, body: object, token: str = "") -> Any:  # noqa: ANN401  JSON
    with closing(http.client.HTTPConnection(LOOPBACK, port, timeout=30.0)) as connection:
        connection.request("PUT", path, json.dumps(body), {"X-Vault-Token": token})
        answer = connection.getresponse()
        text = answer.read()
    if answer.status >= _REDIRECT:
        raise RuntimeError(f"OpenBao answers {answer.status}: {text[:400]!r}")
    return json.loads(text) if text else None


def _path(user_id: str) -> str:
    return f"/v1/secret/data/users/{user_id}/canvas"
