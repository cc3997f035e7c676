"""Where lines go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from app.audit.chain_checkpoint import ChainCheckpoint
from app.audit.keys import AuditKey


class WriteError(Exception):
    """Not everything was written: `kept` whole lines may stand there all the same. `reason` is an errno's name."""

    def __init__(self, reason: str, *, kept: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.kept = kept


class AuditTarget(Protocol):
    """Takes lines of one chain, in one thread. Each method may block, and raises `WriteError`."""

    def unnamed_chains(self, keys: Sequence[AuditKey]) -> list[ChainCheckpoint]:
        """Return the last lines of those chains beside this one that a start should name."""
        ...

    def append(self, lines: Sequence[bytes], *, durably: bool) -> None:
        """Write the lines, a line feed after each; `durably` returns only once they are on disk."""
        ...

    def flush(self) -> None:
        """Bring everything to disk that was written."""
        ...

    def close(self) -> None: ...
