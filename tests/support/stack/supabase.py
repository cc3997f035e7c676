"""A Supabase project of our own: PostgreSQL, PostgREST and the gateway, tied together."""

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

from tests.support.stack.faults import Faults, Request
from tests.support.stack.gateway import Gateway
from tests.support.stack.keys import ProjectKeys, new_project_keys
from tests.support.stack.postgres import Database, Parameters, Postgres
from tests.support.stack.postgrest import Postgrest
from tests.support.stack.reaper import Reaper


@dataclass(frozen=True, slots=True)
class SupabaseStack:
    """A running project, with the migrations applied to an empty database."""

    keys: ProjectKeys
    database: Database
    postgres: Postgres
    postgrest: Postgrest
    gateway: Gateway

    @property
    def url(self) -> str:
        """What `SUPABASE_URL` is."""
        return self.gateway.url

    @property
    def service_key(self) -> str:
        """What `SUPABASE_SERVICE_KEY` is."""
        return self.keys.service

    @property
    def secret_key(self) -> str:
        """The service key's successor, `sb_secret_…`; it says no more than `service_key`."""
        return self.keys.secret

    @property
    def anon_key(self) -> str:
        """The key that browsers have."""
        return self.keys.anon

    @property
    def authenticated_key(self) -> str:
        """A user's token: for `Authorization`, with the anon key in `apikey`."""
        return self.keys.authenticated

    @property
    def wrong_key(self) -> str:
        """Signed by somebody else: the gateway does not know it, and PostgREST rejects it."""
        return self.keys.wrong

    @property
    def expired_key(self) -> str:
        """The gateway lets it pass, and PostgREST rejects it."""
        return self.keys.expired

    def new_service_key(self, *, lifetime_seconds: int) -> str:
        """Make a service key that ends so soon. PostgREST lets it pass for 30 seconds more, since clocks differ."""
        key = self.keys.service_for(lifetime_seconds)
        self.gateway.admit(key)
        return key

    @property
    def faults(self) -> Faults:
        """What can go wrong at the gateway."""
        return self.gateway.faults

    def recording(self) -> AbstractContextManager[list[Request]]:
        """Collect the requests that reach the gateway inside of the block."""
        return self.gateway.recording()

    def sql(self, query: LiteralString, parameters: Parameters = None) -> list[dict[str, Any]]:
        """Run a statement as superuser, past PostgREST and row level security."""
        return self.database.sql(query, parameters)

    def truncate(self) -> None:
        """Delete all tokens."""
        self.sql("truncate public.oauth_tokens")

    @contextmanager
    def at_most(self, rows: int) -> Iterator[None]:
        """Let PostgREST answer with so many rows at most; it takes this up a moment later."""
        self.sql(f"alter role authenticator set pgrst.db_max_rows = '{rows:d}'")
        self.sql("notify pgrst, 'reload config'")
        try:
            yield
        finally:
            self.sql("alter role authenticator reset pgrst.db_max_rows")
            self.sql("notify pgrst, 'reload config'")

    def stop_postgrest(self) -> None:
        """Leave the gateway without an upstream: it answers 502."""
        self.postgrest.stop()

    def start_postgrest(self) -> None:
        """Undo `stop_postgrest`."""
        self.postgrest.start()

    def reset(self) -> None:
        """As new: everything runs, nothing is injected, no token is stored."""
        self.faults.reset()
        self.start_postgrest()
        self.truncate()


@contextmanager
def running_supabase(*, postgres: Postgres, reaper: Reaper, pool_size: int = 10) -> Iterator[SupabaseStack]:
    """Start a project in a new database of this server."""
    keys = new_project_keys()
    with (
        tempfile.TemporaryDirectory(prefix="vault-postgrest-") as folder,
        postgres.new_database() as database,
    ):
        reaper.remove_folder(Path(folder))
        database.migrate()
        postgrest = Postgrest(
            database_uri=postgres.uri(database.name, user="authenticator"),
            jwt_secret=keys.jwt_secret,
            pool_size=pool_size,
            log=Path(folder, "log"),
            reaper=reaper,
        )
        gateway = Gateway(
            postgrest_port=postgrest.port,
            keys={
                keys.anon: None,
                keys.service: None,
                # keys are compared, not understood: it is PostgREST that sees the date
                keys.expired: None,
                keys.secret: f"Bearer {keys.service}",
            },
        )
        with postgrest.running(), gateway.running():
            yield SupabaseStack(
                keys=keys,
                database=database,
                postgres=postgres,
                postgrest=postgrest,
                gateway=gateway,
            )
