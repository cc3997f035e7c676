"""Requests as bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

# the length of a Canvas token
ACCESS_TOKEN = "1234~TmG6vNQAyIsNfZAzheilKivu74uLX-URSFLu-nCmqxznsTP-y8RAu7SzXummb6tQ"
STORED = {
    "access_token": ACCESS_TOKEN,
    "expires_at": (datetime.now(UTC) + timedelta(days=90)).isoformat(),
    "base_url": "https://canvas.example.edu",
    "metadata": {"course_count": 4},
}


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests of one caller to any port, because no server reads `Host`."""

    service_key: str

    def store(self, user_id: str) -> bytes:
        return self._with_body("PUT", _token(user_id), STORED)

    def store_refreshable(self, user_id: str, *, due: bool) -> bytes:
        """Store a token that the vault can refresh, and that has expired if it is `due`."""
        expires_at = "2026-01-01T00:00:00Z" if due else STORED["expires_at"]
        token = {"access_token": ACCESS_TOKEN, "refresh_token": ACCESS_TOKEN[::-1], "expires_at": expires_at}
        return self._with_body("PUT", _token(user_id, "acme"), token)

    def reveal_refreshable(self, user_id: str, *, min_ttl: int | None = None) -> bytes:
        query = "" if min_ttl is None else f"?min_ttl={min_ttl}"
        return self._request("GET", _token(user_id, "acme") + query)

    def batch(self, user_ids: Sequence[str], *, provider: str = "canvas") -> bytes:
        """Reveal the tokens of all these users."""
        tokens = [{"user_id": user_id, "provider": provider} for user_id in user_ids]
        return self._with_body("POST", "/v1/tokens/batch-get", {"tokens": tokens})

    def reveal(self, user_id: str) -> bytes:
        return self._request("GET", _token(user_id))

    def reveal_for(self, user_id: str, jwt: str) -> bytes:
        """Reveal on behalf of this user."""
        return self._request("GET", _token(user_id), f"X-On-Behalf-Of: {jwt}\r\n")

    def get(self, path: str) -> bytes:
        return self._request("GET", path)

    def _with_body(self, method: str, path: str, content: object) -> bytes:
        body = json.dumps(content).encode()
        head = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return self._request(method, path, head) + body

    def _request(self, method: str, path: str, headers: str = "") -> bytes:
        return (
            f"{method} {path} HTTP/1.1\r\nHost: vault\r\nAuthorization: Bearer {self.service_key}\r\n{headers}\r\n"
        ).encode()


def new_user_ids(count: int) -> list[str]:
    return [str(uuid4()) for _ in range(count)]


def _token(user_id: str, provider: str = "canvas") -> str:
    return f"/v1/users/{user_id}/tokens/{provider}"
