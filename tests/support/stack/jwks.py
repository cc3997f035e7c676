"""The HTTP endpoint at which an issuer publishes its keys, with faults."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from tests.support.security.user_jwts import ISSUER, SigningKey, key_set
from tests.support.stack.loopback import LOOPBACK, free_port

PATH: Final = "/auth/v1/.well-known/jwks.json"


class JwksEndpoint:
    """Answers with `document`, or as `status`, `headers` and `hangs` say. `downloads` counts the requests.

    With `tls` it is served over HTTPS.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._port = free_port()
        self._server: ThreadingHTTPServer | None = None
        self.document = key_set()
        self.status = 200
        self.headers: dict[str, str] = {}
        self.hangs = False
        self.downloads = 0
        self._ended = threading.Event()

    @property
    def url(self) -> str:
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{LOOPBACK}:{self._port}{PATH}"

    def environment(self) -> dict[str, str]:
        return {"USER_JWT_ISSUER": ISSUER, "USER_JWT_JWKS_URL": self.url}

    def publish(self, *keys: SigningKey | dict[str, Any]) -> None:
        """Publish these keys and no other."""
        self.document = key_set(*keys)

    def start(self) -> None:
        """Listen, again on the same port after `stop`."""
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                endpoint.downloads += 1
                if endpoint.hangs:
                    endpoint._ended.wait(60)
                    return
                body = endpoint.document if self.path == PATH else b"not here"
                self.send_response(endpoint.status if self.path == PATH else 404)
                for name, value in {"Content-Type": "application/json", **endpoint.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002  the base class's name

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None: ...  # the client left

        self._ended.clear()
        self._server = Server((LOOPBACK, self._port), Handler)
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="jwks", daemon=True).start()

    def stop(self) -> None:
        """Refuse connections."""
        self._ended.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextmanager
def jwks_endpoint(*keys: SigningKey | dict[str, Any], tls: ssl.SSLContext | None = None) -> Iterator[JwksEndpoint]:
    """Publish these keys during the block."""
    endpoint = JwksEndpoint(tls=tls)
    endpoint.publish(*keys)
    endpoint.start()
    try:
        yield endpoint
    finally:
        endpoint.stop()
