"""The HTTP application."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, NotRequired, TypedDict

import structlog
from fastapi import FastAPI

from app.api.middleware import Admission, RequestContext, RequestSpans
from app.api.openapi import document, document_route
from app.api.problems import install_problem_handlers
from app.api.routes import routers
from app.audit.trail import SignedAuditTrail
from app.callers.key_directory import ServiceKeyDirectory
from app.composition import (
    Encryption,
    build_encryption,
    build_events,
    build_limits,
    build_service_key_directory,
    build_vault,
    open_audit,
    open_repository,
)
from app.config.settings import Settings, load_settings
from app.errors import KeyDenied, KeyUnavailable
from app.instrumentation import Instrumentation, build_instrumentation, gauge_updater, periodic_updates, row_census
from app.observability.logging import configure_logging, end_log
from app.observability.metrics.exposition import Exposition
from app.observability.metrics.registry import VaultMetrics
from app.observability.metrics.requests import WireMetrics
from app.observability.readiness import TIMEOUT, CheckState, Readiness, encryption_check, kms_check, service_keys_check
from app.observability.unhandled import log_unhandled_in_loop
from app.rewrap.background import BackgroundSweep
from app.rewrap.on_read import RewrapOnRead
from app.server.hardening import lock_memory_and_log, protect_process
from app.tokens.cipher import TokenCipher
from app.tokens.events import NoAuditTrail, TokenEvents
from app.tokens.models import StoredToken
from app.tokens.repository import TokenRepository
from app.tokens.vault import TokenVault

if TYPE_CHECKING:
    from app.observability.tracing import Tracing


_log = structlog.get_logger()
_SWEEP_SECONDS = 1.0
_DESCRIPTION = """
Stores, reveals and rotates users' OAuth and API tokens. Secrets are encrypted before they reach the store.

Answers carry the token's `version` and the same as `ETag`; `If-Match` on a write makes it conditional. Errors are
RFC 9457 problems: dispatch on `code`, and retry only where `retryable` is true, after `Retry-After` seconds.
"""


class AppState(TypedDict):
    """What the lifespan hands to the routes, and to the protocol below them."""

    vault: TokenVault
    service_keys: ServiceKeyDirectory
    readiness: Readiness
    events: TokenEvents
    exposition: NotRequired[Exposition]
    wire: NotRequired[WireMetrics]


def create_app(settings: Settings | None = None, *, tracing: Tracing | None = None) -> FastAPI:
    """Build the application; without `settings` it reads the environment, as uvicorn's workers need.

    `tracing` takes the place of what OTEL_TRACES asks for.
    """
    settings = settings or load_settings()
    configure_logging(level=settings.log_level, log_format=settings.log_format)
    instrumentation = build_instrumentation(settings, tracing)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[AppState]:
        asyncio.get_running_loop().set_exception_handler(log_unhandled_in_loop)
        try:
            async with _running(settings, instrumentation) as state:
                yield state
        except Exception as error:
            _log.critical("failed", exc_info=error)
            raise
        finally:
            end_log()  # a worker dies of its signal, and nothing is done after that

    app = FastAPI(
        title="PulsePlan token vault",
        summary="The one service that sees key material.",
        description=_DESCRIPTION,
        version=version("pulseplan-token-vault"),
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # its own spans and metrics would carry paths to whatever exporter the environment configures
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    install_problem_handlers(app)
    app.add_middleware(Admission, limits=build_limits(settings))
    if instrumentation.tracing is not None:
        app.add_middleware(RequestSpans, tracing=instrumentation.tracing)
    app.add_middleware(
        RequestContext, metrics=None if instrumentation.metrics is None else instrumentation.metrics.requests
    )
    for router in routers(with_metrics=instrumentation.metrics is not None):
        app.router.routes.extend(router.routes)  # include_router would match each path twice, once for the router
    if settings.api_docs:
        app.router.routes.append(document_route(app))
    app.openapi = lambda: document(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


def create_hardened_app() -> FastAPI:
    """Protect the process before it holds a key, then build the application from the environment."""
    protect_process()
    app = create_app()
    gc.collect()
    gc.freeze()  # what is built lives as long as the process, and gauge_updater at it each time held calls up for 30 ms
    lock_memory_and_log()  # again, because only now is the log configured
    return app


@asynccontextmanager
async def _running(settings: Settings, instrumentation: Instrumentation) -> AsyncIterator[AppState]:
    for warning in settings.warnings():
        _log.warning("setting_is_weak", reason=warning)
    measured, tracing = instrumentation.metrics, instrumentation.tracing
    encryption = build_encryption(
        settings,
        counters=None if measured is None else measured.encryption,
        watch=nullcontext if tracing is None else tracing.kms_call,
    )
    service_keys = build_service_key_directory(settings)
    repository = instrumentation.over(await open_repository(settings))
    audit = await open_audit(settings, counters=None if measured is None else measured.audit)
    readiness = _build_readiness(
        settings,
        encryption,
        service_keys,
        repository,
        audit=audit,
        on_states=None if measured is None else measured.state.readiness,
    )
    cipher = TokenCipher(encryption=encryption.service)
    events = build_events(audit, *(() if measured is None else (measured.operations,)))
    sweeper = asyncio.create_task(_drop_expired_keys(encryption))
    try:
        states = await readiness.states()  # also derives or fetches the writing key, so no caller waits for it
        ready = "down" not in states.values()
        _log.info("started", store=settings.token_store, primary=encryption.service.primary_scheme, ready=ready)
        async with _rewrapping(settings, repository, cipher, events, measured) as on_reveal:
            vault = build_vault(tokens=repository, cipher=cipher, events=events, on_reveal=on_reveal)
            state = AppState(vault=vault, service_keys=service_keys, readiness=readiness, events=events)
            if measured is None:
                yield state
            else:
                look = gauge_updater(measured, encryption, service_keys)
                async with periodic_updates(look), row_census(settings, measured.rows, repository, cipher):
                    yield AppState(**state, exposition=instrumentation.exposition(look, readiness), wire=measured.wire)
    finally:
        sweeper.cancel()
        await readiness.close()
        await audit.close()
        await repository.close()
        encryption.close()
        if tracing is not None:
            await tracing.close()
        if instrumentation.workers is not None:
            instrumentation.workers.close()
        _log.info("stopped")


@asynccontextmanager
async def _rewrapping(
    settings: Settings,
    repository: TokenRepository,
    cipher: TokenCipher,
    events: TokenEvents,
    measured: VaultMetrics | None,
) -> AsyncIterator[Callable[[StoredToken], None] | None]:
    """Move tokens to the current key while the service runs; yields what wants to see each token that is read."""
    on_read = RewrapOnRead(tokens=repository, cipher=cipher, events=events)
    sweeps = BackgroundSweep(
        tokens=repository,
        cipher=cipher,
        events=events,
        interval_seconds=settings.rewrap_interval_seconds,
        observer=None if measured is None else measured.sweeps,
    )
    if settings.rewrap_interval_seconds > 0:
        sweeps.start()
    try:
        yield on_read.offer if settings.rewrap_on_read else None
    finally:
        await sweeps.close()
        await on_read.close()


def _build_readiness(
    settings: Settings,
    encryption: Encryption,
    service_keys: ServiceKeyDirectory,
    repository: TokenRepository,
    *,
    audit: SignedAuditTrail | NoAuditTrail,
    on_states: Callable[[Mapping[str, CheckState]], None] | None,
) -> Readiness:
    checks: dict[str, Callable[[], Awaitable[None]]] = {
        "store": repository.check,
        "encryption": encryption_check(encryption.service, keys_are_remote=settings.use_kms),
        "service_keys": service_keys_check(service_keys),
    }
    if isinstance(audit, SignedAuditTrail):
        checks["audit"] = audit.check
    tolerated: dict[str, frozenset[str]] = {}
    if encryption.kms is not None:
        checks["kms"] = kms_check(encryption.kms)
        # writes need KMS only where it is the primary, and an outage may be bridged, but not a denial
        if not settings.use_kms:
            tolerated["kms"] = frozenset({KeyUnavailable.code, KeyDenied.code, TIMEOUT})
        elif settings.kms_fallback_to_local:
            tolerated["kms"] = frozenset({KeyUnavailable.code, TIMEOUT})
    return Readiness(checks=checks, tolerated=tolerated, on_states=on_states)


async def _drop_expired_keys(encryption: Encryption) -> None:
    """Keep an idle process from holding data keys past their age."""
    while encryption.data_keys is not None:
        await asyncio.sleep(_SWEEP_SECONDS)
        encryption.data_keys.drop_expired()
