"""What one connection may take of a process, and how many connections there are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class WireLimits:
    """What one connection may take. A request is at most 64 KiB of body, which in chunks of a byte are six times that.

    `request_seconds` is longer than `app.api.request_body` waits, so that what the application says goes out first.
    While a request is answered nothing behind it is read, but for `held_bytes` that have come already, in which at most
    `pipelined` requests are begun. `unread_seconds` is for a whole answer, however often its reader stirs.
    `idle_seconds` is above the 60 s of common load balancers, so that it is not us who cut an idle connection.
    """

    head_bytes: int = 32 * 1024
    request_bytes: int = 1024 * 1024
    pipelined: int = 2
    held_bytes: int = 64 * 1024
    head_seconds: float = 10.0
    request_seconds: float = 20.0
    unread_seconds: float = 20.0
    idle_seconds: float = 75.0
    closing_seconds: float = 10.0
    tick_seconds: float = 1.0
    connections: int = 1000
