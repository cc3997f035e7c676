"""Requests that carry secrets, to every route and in every wrong way."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import httpx

from tests.support.api.service import Service
from tests.support.canary.search import Place
from tests.support.canary.secrets import Marked

BOUND_SECONDS = 120.0  # shows a hang
_JSON = {"Content-Type": "application/json"}
_PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@dataclass(slots=True)
class Traffic:
    """Sends requests and keeps the answers: reveals apart, because these contain the caller's tokens.

    `client` has a service key with every scope.
    """

    service: Service
    client: httpx.Client
    marked: Marked
    reveals: list[Place] = field(default_factory=list)
    successes: list[Place] = field(default_factory=list)
    refusals: list[Place] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)

    def body(self) -> dict[str, Any]:
        return {
            "access_token": self.marked.access,
            "refresh_token": self.marked.refresh,
            "metadata": {"note": self.marked.metadata},
        }

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        answer = self.client.request(method, path, **options)
        head = "".join(f"{name}: {value}\n" for name, value in answer.headers.items())
        place = Place(f"{method} {path[:60]}: {answer.status_code}", head.encode() + answer.content)
        reveals = (method == "GET" and "/tokens/" in path) or path.endswith(("batch-get", "/refresh", "/oauth/token"))
        kept = self.refusals if answer.is_error else self.reveals if reveals else self.successes
        kept.append(place)
        self.statuses.add(answer.status_code)
        return answer

    def send_until(self, status: int, method: str, path: str, **options: Any) -> httpx.Response:
        """Send until the answer has this status: on a busy machine the store or KMS may time out first."""
        deadline = time.monotonic() + BOUND_SECONDS
        while (answer := self.send(method, path, **options)).status_code != status:
            assert answer.status_code in {503, 504}, answer.text
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.1)
        return answer

    def every_route(self, user_id: str) -> None:
        tokens = f"/v1/users/{user_id}/tokens"
        canvas = f"{tokens}/canvas"
        batch = {"tokens": [{"user_id": user_id, "provider": "canvas"}, {"user_id": user_id, "provider": "x"}]}
        rotated = {**self.body(), "access_token": self.marked.rotated}
        self.send("PUT", canvas, json=self.body())
        self.send("GET", canvas, params={"include": "refresh_token"})
        self.send("GET", canvas)
        self.send("POST", f"{canvas}/rotate", json=rotated)
        self.send("POST", f"{canvas}/rotate", json=rotated, headers={"If-Match": '"1"'})
        self.send("POST", f"{canvas}/rewrap")
        self.send("GET", tokens)
        self.send("POST", "/v1/tokens/batch-get", json={**batch, "include": "refresh_token"})
        self.send("PATCH", canvas, json={"metadata": {"note": self.marked.metadata}})
        self.send("PATCH", canvas, json={"status": "revoked"})
        self.send("GET", canvas)
        self.send("GET", "/v1/encryption")
        self.send("DELETE", canvas)
        self.send("PUT", f"{tokens}/google", json=self.body())
        self.send("DELETE", tokens)
        for path in ("/healthz", "/readyz", "/openapi.json", "/metrics", "/docs"):
            self.send("GET", path)

    def every_user_jwt(self) -> None:
        """Send the user's JWT where it belongs, in wrong forms and places, and for another user."""
        jwt, user_id = self.marked.user_jwt, self.marked.jwt_user
        head, claims, signature = jwt.split(".")
        authorization = {"Authorization": f"Bearer {self.service.keys['on_behalf_of']}"}
        acting = {**authorization, "X-On-Behalf-Of": jwt}
        own, other = f"/v1/users/{user_id}/tokens/canvas", f"/v1/users/{uuid4()}/tokens/canvas"
        self.send_until(201, "PUT", own, json=self.body(), headers=acting)
        assert self.send_until(200, "GET", own, headers=acting).is_success
        batch = {"tokens": [{"user_id": user_id, "provider": "canvas"}]}
        self.send("POST", "/v1/tokens/batch-get", json=batch, headers=acting)
        for path in (other, f"/v1/users/{user_id}/tokens/{jwt[:20]}", f"/v1/users/{jwt}/tokens/canvas", f"/{jwt}"):
            assert self.send("GET", path, headers=acting).is_client_error
        plain = self.marked.misplaced.encode("ascii", "ignore").decode()
        unsigned = f"eyJhbGciOiJub25lIn0.{claims}."
        for wrong in (f"Bearer {jwt}", f"{jwt}x", f"{head}.{claims}.", unsigned, f"{claims}.{head}.{signature}", plain):
            assert self.send("GET", own, headers={**authorization, "X-On-Behalf-Of": wrong}).status_code == 403
        assert self.send("GET", own, headers={"Authorization": f"Bearer {jwt}"}).status_code == 401
        self.send("GET", own, headers={"X-Purpose": f"{jwt} x"})
        self.send("GET", own, params={"service_type": jwt})
        self.send("DELETE", own, headers=acting)

    def every_bad_input(self) -> None:
        secret, user_id = self.marked.misplaced, uuid4()
        canvas = f"/v1/users/{user_id}/tokens/canvas"
        self._bodies(canvas, secret)
        escaped = quote(secret, safe="")
        for path in (f"/v1/users/{escaped}/tokens/canvas", f"/v1/users/{user_id}/tokens/{escaped}", f"/{escaped}"):
            for method in ("GET", "PUT", "DELETE", "OPTIONS"):
                self.send(method, path)
        for name in ("service_type", "include", "access_token", secret):
            self.send("GET", canvas, params={name: secret})
        plain = secret.encode("ascii", "ignore").decode()
        # a well-formed request id or purpose is kept and returned, so a caller must not put a secret there
        for header in ("If-Match", "If-None-Match", "X-Request-ID", "Content-Type", "Content-Encoding"):
            self.send("PUT", canvas, json=self.body(), headers={header: plain})
        assert self.send("PUT", canvas, json=self.body(), headers={"X-Purpose": plain}).status_code == 422
        for header in ("Cookie", "User-Agent", "X-Forwarded-For", "Referer", "traceparent", plain[:6]):
            self.send("GET", canvas, headers={header: plain})
        self.send("GET", canvas, headers={"traceparent": _PARENT, "tracestate": f"x={plain}", "baggage": f"x={plain}"})
        for authorization in (plain, f"Bearer {plain}", f"Bearer ptv_{plain}", f"Basic {plain}", f"Bearer  {plain}"):
            self.send("GET", canvas, headers={"Authorization": authorization})
        self.send("POST", canvas, json=self.body())
        self._wire(canvas, plain)

    def _bodies(self, canvas: str, secret: str) -> None:
        fields = ("refresh_token", "expires_at", "expires_in", "scopes", "email", "base_url", "metadata", secret)
        values: tuple[Any, ...] = (secret, [secret], {secret: secret}, [[secret]])
        wrong: list[Any] = [{"access_token": secret, name: value} for name in fields for value in values]
        wrong += [{"access_token": [secret]}, {"access_token": {secret: secret}}, secret, [secret], {secret: secret}]
        wrong.append({"access_token": secret, "base_url": f"https://user:{secret}@canvas.example.edu"})
        quoted = json.dumps(secret)
        raw = [
            f'{{"access_token": {quoted}',
            f'{{"access_token": {quoted}, "access_token": {quoted}}}',
            f"{{{quoted}: 1, {quoted}: 2}}",
            f'{{"access_token": {quoted}, "expires_in": NaN}}',
            f'{{"access_token": {quoted}, "expires_in": 1e999}}',
            f'{{"access_token": {quoted[:-1]}\\u0000"}}',
            f'{{"access_token": {quoted[:-1]}\\ud800"}}',
            f'{{"access_token": {quoted}, "metadata": {"[" * 100}{"]" * 100}}}',
            f'{{"access_token": {json.dumps(secret * 2_000)}}}',
            secret,
        ]
        contents = [json.dumps(each).encode() for each in wrong] + [each.encode() for each in raw]
        contents.append(f'{{"access_token": "{secret}\xff"}}'.encode("latin-1"))
        for content in contents:
            for method, path in (("PUT", canvas), ("PATCH", canvas)):  # a rotation takes the body of a PUT
                self.send(method, path, content=content, headers=_JSON)
            self.send("POST", "/v1/tokens/batch-get", content=content, headers=_JSON)

    def _wire(self, path: str, plain: str) -> None:
        """Send malformed heads and bodies that break off, which no client library does."""
        key = self.service.keys["full"]
        head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        for raw in (
            f"{plain}\r\n\r\n",
            f"GET /{plain} HTTP/1.1\r\n\r\n",
            f"GET / HTTP/1.1\r\n{plain}\r\n\r\n",
            f"GET / HTTP/1.1\r\nContent-Length: {plain}\r\n\r\n",
            f'{head}Content-Length: 999\r\n\r\n{{"access_token": "{plain}',
            f"{head}Transfer-Encoding: chunked\r\n\r\n{plain}\r\n",
        ):
            place = urlsplit(self.service.url)
            with socket.create_connection((place.hostname, place.port), timeout=BOUND_SECONDS) as connection:
                connection.sendall(raw.encode())
                connection.shutdown(socket.SHUT_WR)
                answer = b""
                with suppress(OSError):
                    while chunk := connection.recv(65_536):
                        answer += chunk
            self.refusals.append(Place(f"on the wire: {raw[:20]!r}", answer))
