"""What the audit trail counts, for whoever exports it."""

from __future__ import annotations

from typing import Protocol


class AuditCounters(Protocol):
    """Called from any thread, after the fact; never with anything of an event in its arguments."""

    def audit_events(self, count: int) -> None:
        """Count events that are kept."""
        ...

    def audit_failure(self, reason: str) -> None:
        """Count a write that failed; `reason` is an errno's name, `slow`, or `full` where too many were waiting."""
        ...

    def audit_omitted(self) -> None:
        """Count a refusal that was left out because its caller had too many of them at once."""
        ...
