"""The clients: `VaultClient` and, with the same methods as coroutines, `AsyncVaultClient`.

What a call means is in `operations`, when it is repeated in `retries`. `_steps` joins them without input or output;
each client only sends what it yields, and sleeps.
"""

from __future__ import annotations

import asyncio
import copy
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import closing
from datetime import datetime
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar, cast

import httpx

from token_vault_client import operations
from token_vault_client.cache import TokenCache
from token_vault_client.errors import InternalError, UnexpectedAnswer, Unreachable, VaultError, error_of
from token_vault_client.models import RevealedToken, Token, UnreadableToken
from token_vault_client.operations import Call
from token_vault_client.retries import NOT_SENT, NOTHING_DONE, RetryPolicy

P = ParamSpec("P")
T = TypeVar("T")
# the vault ends an operation after 4.5 seconds, and a call to a provider after 10
DEFAULT_TIMEOUT: Final = httpx.Timeout(20.0, connect=2.0)
_HEADER_VALUE: Final = re.compile(r"[!-~]+")
DEFAULT_RETRIES: Final = RetryPolicy()
_GATEWAY_ERRORS: Final = frozenset({429, 502, 503, 504})
_REFUSED: Final = range(400, 500)
_UNAVAILABLE: Final = frozenset({503, 504})

# a request to send, or the seconds to wait; its answer, the failure of the transport, or nothing after a wait
Step = httpx.Request | float
Outcome = httpx.Response | httpx.RequestError | None


class _Client:
    """What both clients share."""

    _http: httpx.Client | httpx.AsyncClient

    def __init__(
        self, base_url: str, service_key: str, *, retries: RetryPolicy, cache: TokenCache | None, purpose: str | None
    ) -> None:
        if httpx.URL(base_url).userinfo:
            raise ValueError("the vault's address holds a user name or password, which the vault does not use")
        self._base_url = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {_header_value('the service key', service_key)}"}
        if purpose is not None:
            self._headers["X-Purpose"] = _header_value("the purpose", purpose)
        self._retries = retries
        self._cache = cache

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._base_url!r})"

    def on_behalf_of(self, user_jwt: str) -> Self:
        """Return a client for calls on behalf of the user with this JWT, over the same connections.

        It has no cache: the vault has to look at the JWT each time.
        """
        client = self._with_header("X-On-Behalf-Of", _header_value("the user's JWT", user_jwt))
        client._cache = None
        return client

    def for_purpose(self, purpose: str) -> Self:
        """Return a client whose calls name this purpose in the vault's audit trail, over the same connections."""
        return self._with_header("X-Purpose", _header_value("the purpose", purpose))

    def _with_header(self, name: str, value: str) -> Self:
        client = copy.copy(self)
        client._headers = {**self._headers, name: value}
        return client

    def _steps(self, call: Call[T]) -> Generator[Step, Outcome, T]:
        """Yield requests and pauses until the call has succeeded; raises `VaultError`."""
        cache = self._cache
        if cache is not None and call.from_cache and call.reveals is not None:
            cached = cache.get(call.reveals, min_ttl_seconds=call.min_ttl)
            if cached is not None:
                return cast("T", cached)
        writes = 0 if cache is None else cache.writes
        try:
            answer = yield from self._attempts(call)
        finally:
            if cache is not None and call.forgets is not None:
                cache.forget(*call.forgets)  # also if the outcome is unknown
                writes += 1
        if cache is not None and call.reveals is not None and isinstance(answer, RevealedToken):
            cache.put(call.reveals, answer, writes=writes)
        return answer

    def _attempts(self, call: Call[T]) -> Generator[Step, Outcome, T]:
        started, attempt = time.monotonic(), 1
        while True:
            outcome = yield self._request(call)
            try:
                return _answer(call, outcome)
            except VaultError as error:
                elapsed = time.monotonic() - started
                pause = self._retries.pause(error, attempt=attempt, elapsed=elapsed, repeatable=call.repeatable)
                if pause is None:
                    raise
            yield pause
            attempt += 1

    def _request(self, call: Call[T]) -> httpx.Request:
        timeout = httpx.Timeout(self._http.timeout)
        if timeout.read is not None:
            timeout.read = max(timeout.read, call.answer_seconds)
        return self._http.build_request(
            call.method,
            self._base_url + call.path,
            params=call.query or None,
            headers={**self._headers, **call.headers},
            json=call.json,
            data=call.form,
            timeout=timeout,
        )


def _method(operation: Callable[P, Call[T]]) -> Callable[Concatenate[VaultClient, P], T]:
    @wraps(operation)
    def method(client: VaultClient, /, *arguments: P.args, **options: P.kwargs) -> T:
        return client.call(operation(*arguments, **options))

    return method


def _async_method(
    operation: Callable[P, Call[T]],
) -> Callable[Concatenate[AsyncVaultClient, P], Coroutine[Any, Any, T]]:
    @wraps(operation)
    async def method(client: AsyncVaultClient, /, *arguments: P.args, **options: P.kwargs) -> T:
        return await client.call(operation(*arguments, **options))

    return method


class VaultClient(_Client):
    """The vault's API. Safe to share between threads.

    `http` replaces the connections, for another time-out, a client certificate or a proxy; variables of the environment
    such as HTTP_PROXY are not used otherwise, and redirects are not followed. An exchange and a revocation have a
    minute, because they wait for the provider. Raises `ValueError` for a key that no header can carry.
    """

    def __init__(
        self,
        base_url: str,
        service_key: str,
        *,
        purpose: str | None = None,
        retries: RetryPolicy = DEFAULT_RETRIES,
        cache: TokenCache | None = None,
        http: httpx.Client | None = None,
    ) -> None:
        super().__init__(base_url, service_key, retries=retries, cache=cache, purpose=purpose)
        self._http: httpx.Client = http or httpx.Client(timeout=DEFAULT_TIMEOUT, trust_env=False)

    store = _method(operations.store)
    store_token_response = _method(operations.store_token_response)
    reveal = _method(operations.reveal)
    refresh = _method(operations.refresh)
    exchange = _method(operations.exchange)
    patch = _method(operations.patch)
    rotate = _method(operations.rotate)
    rewrap = _method(operations.rewrap)
    delete = _method(operations.delete)
    list_for_user = _method(operations.list_for_user)
    list_page = _method(operations.list_page)
    erase_user = _method(operations.erase_user)
    batch_get = _method(operations.batch_get)
    exchange_token = _method(operations.exchange_token)
    encryption_status = _method(operations.encryption_status)
    readiness = _method(operations.readiness)

    def list_all(
        self, *, provider: str | None = None, status: str | None = None, expires_before: datetime | None = None
    ) -> Iterator[Token | UnreadableToken]:
        """Yield the tokens of all users that match, without secrets, page after page."""
        cursor = None
        while True:
            page = self.list_page(provider=provider, status=status, expires_before=expires_before, cursor=cursor)
            yield from page.tokens
            yield from page.unreadable
            if (cursor := page.next_cursor) is None:
                return

    def call(self, call: Call[T]) -> T:
        """Send one call of `token_vault_client.operations`, and repeat it where that is safe."""
        steps, outcome = self._steps(call), None
        with closing(steps):  # if the call is interrupted
            while True:
                try:
                    step = steps.send(outcome)
                except StopIteration as ended:
                    return cast("T", ended.value)
                outcome = self._perform(step)

    def _perform(self, step: Step) -> Outcome:
        if isinstance(step, float):
            time.sleep(step)
            return None
        try:
            return self._http.send(step, auth=None, follow_redirects=False)
        except httpx.RequestError as error:
            return error

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncVaultClient(_Client):
    """The vault's API as coroutines. Safe to share between the tasks of one event loop. Options as of `VaultClient`."""

    def __init__(
        self,
        base_url: str,
        service_key: str,
        *,
        purpose: str | None = None,
        retries: RetryPolicy = DEFAULT_RETRIES,
        cache: TokenCache | None = None,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        super().__init__(base_url, service_key, retries=retries, cache=cache, purpose=purpose)
        self._http: httpx.AsyncClient = http or httpx.AsyncClient(timeout=DEFAULT_TIMEOUT, trust_env=False)

    store = _async_method(operations.store)
    store_token_response = _async_method(operations.store_token_response)
    reveal = _async_method(operations.reveal)
    refresh = _async_method(operations.refresh)
    exchange = _async_method(operations.exchange)
    patch = _async_method(operations.patch)
    rotate = _async_method(operations.rotate)
    rewrap = _async_method(operations.rewrap)
    delete = _async_method(operations.delete)
    list_for_user = _async_method(operations.list_for_user)
    list_page = _async_method(operations.list_page)
    erase_user = _async_method(operations.erase_user)
    batch_get = _async_method(operations.batch_get)
    exchange_token = _async_method(operations.exchange_token)
    encryption_status = _async_method(operations.encryption_status)
    readiness = _async_method(operations.readiness)

    async def list_all(
        self, *, provider: str | None = None, status: str | None = None, expires_before: datetime | None = None
    ) -> AsyncIterator[Token | UnreadableToken]:
        """Yield the tokens of all users that match, without secrets, page after page."""
        cursor = None
        while True:
            page = await self.list_page(provider=provider, status=status, expires_before=expires_before, cursor=cursor)
            for token in page.tokens:
                yield token
            for row in page.unreadable:
                yield row
            if (cursor := page.next_cursor) is None:
                return

    async def call(self, call: Call[T]) -> T:
        """Send one call of `token_vault_client.operations`, and repeat it where that is safe."""
        steps, outcome = self._steps(call), None
        with closing(steps):  # if the task is cancelled
            while True:
                try:
                    step = steps.send(outcome)
                except StopIteration as ended:
                    return cast("T", ended.value)
                outcome = await self._perform(step)

    async def _perform(self, step: Step) -> Outcome:
        if isinstance(step, float):
            await asyncio.sleep(step)
            return None
        try:
            return await self._http.send(step, auth=None, follow_redirects=False)
        except httpx.RequestError as error:
            return error

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _answer(call: Call[T], outcome: Outcome) -> T:
    """Return what the answer holds, or raise the error that the outcome means."""
    writes = call.forgets is not None
    if not isinstance(outcome, httpx.Response):
        not_sent = isinstance(outcome, NOT_SENT)
        reason = type(outcome).__name__  # its text and its request stay out of the error
        raise Unreachable(f"no answer: {reason}", retryable=True, outcome_unknown=writes and not not_sent)
    body: Any = None
    try:
        body = outcome.json() if outcome.content else None
        if outcome.is_success or outcome.status_code in call.accepted:
            return call.parse(body)
        code = str(body["code"])
    except (AttributeError, KeyError, TypeError, ValueError):
        code, body = "", None  # which may hold a secret, and tools show the variables of a traceback
    seconds = outcome.headers.get("retry-after", "")
    retry_after_seconds = float(seconds) if seconds.isdecimal() else None
    if not code:
        raise UnexpectedAnswer(
            f"status {outcome.status_code} with something that is not the vault's",
            status=outcome.status_code,
            retryable=outcome.status_code in _GATEWAY_ERRORS,
            retry_after_seconds=retry_after_seconds,
            outcome_unknown=writes and outcome.status_code not in _REFUSED,
        )
    raise error_of(
        body,
        status=outcome.status_code,
        retry_after_seconds=retry_after_seconds,
        outcome_unknown=writes and _is_unknown(outcome.status_code, code),
    )


def _header_value(name: str, value: str) -> str:
    """Return the value if a header can carry it. No error shows it."""
    if not _HEADER_VALUE.fullmatch(value):
        raise ValueError(f"{name} is empty, or has a space, a line break or another character that no header carries")
    return value


def _is_unknown(status: int, code: str) -> bool:
    """Return whether a write may have happened: a wrong key or a wrong row, also 500, is found before it."""
    return (status in _UNAVAILABLE and code not in NOTHING_DONE) or code == InternalError.code
