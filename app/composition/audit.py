"""The audit trail, and what observes the operations on tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from app.audit.chained_lines import Chain
from app.audit.log_files import LogFiles
from app.audit.targets import STANDARD_OUTPUT, AuditTarget, FileTarget, StreamTarget, is_stream
from app.audit.trail import SignedAuditTrail
from app.audit.writer import AuditCounters
from app.config.audit import audit_key
from app.config.service_keys import ServiceKeySettings
from app.config.settings import Settings
from app.observability.in_memory_counters import InMemoryAuditCounters
from app.observability.request_log import OperationLog
from app.tokens.events import AuditTrail, NoAuditTrail, TokenEvents

if TYPE_CHECKING:  # imports prometheus-client, which takes a while
    from app.observability.metrics.registry import VaultMetrics


async def open_audit(
    settings: Settings | ServiceKeySettings,
    *,
    counters: AuditCounters | None = None,
    standard_stream: int = STANDARD_OUTPUT,
) -> SignedAuditTrail | NoAuditTrail:
    """Start this process's chain if AUDIT_LOG is set. A trail that cannot be written opens as unavailable.

    `standard_stream` is the descriptor that AUDIT_LOG=- stands for.
    """
    if settings.audit_log is None or settings.audit_key is None:
        return NoAuditTrail()
    chain = Chain(key=audit_key(settings.audit_key))
    audit = SignedAuditTrail(
        target=_audit_target(settings, settings.audit_log, chain, standard_stream),
        chain=chain,
        previous_keys=[audit_key(text) for text in settings.audit_previous_keys],
        sync=settings.audit_sync,
        counters=counters or InMemoryAuditCounters(),
    )
    await audit.open()
    return audit


def _audit_target(
    settings: Settings | ServiceKeySettings, audit_log: str, chain: Chain, standard_stream: int
) -> AuditTarget:
    if is_stream(audit_log):
        return StreamTarget(path=None if audit_log == "-" else Path(audit_log), standard=standard_stream)
    return FileTarget(
        log_files=LogFiles(Path(audit_log)),
        chain=chain.id,
        maximum_bytes=settings.audit_max_bytes,
        flushing=settings.audit_sync != "off",
    )


def build_events(audit: AuditTrail, metrics: VaultMetrics | None = None) -> TokenEvents:
    """Connect the audit trail, the log and the metrics to every operation on a token."""
    if metrics is None:
        return TokenEvents(audit=audit, observers=[OperationLog()])
    return TokenEvents(
        audit=audit,
        observers=[OperationLog(), metrics.operations, metrics.callers],
        on_refusal=metrics.callers.refused,
    )
