"""Monthly cost of KMS, with and without the data-key cache."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

# AWS KMS pricing for symmetric keys, US East (N. Virginia): <https://aws.amazon.com/kms/pricing/>
DOLLARS_PER_KEY: Final = Decimal("1.00")
DOLLARS_PER_10_000_REQUESTS: Final = Decimal("0.03")
FREE_REQUESTS: Final = 20_000
MONTH_SECONDS: Final = 30 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Bill:
    requests: int
    dollars: Decimal


def monthly_bill(requests: int) -> Bill:
    """Return the bill for one key and this many requests."""
    return Bill(requests, DOLLARS_PER_KEY + price_of(max(0, requests - FREE_REQUESTS)))


def price_of(requests: int) -> Decimal:
    """Return the price in dollars of requests beyond the free ones."""
    return requests * DOLLARS_PER_10_000_REQUESTS / 10_000


@dataclass(frozen=True, slots=True)
class Usage:
    """A month's operations of `users` with one token each.

    Every replica has its own cache, and a user's operations are spread over all replicas. A cache holds a data key for
    `max_age_seconds` after KMS returned it, and is large enough for all users who are active within that time.
    """

    users: int
    operations_per_user: int
    max_age_seconds: int
    replicas: int = 1

    @property
    def operations(self) -> int:
        return self.users * self.operations_per_user

    def requests_in_visits(self, operations_per_visit: int) -> int:
        """Return the requests if operations come in visits, each shorter than the cache age and apart by more.

        The first operation of a visit at each replica takes a request. A visit that both reads an older token and
        stores one takes another, which is not counted.
        """
        full, rest = divmod(self.operations_per_user, operations_per_visit)
        return self.users * (full * min(self.replicas, operations_per_visit) + min(self.replicas, rest))

    def requests_far_apart(self) -> int:
        """Return the requests if operations spread evenly: one to decrypt and one to encrypt per replica and cache age.

        An estimate, because replicas that store for one user also unwrap each other's data keys.
        """
        ages = _rounded_up(MONTH_SECONDS, self.max_age_seconds)
        return self.users * min(self.operations_per_user, 2 * self.replicas * ages)


def requests_of_checks(*, replicas: int, probe_seconds: int, max_age_seconds: int) -> int:
    """Return the requests of readiness checks that are polled all month: the probe, and the self-test's data key."""
    return replicas * (_rounded_up(MONTH_SECONDS, probe_seconds) + _rounded_up(MONTH_SECONDS, max_age_seconds))


def _rounded_up(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)
