"""What KMS costs a month, with and without the data-key cache."""

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
    """Return what this many requests cost beyond the free ones."""
    return requests * DOLLARS_PER_10_000_REQUESTS / 10_000


@dataclass(frozen=True, slots=True)
class Usage:
    """What `users`, with one token each, do in a month.

    Every replica has a cache of its own, and a user's operations are spread over all of them. A cache holds a key for
    `max_age_seconds` from when KMS gave it, however often it is used, and has room for everybody who is active within
    that time.
    """

    users: int
    operations_per_user: int
    max_age_seconds: int
    replicas: int = 1

    @property
    def operations(self) -> int:
        return self.users * self.operations_per_user

    def requests_in_visits(self, operations_per_visit: int) -> int:
        """Return what remains where operations come together, a visit within the cache age and none in between.

        The first operation of a visit at each replica asks KMS, the others find the data key. A visit that both reads
        an older token and stores one asks once more; that is not counted.
        """
        full, rest = divmod(self.operations_per_user, operations_per_visit)
        return self.users * (full * min(self.replicas, operations_per_visit) + min(self.replicas, rest))

    def requests_far_apart(self) -> int:
        """Return what remains where operations spread evenly: a replica asks once to open and once to seal in each age.

        An estimate: several replicas that store for one user also unwrap each other's data keys.
        """
        ages = _rounded_up(MONTH_SECONDS, self.max_age_seconds)
        return self.users * min(self.operations_per_user, 2 * self.replicas * ages)


def requests_of_checks(*, replicas: int, probe_seconds: int, max_age_seconds: int) -> int:
    """Return what readiness asks for where it is polled all the time: the probe, and the self-test's data key."""
    return replicas * (_rounded_up(MONTH_SECONDS, probe_seconds) + _rounded_up(MONTH_SECONDS, max_age_seconds))


def _rounded_up(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)
