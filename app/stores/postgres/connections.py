"""Connections to PostgreSQL: which server, how many, and for how long.

**A statement is never cancelled.** It runs in a task of its own, so a caller that leaves does not disturb the
connection. One that exceeds its deadline loses its connection, without a cancel request: a cancelled COMMIT that waits
for a synchronous replica is reported as committed although no replica has it
(<https://www.postgresql.org/docs/current/warm-standby.html#SYNCHRONOUS-REPLICATION>), and through a pooler a late
cancel request may hit another session's statement.

**Waiting for a standby.** The server does not notice that a client has left while a commit waits for a synchronous
standby that is gone, and no time limit of the server ends that wait. So some seconds after a statement has exceeded its
deadline, every session of this user that has waited for longer than any deadline is ended; otherwise these sessions
would take up every connection of the server. Their commits are visible then, and get to the standby later; none was
ever reported as a success.

**Poolers.** A transaction pooler (PgBouncer, Supavisor) runs each transaction on another session, where a prepared
statement does not exist. It also invents the process id that it gives to clients. So each new connection compares that
id with the session's own; if they differ, nothing is prepared and no session setting is sent.

**Replicas.** PgBouncer repeats to new clients what the server said about being a standby when it last connected. So
each new connection asks the server itself, and every read says whether a standby answered it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import asyncpg

from app.config.database_url import DatabaseUrl, DatabaseUrlError
from app.config.source import SettingsError
from app.errors import StoreError, StoreMisconfigured, StoreTimeout, StoreUnavailable
from app.stores.lost_answers import UnknownOutcomeError
from app.stores.postgres.errors import DOWN, FAILURES, FULL, SLOW, STALE_SESSION, STANDBY, meaning, meaning_at_connect

WAIT_SECONDS: Final = 1.0  # for a free connection
STATEMENT_SECONDS: Final = 4.0
_CONNECT_SECONDS: Final = 2.0  # for each host
_CLOSE_SECONDS: Final = 5.0
_LEFT_SECONDS: Final = 2.5  # between a deadline and the end of the session
_PREPARED_STATEMENTS: Final = 100
_STATE: Final = """
select pg_catalog.pg_backend_pid() as backend, pg_catalog.pg_is_in_recovery() as in_recovery,
    pg_catalog.current_setting('transaction_read_only')::boolean as read_only
"""
# without a pooler, the server ends a statement before the client gives up its connection
_SESSION: Final = {"statement_timeout": "3000", "idle_in_transaction_session_timeout": "10000", "DateStyle": "ISO"}
# longer than `STATEMENT_SECONDS`: nobody waits for the answer any more
_END_WAITING_SESSIONS: Final = """
select pg_catalog.pg_terminate_backend(pid) from pg_catalog.pg_stat_activity
where usename = current_user and wait_event = 'SyncRep'
    and pg_catalog.clock_timestamp() - query_start > interval '6 seconds'
"""
_Host = tuple[str, int]


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    def get_reset_query(self) -> str:
        """Reset nothing between two uses: the vault's statements leave nothing in a session."""
        return ""


class _Deadline:
    """Closes a connection unless the block ends in time. asyncpg's own time limits send a cancel request."""

    def __init__(self, connection: Any, seconds: float) -> None:  # noqa: ANN401  asyncpg has no types
        self.passed = False
        self._connection = connection
        self._seconds = seconds

    def __enter__(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._close)

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _close(self) -> None:
        self.passed = True
        self._connection.terminate()


class Connections:
    """A pool that connects when it is first used, and finds the primary again after a failover."""

    def __init__(self, *, url: Callable[[], DatabaseUrl], size: int) -> None:
        """`url` is called for each new connection and raises `DatabaseUrlError`."""
        self._url = url
        self._size = size
        self._pool: Any = None
        self._free = asyncio.Semaphore(size)
        self._running: set[asyncio.Task[Any]] = set()
        self._last_host: _Host | None = None
        self._direct_hosts: set[_Host | None] = set()
        self._deadline_passed = False
        self._ending: asyncio.Task[None] | None = None

    @property
    def direct(self) -> bool:
        """Whether the last connection reached PostgreSQL without a pooler."""
        return self._last_host in self._direct_hosts

    async def open(self) -> None:
        """Create the pool. Connects to nothing."""
        self._pool = await asyncpg.create_pool(
            min_size=0, max_size=self._size, connect=self._connect, connection_class=_Connection
        )

    async def read(self, sql: str, *arguments: object, slow_seconds: float | None = None) -> list[Any]:
        """Run a statement whose outcome need not be known; raises a `StoreError`.

        `slow_seconds` is the time limit of one that takes longer than others may.
        """
        try:
            return await self.write(sql, *arguments, slow_seconds=slow_seconds)
        except UnknownOutcomeError as unknown:
            raise unknown.store_error from None

    async def close(self) -> None:
        """Let running statements end for a few seconds, then close every connection."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=_CLOSE_SECONDS)
        if self._ending is not None:
            self._ending.cancel()
            await asyncio.wait([self._ending])
        if self._pool is not None:
            try:
                await asyncio.wait_for(self._pool.close(), timeout=1)
            except FAILURES:
                self._pool.terminate()

    async def write(self, sql: str, *arguments: object, slow_seconds: float | None = None) -> list[Any]:
        """Run one statement once and return its rows; raises a `StoreError` or `UnknownOutcomeError`.

        A caller may leave the wait for a free connection, and the statement too, which goes on without it.
        """
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._free.acquire()
        except TimeoutError:
            raise StoreUnavailable(FULL) from None
        task = asyncio.create_task(self._run(sql, arguments, slow_seconds))
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._free.release()
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # the caller may have left

    async def _run(self, sql: str, arguments: Sequence[object], slow_seconds: float | None) -> list[Any]:
        connection = await self._acquire()
        try:
            return await self._execute(connection, sql, arguments, slow_seconds)
        finally:
            await self._release(connection)

    async def _acquire(self) -> Any:  # noqa: ANN401  asyncpg has no types
        try:
            return await self._pool.acquire()
        except StoreError:
            raise
        except FAILURES:
            raise StoreUnavailable(DOWN) from None

    async def _release(self, connection: Any) -> None:  # noqa: ANN401  asyncpg has no types
        try:
            await self._pool.release(connection)
        except FAILURES:
            connection.terminate()

    async def _execute(
        self,
        connection: Any,  # noqa: ANN401  asyncpg has no types
        sql: str,
        arguments: Sequence[object],
        slow_seconds: float | None,
    ) -> list[Any]:
        deadline = _Deadline(connection, slow_seconds or STATEMENT_SECONDS)
        try:
            with deadline:
                if slow_seconds is None:
                    rows = await connection.fetch(sql, *arguments)
                else:
                    async with connection.transaction():
                        await connection.execute(f"set local statement_timeout = '{slow_seconds:.0f}s'")
                        rows = await connection.fetch(sql, *arguments)
        except FAILURES as error:
            if deadline.passed:
                self._deadline_passed = True
                if self._ending is None or self._ending.done():
                    self._ending = asyncio.create_task(self._end_waiting_sessions())
                raise UnknownOutcomeError(StoreTimeout(SLOW)) from None
            if getattr(error, "sqlstate", None) in STALE_SESSION:
                await self._pool.expire_connections()
            raise meaning(error) from None
        if rows and rows[0].get("in_recovery"):  # it may lack what is stored
            await self._pool.expire_connections()
            raise StoreUnavailable(STANDBY)
        return list(rows)

    async def _end_waiting_sessions(self) -> None:
        """End the sessions that wait for a standby, until no more deadlines pass."""
        while self._deadline_passed:
            self._deadline_passed = False
            await asyncio.sleep(_LEFT_SECONDS)
            try:
                await self.read(_END_WAITING_SESSIONS)
            except StoreError:
                self._deadline_passed = True

    async def _connect(self, *_: object, **pool_options: Any) -> Any:  # noqa: ANN401  asyncpg has no types
        """Connect to the first host that takes writes, the last one that did before the others."""
        try:
            url = self._url()
            tls = url.tls()
        except (DatabaseUrlError, SettingsError):
            raise StoreMisconfigured("DATABASE_URL, or a file that it or DATABASE_URL_FILE names, is wrong") from None
        hosts: list[_Host | None] = sorted(url.hosts, key=lambda host: host != self._last_host) or [None]
        failures: list[StoreError] = []
        for host in hosts:
            try:
                connection = await self._connect_host(url, tls, host, pool_options)
            except FAILURES as error:
                self._direct_hosts.discard(host)  # a pooler refuses the session settings
                failures.append(meaning_at_connect(error))
            except StoreError as error:
                failures.append(error)
            else:
                self._last_host = host
                return connection
        raise min(failures, key=lambda failure: not isinstance(failure, StoreMisconfigured))

    async def _connect_host(
        self,
        url: DatabaseUrl,
        tls: Any,  # noqa: ANN401  an SSLContext, a mode of libpq or None
        host: _Host | None,
        pool_options: dict[str, Any],
    ) -> Any:  # noqa: ANN401  asyncpg has no types
        place = {} if host is None else {"host": host[0], "port": host[1]}
        while True:
            direct = host in self._direct_hosts
            connection = await asyncpg.connect(
                url.text,
                **place,
                **pool_options,
                ssl=tls,
                target_session_attrs="any",  # asyncpg believes a pooler; `_STATE` asks the server
                timeout=_CONNECT_SECONDS,
                statement_cache_size=_PREPARED_STATEMENTS if direct else 0,
                server_settings={"application_name": "token-vault", **(_SESSION if direct else {})},
            )
            try:
                with _Deadline(connection, _CONNECT_SECONDS):
                    state = await connection.fetchrow(_STATE)
            except BaseException:
                connection.terminate()
                raise
            refused = state["in_recovery"] or (state["read_only"] and url.target_session_attrs == "read-write")
            as_expected = (state["backend"] == connection.get_server_pid()) == direct
            if as_expected and not refused:
                return connection
            connection.terminate()
            if refused:
                raise StoreUnavailable(STANDBY)
            self._direct_hosts ^= {host}
