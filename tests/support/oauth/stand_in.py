"""A scriptable OAuth provider over HTTP, in a thread.

    with oauth_stand_in() as provider:
        refresh_token = provider.seed()                        # a grant, as a user's consent makes one
        entry = provider.entry()                               # of OAUTH_PROVIDERS: {"acme": entry}
        provider.script(Answer(status=503), Answer(body="<html>"))   # the next two answers; afterwards as usual
        ...
        assert provider.refreshes == 1                         # refresh tokens that were spent
        assert provider.reuses == 0                            # spent ones that came again

Unscripted, it is an OAuth server that knows its clients, grants and codes, with the rotation that it was given. A
`single_use` refresh token that comes again ends its grant, as reuse detection does. A scripted answer replaces the
whole answer unless `commits` is true, which makes the server do its work first: then the token is spent and the
answer is another one, is late, or is cut.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, unquote_plus

from tests.support.stack.loopback import LOOPBACK, free_port

CLIENT_ID: Final = "the-client"
CLIENT_SECRET: Final = "the-client-secret-5f1c"
TOKEN_PATH: Final = "/oauth/token"
REVOKE_PATH: Final = "/oauth/revoke"
_HOLD_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One scripted answer.

    `body` is JSON unless it is text or bytes. `delay_seconds` passes, and `hold` is awaited, before anything is sent.
    `cut` closes the connection: `request` before the request is read, `answer` instead of an answer, `body` in the
    middle of the body. With `commits` the server does its work first; without a `body` its own answer is then sent,
    with the `changes` merged into it, where `None` leaves a member out. A `late` commit comes after the delay.
    """

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    hold: threading.Event | None = None
    cut: Literal["request", "answer", "body"] | None = None
    commits: bool = False
    late: bool = False
    changes: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A request as it came. `parameters` holds the form or the JSON object."""

    method: str
    path: str
    headers: Mapping[str, str]
    parameters: Mapping[str, Any]

    @property
    def client(self) -> tuple[str | None, str | None]:
        """Client id and secret, from Basic authentication or from the body."""
        scheme, _, credentials = self.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            name, _, secret = base64.b64decode(credentials).decode().partition(":")
            return unquote_plus(name), unquote_plus(secret)
        return self.parameters.get("client_id"), self.parameters.get("client_secret")


@dataclass(slots=True)
class _Grant:
    refresh_token: str
    alive: bool = True


class OAuthStandIn:
    """The server. Counts are of requests that were valid; `requests` holds every request in order."""

    def __init__(
        self,
        *,
        rotation: Literal["none", "reusable", "single_use"] = "single_use",
        expires_in: Any = 3600,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.rotation = rotation
        self.expires_in = expires_in
        self.clients = {CLIENT_ID: {CLIENT_SECRET}}
        self.authenticates_clients = True
        self.refreshes = 0
        self.reuses = 0
        self.exchanges = 0
        self.connections = 0
        self.revoked: list[str] = []
        self.answers_for: dict[str, Answer] = {}  # by refresh token, before any script
        self.requests: list[ReceivedRequest] = []
        self._tls = tls
        self._port = free_port()
        self._server: ThreadingHTTPServer | None = None
        self._lock = threading.Lock()
        self._script: deque[Answer] = deque()
        self._always: Answer | None = None
        self._grants: dict[str, _Grant] = {}  # by every refresh token that was ever issued
        self._refreshed: dict[str, _Grant] = {}  # by the access token that a refresh issued
        self._codes: set[str] = set()
        self._serial = 0
        self.marks: dict[str, str] = {}  # the end of each token of a kind: `at`, `rt` or `code`
        self._ended = threading.Event()

    @property
    def origin(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://{LOOPBACK}:{self._port}"

    @property
    def token_url(self) -> str:
        return self.origin + TOKEN_PATH

    @property
    def revoke_url(self) -> str:
        return self.origin + REVOKE_PATH

    @property
    def port(self) -> int:
        return self._port

    def entry(self, **changes: Any) -> dict[str, Any]:
        """Return the entry of the provider registry for this server; a change of `None` leaves a member out."""
        entry = {
            "token_url": self.token_url,
            "revoke_url": self.revoke_url,
            "client_auth": "basic",
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "rotation": self.rotation,
            "allow_insecure": True,
        } | changes
        return {name: value for name, value in entry.items() if value is not None}

    def canvas_entry(self, *others: OAuthStandIn, **changes: Any) -> dict[str, Any]:
        """Return a Canvas entry for this server and others as hosts of their own; all need `tls`."""
        members = dict.fromkeys(("token_url", "revoke_url", "client_auth", "rotation"))
        hosts = [f"{LOOPBACK}:{server.port}" for server in (self, *others)]
        return self.entry(**members, preset="canvas", allowed_hosts=hosts, **changes)

    def seed(self, refresh_token: str | None = None) -> str:
        """Return the refresh token of a new grant."""
        with self._lock:
            token = refresh_token or self._new("rt")
            self._grants[token] = _Grant(token)
            return token

    def seed_code(self) -> str:
        """Return a new authorization code."""
        with self._lock:
            code = self._new("code")
            self._codes.add(code)
            return code

    def accepts(self, refresh_token: str) -> bool:
        """Whether a refresh with this token would succeed now; spends nothing."""
        with self._lock:
            grant = self._grants.get(refresh_token)
            return grant is not None and grant.alive and self._is_current(grant, refresh_token)

    def belong_together(self, access_token: str, refresh_token: str) -> bool:
        """Whether a refresh has issued this access token for the grant of this refresh token."""
        with self._lock:
            return self._refreshed.get(access_token) is self._grants[refresh_token]

    def end_grant(self, refresh_token: str) -> None:
        """Make the user withdraw consent."""
        with self._lock:
            self._grants[refresh_token].alive = False

    def script(self, *answers: Answer) -> None:
        """Give these answers to the next requests, in this order."""
        with self._lock:
            self._script.extend(answers)

    def always(self, answer: Answer | None) -> None:
        """Give this answer to every request that has no scripted one; `None` ends that."""
        with self._lock:
            self._always = answer

    def start(self) -> None:
        """Listen, again on the same port after `stop`."""
        stand_in = self

        class Handler(_Handler):
            server_side = stand_in

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 512

            def get_request(self) -> tuple[socket.socket, Any]:
                connection, address = super().get_request()
                with stand_in._lock:
                    stand_in.connections += 1
                return connection, address

            def finish_request(self, request: Any, client_address: Any) -> None:
                if stand_in._tls is None:
                    super().finish_request(request, client_address)
                    return
                with stand_in._tls.wrap_socket(request, server_side=True) as connection:
                    super().finish_request(connection, client_address)

            def handle_error(self, request: object, client_address: object) -> None: ...  # the client left

        self._ended.clear()
        self._server = Server((LOOPBACK, self._port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="oauth", daemon=True).start()

    def stop(self) -> None:
        """Refuse connections."""
        self._ended.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    # --- the server's work, called by the handler

    def _take_script(self) -> Answer | None:
        with self._lock:
            return self._script.popleft() if self._script else self._always

    def _wait(self, answer: Answer) -> None:
        deadline = time.monotonic() + answer.delay_seconds
        while time.monotonic() < deadline and not self._ended.is_set():
            time.sleep(min(0.01, max(0.0, deadline - time.monotonic())))
        if answer.hold is not None:
            answer.hold.wait(_HOLD_SECONDS)

    def _work(self, request: ReceivedRequest) -> tuple[int, dict[str, Any]]:
        with self._lock:
            name, secret = request.client
            if self.authenticates_clients and secret not in self.clients.get(name or "", ()):
                return 401, {"error": "invalid_client", "error_description": f"wrong secret {secret}"}
            if request.path == REVOKE_PATH:
                return self._revoke(str(request.parameters.get("token")))
            match request.parameters.get("grant_type"):
                case "refresh_token":
                    return self._refresh(str(request.parameters.get("refresh_token")))
                case "authorization_code":
                    return self._exchange(str(request.parameters.get("code")))
                case _:
                    return 400, {"error": "unsupported_grant_type"}

    def _refresh(self, token: str) -> tuple[int, dict[str, Any]]:
        grant = self._grants.get(token)
        if grant is None or not grant.alive:
            return 400, {"error": "invalid_grant", "error_description": f"unknown token {token}"}
        if not self._is_current(grant, token):
            self.reuses += 1
            grant.alive = False
            return 400, {"error": "invalid_grant", "error_description": f"reused token {token}"}
        self.refreshes += 1
        answer = self._tokens()
        self._refreshed[answer["access_token"]] = grant
        if self.rotation != "none":
            grant.refresh_token = answer["refresh_token"] = self._new("rt")
            self._grants[grant.refresh_token] = grant
        return 200, answer

    def _exchange(self, code: str) -> tuple[int, dict[str, Any]]:
        if code not in self._codes:
            return 400, {"error": "invalid_grant"}
        self._codes.remove(code)
        self.exchanges += 1
        token = self._new("rt")
        self._grants[token] = _Grant(token)
        return 200, self._tokens() | {"refresh_token": token}

    def _revoke(self, token: str) -> tuple[int, dict[str, Any]]:
        self.revoked.append(token)
        if token in self._grants:
            self._grants[token].alive = False
        return 200, {}

    def _is_current(self, grant: _Grant, token: str) -> bool:
        return self.rotation != "single_use" or grant.refresh_token == token

    def _tokens(self) -> dict[str, Any]:
        answer = {"access_token": self._new("at"), "token_type": "Bearer", "expires_in": self.expires_in}
        return {name: value for name, value in answer.items() if value is not None}

    def _new(self, kind: str) -> str:
        self._serial += 1
        return f"{kind}-{self._serial}-{self.marks.get(kind, 'of-the-stand-in')}"


class _Handler(BaseHTTPRequestHandler):
    server_side: OAuthStandIn

    def _handle(self) -> None:
        stand_in = self.server_side
        answer = stand_in._take_script()  # noqa: SLF001  a part of it
        if answer is not None and answer.cut == "request":
            self._close()
            return
        request = self._received()
        stand_in.requests.append(request)
        answer = stand_in.answers_for.get(str(request.parameters.get("refresh_token")), answer)
        status = 200
        body: dict[str, Any] = {}
        if answer is None or (answer.commits and not answer.late):
            status, body = stand_in._work(request)  # noqa: SLF001  a part of it
        if answer is None:
            self._send(status, json.dumps(body).encode(), {})
            return
        stand_in._wait(answer)  # noqa: SLF001  a part of it
        if answer.commits and answer.late:
            status, body = stand_in._work(request)  # noqa: SLF001  a part of it
        if answer.changes is not None:
            body = {name: value for name, value in (body | dict(answer.changes)).items() if value is not None}
        if answer.cut == "answer":
            self._close()
            return
        given = body if answer.body is None else answer.body
        content = given if isinstance(given, bytes) else given.encode() if isinstance(given, str) else _json(given)
        if answer.body is not None or not answer.commits:
            status = answer.status
        self._send(status, content, answer.headers, cut=answer.cut == "body")

    def _received(self) -> ReceivedRequest:
        length = int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(length).decode()
        is_json = "json" in self.headers.get("Content-Type", "")
        parameters = (json.loads(text) if text else {}) if is_json else dict(parse_qsl(text, keep_blank_values=True))
        headers = {name.lower(): value for name, value in self.headers.items()}
        return ReceivedRequest(self.command, self.path, headers, parameters)

    def _send(self, status: int, content: bytes, headers: Mapping[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self._close()

    def _close(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def do_POST(self) -> None:
        self._handle()

    def do_DELETE(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002  the base class's name


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


@contextmanager
def oauth_stand_in(
    *,
    rotation: Literal["none", "reusable", "single_use"] = "single_use",
    expires_in: Any = 3600,
    tls: ssl.SSLContext | None = None,
) -> Iterator[OAuthStandIn]:
    """Serve during the block."""
    stand_in = OAuthStandIn(rotation=rotation, expires_in=expires_in, tls=tls)
    stand_in.start()
    try:
        yield stand_in
    finally:
        stand_in.stop()
