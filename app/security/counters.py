"""Counters that encryption reports to."""

from __future__ import annotations

from typing import Protocol


class EncryptionCounters(Protocol):
    """Called from any thread, with no secret, user or key in the arguments."""

    def kms_request(self, operation: str, outcome: str, seconds: float) -> None:
        """Count one request to KMS. `outcome` is `success`, or the error code of KMS or the network.

        A request that is abandoned at the deadline is a `Timeout`, and counts again if it ends later.
        """
        ...

    def data_key_lookup(self, purpose: str, *, hit: bool) -> None:
        """Count a lookup in the data-key cache; `purpose` is `seal` or `open`."""
        ...

    def breaker_state(self, state: str) -> None:
        """Note the breaker's new state: `closed`, `open` or `half_open`."""
        ...

    def fallback_write(self) -> None:
        """Count a token that was encrypted locally because KMS was unavailable."""
        ...

    def decryption_failure(self, reason: str) -> None:
        """Count a failed decryption; `reason` is the error's code."""
        ...
