"""How much one service may ask for, and how much the process takes on at all.

Counts are this process's own: with several replicas a service may ask each of them for so much.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from app.errors import Overloaded, RateLimited

BURST_SECONDS: Final = 2.0
LARGEST_REQUEST: Final = 100  # token ids of a batch; what can never pass would be told to wait for ever
_ROUNDING_SECONDS: Final = 1e-6  # whoever waits as long as it was told must not meet a rounding error


@dataclass(slots=True)
class _Use:
    """One service's use. `free_at` is when what it has asked for would be worked off at the permitted rate."""

    free_at: float = 0.0
    in_flight: int = 0


@dataclass(slots=True, kw_only=True)
class Limits:
    """Rates and concurrency, by service and altogether; 0 means no limit.

    The rate is GCRA, the leaky bucket of ATM networks (ITU-T I.371): one number for each service, and no timer. What
    was saved up in quiet times allows a burst of two seconds' worth, and of one whole batch at least. What is refused
    costs nothing.
    """

    tokens_per_second: float = 0.0
    concurrent_per_service: int = 0
    concurrent: int = 0
    monotonic: Callable[[], float] = time.monotonic
    in_flight: int = 0
    _uses: dict[str, _Use] = field(default_factory=dict)

    def admit(self) -> Admitted:
        """Take on a request, or raise `Overloaded`; the result has to be closed."""
        if self.concurrent and self.in_flight >= self.concurrent:
            raise Overloaded("the vault has more requests than it can answer in time")
        self.in_flight += 1
        return Admitted(self)

    def in_flight_of(self, service: str) -> int:
        return self._use(service).in_flight

    def _enter(self, service: str) -> None:
        use = self._use(service)
        if self.concurrent_per_service and use.in_flight >= self.concurrent_per_service:
            raise RateLimited(f"the service has {use.in_flight} requests under way, which is its limit")
        self._charge(service, 1)
        use.in_flight += 1

    def _charge(self, service: str, tokens: int, *, charged: int = 0) -> None:
        """Count `tokens` in the place of the `charged` ones, or none at all and raise `RateLimited`."""
        if not self.tokens_per_second:
            return
        use, now = self._use(service), self.monotonic()
        use.free_at -= charged / self.tokens_per_second
        free_at = max(use.free_at, now) + tokens / self.tokens_per_second
        burst_seconds = max(BURST_SECONDS, LARGEST_REQUEST / self.tokens_per_second)
        over_seconds = free_at - now - burst_seconds - _ROUNDING_SECONDS
        if over_seconds > 0:
            raise RateLimited(
                f"the service asks for more than {self.tokens_per_second:g} tokens a second",
                retry_after_seconds=math.ceil(over_seconds),
            )
        use.free_at = free_at

    def _leave(self, service: str | None) -> None:
        self.in_flight -= 1
        if service is not None:
            self._use(service).in_flight -= 1

    def _use(self, service: str) -> _Use:
        return self._uses.setdefault(service, _Use())  # as many as services have keys


class Admitted:
    """One request that was taken on. Closing it gives back what it holds, however far it came."""

    __slots__ = ("_limits", "_service")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._service: str | None = None

    def enter_service(self, service: str) -> None:
        """Count the request as this service's, or raise `RateLimited`."""
        self._limits._enter(service)  # noqa: SLF001  its other half
        self._service = service

    def charge(self, tokens: int) -> None:
        """Count the request as so many tokens and not as one, or raise `RateLimited` with the seconds to wait."""
        if self._service is not None:
            self._limits._charge(self._service, tokens, charged=1)  # noqa: SLF001  its other half

    def close(self) -> None:
        self._limits._leave(self._service)  # noqa: SLF001  its other half
