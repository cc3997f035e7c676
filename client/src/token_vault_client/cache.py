"""Revealed access tokens in memory, until shortly before they expire. Off unless a client is given one."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import replace
from datetime import UTC, datetime

from token_vault_client.models import RevealedToken, TokenId


class TokenCache:
    """Access tokens by token id. Safe to share between threads and clients of one service key.

    A token is answered for `maximum_age_seconds` at most and until `margin_seconds` before it expires. For that time a
    revocation, or a write by another process, goes unnoticed, and the vault's audit trail has one reveal for many uses.
    Refresh tokens are never kept.
    """

    def __init__(
        self, *, maximum_age_seconds: float = 300.0, margin_seconds: float = 60.0, maximum_tokens: int = 1_000
    ) -> None:
        self._maximum_age_seconds = maximum_age_seconds
        self._margin_seconds = margin_seconds
        self._maximum_tokens = maximum_tokens
        self._entries: OrderedDict[TokenId, tuple[float, RevealedToken]] = OrderedDict()
        self._lock = threading.Lock()
        self.writes = 0  # so far, by the clients that share the cache

    def __repr__(self) -> str:
        return f"TokenCache({len(self._entries)} tokens)"

    def get(self, token_id: TokenId, *, min_ttl_seconds: float | None = None) -> RevealedToken | None:
        """Return the token if it lives for `min_ttl_seconds`, at least for the margin."""
        needed, key = max(self._margin_seconds, min_ttl_seconds or 0.0), _key(token_id)
        with self._lock:
            kept_until, token = self._entries.get(key, (0.0, None))
            if token is None:
                return None
            if time.monotonic() >= kept_until:
                del self._entries[key]
                return None
        return token if _left_seconds(token) > needed else None

    def put(self, token_id: TokenId, token: RevealedToken, *, writes: int | None = None) -> None:
        """Keep a token, unless it expires within the margin.

        `writes` is the count of writes when the token was asked for: after one more, it may be the one before that.
        """
        if token.refresh_token is not None or _left_seconds(token) <= self._margin_seconds:
            return
        key = _key(token_id)
        with self._lock:
            if writes is not None and writes != self.writes:
                return
            self._entries[key] = (time.monotonic() + self._maximum_age_seconds, token)
            self._entries.move_to_end(key)
            while len(self._entries) > self._maximum_tokens:
                self._entries.popitem(last=False)

    def forget(self, user_id: str, token_id: TokenId | None = None) -> None:
        """Drop one token of the user, or all of them, after a write."""
        user_id, only = user_id.lower(), None if token_id is None else _key(token_id)
        with self._lock:
            self.writes += 1
            for key in [key for key in self._entries if key.user_id == user_id and only in {None, key}]:
                del self._entries[key]


def _key(token_id: TokenId) -> TokenId:
    return replace(token_id, user_id=token_id.user_id.lower())  # as the vault reads it


def _left_seconds(token: RevealedToken) -> float:
    if token.expires_at is None:
        return float("inf")
    return (token.expires_at - datetime.now(UTC)).total_seconds()
