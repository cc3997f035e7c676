"""The routes, one module per resource."""

from __future__ import annotations

from fastapi import APIRouter

from app.api.routes import batch, encryption, health, tokens, user_tokens


def routers(*, with_metrics: bool) -> list[APIRouter]:
    """Return every router; that of `/metrics` only if metrics are on."""
    always = [tokens.router, user_tokens.router, batch.router, encryption.router, health.router]
    return [*always, health.metrics_router] if with_metrics else always
