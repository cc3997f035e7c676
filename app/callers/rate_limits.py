"""Rate and concurrency limits of each calling service, and the concurrency limit of the process.

Each process counts for itself: with several replicas a service has the limits once per replica.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from app.errors import Overloaded, RateLimited

BURST_SECONDS: Final = 2.0
LARGEST_REQUEST: Final = 100  # token ids of a batch: a smaller burst could never admit one
_ROUNDING_SECONDS: Final = 1e-6  # a caller that waits exactly Retry-After must pass despite rounding


@dataclass(slots=True)
class _ServiceUse:
    """Use by one service. `free_at` is the time at which its past requests are worked off at the permitted rate.

    `in_flight` counts a batch as its tokens.
    """

    free_at: float = 0.0
    in_flight: int = 0


@dataclass(slots=True, kw_only=True)
class RequestLimits:
    """Limits of rate and concurrency; 0 means no limit.

    The rate limit is GCRA, the leaky bucket of ATM networks (ITU-T I.371): one number per service and no timer. The
    permitted burst is two seconds' worth, or one whole batch if that is more. A refused request costs nothing.

    In the concurrency limits too a batch counts as its tokens; under a limit that is smaller it must be alone.
    """

    tokens_per_second: float = 0.0
    concurrent_per_service: int = 0
    concurrent: int = 0
    monotonic: Callable[[], float] = time.monotonic
    in_flight: int = 0
    # bounded by the number of services with a key
    _uses: defaultdict[str, _ServiceUse] = field(default_factory=lambda: defaultdict(_ServiceUse))

    def admit(self) -> AdmittedRequest:
        """Count a request, or raise `Overloaded`. The result must be closed."""
        if self.concurrent and self.in_flight >= self.concurrent:
            raise Overloaded("the vault has more requests than it can answer in time")
        self.in_flight += 1
        return AdmittedRequest(self)

    def in_flight_of(self, service: str) -> int:
        return self._uses[service].in_flight

    def _enter(self, service: str) -> None:
        use = self._uses[service]
        if self.concurrent_per_service and use.in_flight >= self.concurrent_per_service:
            raise RateLimited(f"the service has {use.in_flight} tokens in progress, which is its limit")
        self._charge(service, 1)
        use.in_flight += 1

    def _widen(self, service: str, tokens: int) -> int:
        """Count a request as `tokens` instead of one, or raise; return the number of places that it takes."""
        use = self._uses[service]
        limits = [limit for limit in (self.concurrent_per_service, self.concurrent) if limit]
        places = min([tokens, *limits])
        if self.concurrent_per_service and use.in_flight - 1 + places > self.concurrent_per_service:
            raise RateLimited(
                f"the service has {use.in_flight - 1} tokens in progress; with this batch it has too many"
            )
        if self.concurrent and self.in_flight - 1 + places > self.concurrent:
            raise Overloaded("the vault has more requests than it can answer in time")
        self.in_flight += places - 1
        use.in_flight += places - 1
        return places

    def _charge(self, service: str, tokens: int, *, charged: int = 0) -> None:
        """Charge `tokens` instead of the `charged` ones, or charge nothing and raise `RateLimited`."""
        if not self.tokens_per_second:
            return
        use, now = self._uses[service], self.monotonic()
        use.free_at -= charged / self.tokens_per_second
        free_at = max(use.free_at, now) + tokens / self.tokens_per_second
        burst_seconds = max(BURST_SECONDS, LARGEST_REQUEST / self.tokens_per_second)
        excess_seconds = free_at - now - burst_seconds - _ROUNDING_SECONDS
        if excess_seconds > 0:
            raise RateLimited(
                f"the service asks for more than {self.tokens_per_second:g} tokens per second",
                retry_after_seconds=math.ceil(excess_seconds),
            )
        use.free_at = free_at

    def _leave(self, service: str | None, places: int) -> None:
        self.in_flight -= places
        if service is not None:
            self._uses[service].in_flight -= places


class AdmittedRequest:
    """A request that counts until it is closed."""

    __slots__ = ("_limits", "_places", "_service")

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits
        self._service: str | None = None
        self._places = 1

    def enter_service(self, service: str) -> None:
        """Count the request as one of this service, or raise `RateLimited`."""
        self._limits._enter(service)  # noqa: SLF001  the two classes are one implementation
        self._service = service

    def charge(self, tokens: int) -> None:
        """Count the request as `tokens` instead of one, or raise `RateLimited` or `Overloaded`."""
        if self._service is None:
            return
        self._limits._charge(self._service, tokens, charged=1)  # noqa: SLF001  the two classes are one implementation
        try:
            self._places = self._limits._widen(self._service, tokens)  # noqa: SLF001  the same
        except (RateLimited, Overloaded):
            self._limits._charge(self._service, 0, charged=tokens)  # noqa: SLF001  the same
            raise

    def close(self) -> None:
        self._limits._leave(self._service, self._places)  # noqa: SLF001  the two classes are one implementation
