"""A stand-in for PulsePlan's own token service, which reads and writes the table in its process."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, LiteralString

from tests.support.rewrap.sweeps import opened_as_pulseplan, pulseplan_ciphertext
from tests.support.stack.postgres import Database, Postgres

_PAUSE_SECONDS: Final = 0.02
_READ: LiteralString = "select user_id::text, access_token from public.oauth_tokens"
_UPSERT: LiteralString = """
insert into public.oauth_tokens (user_id, provider, access_token, refresh_token, expires_at, last_refreshed,
    service_type)
values (%s, 'google', %s, '', now(), now(), 'calendar')
on conflict (user_id, provider) do update set access_token = excluded.access_token, last_refreshed = now()
"""


class PulsePlan:
    """Rewrites each user's token, and reads all of them, over and over while `writes` and `reads` are true."""

    def __init__(self, database: Database, users: Sequence[str]) -> None:
        self.writes = self.reads = True
        self.rounds = 0
        self.errors: list[str] = []
        self.begun = dict.fromkeys(users, 0)
        self.written = dict.fromkeys(users, 0)
        self._database = database
        self._ended = threading.Event()

    def write(self, user: str) -> None:
        self.begun[user] += 1
        number = self.begun[user]
        self._database.sql(_UPSERT, (user, pulseplan_ciphertext(str(number), user, "v1:")))
        self.written[user] = number

    def read(self, *, without: Sequence[str] = ()) -> dict[str, int]:
        """Return the number in each user's token; raises an exception if one is not in PulsePlan's format."""
        rows = self._database.sql(_READ)
        return {
            row["user_id"]: int(opened_as_pulseplan(row["access_token"], row["user_id"]))
            for row in rows
            if row["user_id"] not in without
        }

    def _run(self) -> None:
        while not self._ended.wait(_PAUSE_SECONDS):
            try:
                for user in self.begun:
                    if self.writes:
                        self.write(user)
                if self.reads:
                    self.read()
            except Exception as error:  # noqa: BLE001  the test requires that there is none
                self.errors.append(repr(error))
            self.rounds += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()


@contextmanager
def pulseplan_service(postgres: Postgres, database: Database, users: Sequence[str]) -> Iterator[PulsePlan]:
    """Run the stand-in on a connection of its own, with the service key's role."""
    with postgres.connect(database.name) as own:
        own.sql("set role service_role")
        service = PulsePlan(own, users)
        for user in users:
            service.write(user)
        with service.running():
            yield service
