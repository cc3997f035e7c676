"""What encryption counts, for whoever exports it."""

from __future__ import annotations

from typing import Protocol


class EncryptionCounters(Protocol):
    """Called from any thread, after the fact; never with a secret, a user or a key in its arguments."""

    def kms_request(self, operation: str, outcome: str, seconds: float) -> None:
        """Count one request to KMS. `outcome` is `success`, or the error code that KMS or the network gave.

        What is given up after the deadline is a `Timeout`, and counts again should it end after all.
        """
        ...

    def data_key_lookup(self, purpose: str, *, hit: bool) -> None:
        """Count a look into the data-key cache; `purpose` is `seal` or `open`."""
        ...

    def breaker_state(self, state: str) -> None:
        """Note that the breaker is now `closed`, `open` or `half_open`."""
        ...

    def fallback_write(self) -> None:
        """Count a secret that was sealed locally because KMS was unavailable."""
        ...

    def decryption_failure(self, reason: str) -> None:
        """Count a ciphertext that did not open; `reason` is the error's code."""
        ...
