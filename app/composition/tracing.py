"""Tracing, which is an extra."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.config.settings import SettingsError

if TYPE_CHECKING:  # an extra
    from app.observability.tracing import Tracing


def load_tracing() -> Tracing:
    """Build the tracing; raises `SettingsError` if the extra `otel` is not installed."""
    require_tracing()
    from app.observability.tracing import Tracing  # noqa: PLC0415  an extra

    return Tracing()


def require_tracing() -> None:
    """Raise `SettingsError` if the extra `otel` is not installed."""
    try:
        import app.observability.tracing  # noqa: F401, PLC0415  only whether it can be imported
    except ImportError:
        raise SettingsError(
            "OTEL_TRACES is true, and that needs the extra `otel`: pip install 'pulseplan-token-vault[otel]'"
        ) from None
