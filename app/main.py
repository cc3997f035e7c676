"""The HTTP application and its lifespan."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import structlog
from fastapi import FastAPI
from starlette.types import ASGIApp

from app.api.direct_route import DirectRoute, DirectRouter
from app.api.docs_page import docs_routes
from app.api.metrics_listener import MetricsListener
from app.api.middleware import Admission, RequestContext, RequestSpans
from app.api.openapi import document, document_route
from app.api.problems import PROBLEM_HANDLERS
from app.api.routes import metrics_routes, routers
from app.callers.service_key_directory import ServiceKeyDirectory
from app.composition.audit import build_events, open_audit
from app.composition.callers import build_limits, build_service_key_directory, build_user_jwts
from app.composition.encryption import Encryption, build_encryption
from app.composition.providers import Providers, build_revocation, opened_providers
from app.composition.readiness import build_readiness
from app.composition.stores import open_repository
from app.composition.vault import build_vault
from app.config.settings import Settings, load_settings
from app.instrumentation import Instrumentation, build_instrumentation, counting_rows, gauge_update, updating_gauges
from app.observability.logging import configure_logging, end_log
from app.observability.metrics.registry import Exposition, VaultMetrics
from app.observability.metrics.requests import WireMetrics
from app.observability.readiness import Readiness
from app.observability.unhandled import log_unexpected_end, log_unhandled_in_loop
from app.refresh.revocation import TokenRevocation
from app.rewrap.background import BackgroundSweep
from app.rewrap.legacy_window import warn_of_window
from app.rewrap.on_read import RewrapOnRead
from app.security.local_strategy import LocalStrategy
from app.server.drain import Drain
from app.tokens.cipher import TokenCipher
from app.tokens.events import TokenEvents
from app.tokens.models import StoredToken
from app.tokens.repository import TokenRepository
from app.tokens.vault import TokenVault

if TYPE_CHECKING:  # OpenTelemetry is an extra, and PyJWT and aiohttp take a while to import
    from app.callers.user_jwt import UserJwtVerifier
    from app.observability.tracing import Tracing
    from app.refresh.exchange import CodeExchange


_log = structlog.get_logger()
_DROP_KEYS_SECONDS = 1.0
_DESCRIPTION = """
Stores, reveals and rotates users' OAuth and API tokens. Secrets are encrypted before they reach the store.

Answers carry the token's `version`, also as `ETag`; `If-Match` makes a write conditional. Errors are
RFC 9457 problems: dispatch on `code`, and retry only if `retryable` is true, after `Retry-After` seconds.
"""


class AppState(TypedDict):
    """Objects that the lifespan passes to the routes, and to the protocol below them."""

    vault: TokenVault
    service_keys: ServiceKeyDirectory
    user_jwts: UserJwtVerifier | None
    exchange: CodeExchange | None
    revocation: TokenRevocation
    readiness: Readiness
    events: TokenEvents
    drain: Drain
    exposition: NotRequired[Exposition]
    wire: NotRequired[WireMetrics]


def create_app(
    settings: Settings | None = None,
    *,
    tracing: Tracing | None = None,
    local: LocalStrategy | None = None,
    drain: Drain | None = None,
) -> FastAPI:
    """Build the application; without `settings`, from the environment.

    `tracing` replaces what OTEL_TRACES asks for; `local` is the local strategy of these settings if it exists already.
    `drain` delays SIGTERM once the vault serves.
    """
    settings = settings or load_settings()
    configure_logging(level=settings.log_level, log_format=settings.log_format)
    instrumentation = build_instrumentation(settings, tracing)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[AppState]:
        asyncio.get_running_loop().set_exception_handler(log_unhandled_in_loop)
        try:
            async with _running(settings, instrumentation, local, drain or Drain(seconds=0)) as state:
                yield state
        except Exception as error:
            _log.critical("failed", exc_info=error)
            raise
        finally:
            end_log()  # uvicorn ends a worker by its signal, and atexit does not run then

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
        # FastAPI's spans and metrics would send paths to any exporter that the environment configures
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.router.route_class = DirectRoute
    app.middleware_stack = _middleware(app, settings, instrumentation)
    for router in routers():
        app.router.routes.extend(router.routes)  # include_router would match each path twice
    keyless = metrics_routes() if instrumentation.metrics is not None else []
    if settings.api_docs:
        keyless += [document_route(app), *docs_routes(app)]
    if settings.metrics_port is None:
        app.router.routes.extend(keyless)
    else:
        app.router.routes.insert(0, MetricsListener(port=settings.metrics_port, routes=keyless))
    app.openapi = lambda: document(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


def _middleware(app: FastAPI, settings: Settings, instrumentation: Instrumentation) -> ASGIApp:
    """Return the vault's middlewares around its router, without FastAPI's, which direct routes do not need."""
    routed = DirectRouter(app.router, handlers=PROBLEM_HANDLERS)
    admitted = Admission(routed, limits=build_limits(settings))
    tracing, metrics = instrumentation.tracing, instrumentation.metrics
    traced = admitted if tracing is None else RequestSpans(admitted, tracing=tracing)
    return RequestContext(traced, metrics=None if metrics is None else metrics.requests)


def _warn_of(weaknesses: Iterable[str]) -> None:
    for weakness in weaknesses:
        _log.warning("setting_is_weak", reason=weakness)


@asynccontextmanager
async def _running(
    settings: Settings, instrumentation: Instrumentation, local: LocalStrategy | None, drain: Drain
) -> AsyncIterator[AppState]:
    """Build the vault, run its background work until the block ends, then close everything in reverse order."""
    _warn_of(settings.warnings())
    metrics, tracing = instrumentation.metrics, instrumentation.tracing
    async with AsyncExitStack() as stack:
        if instrumentation.workers is not None:
            stack.callback(instrumentation.workers.close)
        if tracing is not None:
            stack.push_async_callback(tracing.close)
        encryption = build_encryption(
            settings,
            local=local,
            counters=metrics and metrics.encryption,
            observe_kms=nullcontext if tracing is None else tracing.kms_call,
        )
        stack.callback(encryption.close)
        service_keys = build_service_key_directory(settings)
        if endless := service_keys.endless_keys():
            _log.warning("setting_is_weak", reason=endless)
        user_jwts = build_user_jwts(settings, counters=metrics and metrics.user_jwts)
        if user_jwts is not None and user_jwts.key_set is not None:
            stack.callback(_in_background(user_jwts.key_set.run()))
        repository = instrumentation.instrument(await open_repository(settings))
        stack.push_async_callback(repository.close)
        audit = await open_audit(settings, counters=metrics and metrics.audit)
        stack.push_async_callback(audit.close)
        providers = await stack.enter_async_context(opened_providers(settings, observer=metrics and metrics.refreshes))
        on_states = None if metrics is None else metrics.state.readiness
        readiness = build_readiness(
            settings,
            encryption,
            service_keys,
            repository,
            audit,
            user_jwts=user_jwts,
            providers=providers,
            on_states=on_states,
        )
        stack.push_async_callback(readiness.close)
        cipher = TokenCipher(encryption=encryption.service)
        events = build_events(audit, metrics)
        stack.callback(_in_background(_drop_expired_keys(encryption)))

        states = await readiness.states()  # also derives or fetches the primary's key, so no caller waits for it
        ready = "down" not in states.values()
        _log.info("started", store=settings.token_store, primary=encryption.service.primary_scheme, ready=ready)
        if states["store"] != "down":
            stack.callback(_in_background(warn_of_window(repository, allowed=settings.allow_legacy_formats)))
        on_reveal = await stack.enter_async_context(_rewrapping(settings, repository, cipher, events, metrics))
        vault, exchange, revocation = await stack.enter_async_context(
            _refreshing(settings, repository, cipher, events, on_reveal, providers=providers, metrics=metrics)
        )
        state = AppState(
            vault=vault,
            exchange=exchange,
            revocation=revocation,
            service_keys=service_keys,
            user_jwts=None if user_jwts is None else user_jwts.verifier,
            readiness=readiness,
            events=events,
            drain=drain,
        )
        if metrics is not None:
            update = gauge_update(metrics, encryption, service_keys)
            await stack.enter_async_context(updating_gauges(update))
            await stack.enter_async_context(counting_rows(settings, metrics.rows, repository, cipher))
            state |= {"exposition": instrumentation.exposition(update, readiness), "wire": metrics.wire}
        drain.delay_sigterm()
        yield state
    _log.info("stopped")


@asynccontextmanager
async def _refreshing(
    settings: Settings,
    repository: TokenRepository,
    cipher: TokenCipher,
    events: TokenEvents,
    on_reveal: Callable[[StoredToken], None] | None,
    *,
    providers: Providers | None,
    metrics: VaultMetrics | None,
) -> AsyncIterator[tuple[TokenVault, CodeExchange | None, TokenRevocation]]:
    """Build the vault, what revokes tokens, and what refreshes and exchanges them if OAuth providers are configured.

    At the end, refreshes, exchanges and revocations in progress are waited for: what a provider has answered must be
    stored.
    """
    build = partial(build_vault, tokens=repository, cipher=cipher, events=events, on_reveal=on_reveal)
    revocation = build_revocation(providers, tokens=repository, cipher=cipher, events=events)
    if providers is None:
        try:
            yield build(), None, revocation
        finally:
            await revocation.close()
        return
    _warn_of(providers.registry.warnings())
    if metrics is not None:
        metrics.refreshes.follow(providers.registry.names)
    recovery = providers.recovery(tokens=repository, cipher=cipher, events=events)
    refresher = providers.refresher(tokens=repository, cipher=cipher, events=events, recovery=recovery)
    vault = build(refresher=refresher)
    exchange = providers.exchange(vault=vault, tokens=repository, cipher=cipher, events=events)
    background = providers.background(tokens=repository, refresher=refresher, settings=settings)
    if settings.refresh_interval_seconds > 0:
        background.start()
    if recovery is not None:
        recovery.start()
    try:
        yield vault, exchange, revocation
    finally:
        await background.close()
        await asyncio.gather(refresher.close(), exchange.close(), revocation.close())
        if recovery is not None:
            await recovery.close()


@asynccontextmanager
async def _rewrapping(
    settings: Settings,
    repository: TokenRepository,
    cipher: TokenCipher,
    events: TokenEvents,
    metrics: VaultMetrics | None,
) -> AsyncIterator[Callable[[StoredToken], None] | None]:
    """Rewrap tokens while the service runs; yields the function to call with each token that was read."""
    legacy = settings.rewrap_legacy
    on_read = RewrapOnRead(tokens=repository, cipher=cipher, events=events, rewrap_legacy=legacy)
    sweeps = BackgroundSweep(
        tokens=repository,
        cipher=cipher,
        events=events,
        interval_seconds=settings.rewrap_interval_seconds,
        rewrap_legacy=legacy,
        observer=metrics and metrics.sweeps,
    )
    if settings.rewrap_interval_seconds > 0:
        sweeps.start()
    try:
        yield on_read.offer if settings.rewrap_on_read else None
    finally:
        await sweeps.close()
        await on_read.close()


def _in_background(work: Coroutine[Any, Any, None]) -> Callable[[], object]:
    """Run the work as a task and return the function that cancels it."""
    task = asyncio.create_task(work)
    task.add_done_callback(log_unexpected_end)
    return task.cancel


async def _drop_expired_keys(encryption: Encryption) -> None:
    """Drop data keys past their maximum age, also from an idle process."""
    while encryption.data_keys is not None:
        await asyncio.sleep(_DROP_KEYS_SECONDS)
        encryption.data_keys.drop_expired()
