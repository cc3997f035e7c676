"""The HTTP application."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, TypedDict

import structlog
from fastapi import FastAPI

from app.api import batch, health, tokens, user_tokens
from app.api.openapi import document
from app.api.problems import install_problem_handlers
from app.api.request_context import RequestContext
from app.callers.directory import ServiceKeyDirectory
from app.composition import (
    build_encryption_service,
    build_service_key_directory,
    build_vault,
    open_repository,
)
from app.config.settings import Settings, load_settings
from app.errors import StoreMisconfigured
from app.observability.logging import configure_logging
from app.observability.readiness import Readiness
from app.tokens.vault import TokenVault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_log = structlog.get_logger()
_DESCRIPTION = """
Stores, reveals and rotates users' OAuth and API tokens. Secrets are encrypted before they reach the store.

Answers carry the token's `version` and the same as `ETag`; `If-Match` on a write makes it conditional. Errors are
RFC 9457 problems: dispatch on `code`, and retry only where `retryable` is true, after `Retry-After` seconds.
"""


class State(TypedDict):
    """What the lifespan hands to the routes."""

    vault: TokenVault
    service_keys: ServiceKeyDirectory
    readiness: Readiness


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application; without `settings` it reads the environment, as uvicorn's workers need."""
    settings = settings or load_settings()
    configure_logging(level=settings.log_level, log_format=settings.log_format)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        for warning in settings.warnings():
            _log.warning("setting_is_weak", reason=warning)
        encryption = build_encryption_service(settings)
        service_keys = build_service_key_directory(settings)
        repository = await open_repository(settings)
        await asyncio.to_thread(encryption.self_test)  # derives the writing key, so no caller waits for it

        async def check_encryption() -> None:
            encryption.self_test()

        async def check_service_keys() -> None:
            if service_keys.problem is not None:
                raise StoreMisconfigured(service_keys.problem)

        readiness = Readiness(
            checks={
                "store": repository.check,
                "encryption": check_encryption,
                "service_keys": check_service_keys,
            }
        )
        try:
            states = await readiness.states()
            _log.info(
                "started", store=settings.token_store, primary=encryption.primary_scheme, ready=all(states.values())
            )
            vault = build_vault(tokens=repository, encryption=encryption)
            yield State(vault=vault, service_keys=service_keys, readiness=readiness)
        finally:
            await repository.close()
            _log.info("stopped")

    app = FastAPI(
        title="PulsePlan token vault",
        summary="The one service that sees key material.",
        description=_DESCRIPTION,
        version=version("pulseplan-token-vault"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    install_problem_handlers(app)
    app.add_middleware(RequestContext)
    for router in (tokens.router, user_tokens.router, batch.router, health.router):
        app.include_router(router)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app
