"""The routes, one module per resource."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.routing import BaseRoute

from app.api.routes import all_tokens, batch, encryption, health, oauth, tokens, user_tokens


def routers() -> list[APIRouter]:
    """Return every router but that of `/metrics`, which may be off or on another port."""
    return [
        tokens.router,
        user_tokens.router,
        all_tokens.router,
        batch.router,
        encryption.router,
        oauth.router,
        health.router,
    ]


def metrics_routes() -> list[BaseRoute]:
    """Return the routes of `/metrics`."""
    return list(health.metrics_router.routes)
