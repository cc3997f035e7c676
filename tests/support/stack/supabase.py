"""A Supabase project for tests: its keys, PostgreSQL, PostgREST and the gateway."""

import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, LiteralString

import jwt

from tests.support.stack.gateway import Gateway
from tests.support.stack.gateway_faults import Faults, Request
from tests.support.stack.postgres import Database, Parameters, Postgres
from tests.support.stack.postgrest import Postgrest
from tests.support.stack.reaper import Reaper

# 0004 reports no member of token_vault with such a name, and roles belong to the server that all tests share
VAULT_LOGIN: Final = "supabase_vault_login"
LOGIN_PASSWORD: Final = "the-password-of-the-vaults-login"  # the server asks for none
CREATE_LOGIN: LiteralString = """
do $$ begin
    if not exists (select from pg_roles where rolname = 'supabase_vault_login') then
        create role supabase_vault_login login bypassrls in role token_vault;
    end if;
end $$
"""
_TEN_YEARS_SECONDS: Final = 10 * 365 * 24 * 3600


@dataclass(frozen=True, slots=True)
class ProjectKeys:
    """The keys of one project, and keys that an operator might configure by mistake.

    All but `secret` are HS256 tokens whose `role` claim PostgREST obeys.
    """

    jwt_secret: str
    anon: str
    service: str
    # the role with the vault's privileges alone
    vault: str
    # a signed-in user's token, sent in Authorization beside the anon key in `apikey`
    authenticated: str
    # well formed, but signed with another project's secret
    wrong: str
    # the vault's key, expired for an hour
    expired: str
    # a new-style key `sb_secret_…`: not a token; only the gateway knows its role
    secret: str

    def service_for(self, lifetime_seconds: int) -> str:
        """Return another key of the vault that expires after this many seconds."""
        return _role_key(self.jwt_secret, role="token_vault", lifetime_seconds=lifetime_seconds)


def new_project_keys() -> ProjectKeys:
    """Return new keys, different from those of any other project."""
    jwt_secret = secrets.token_urlsafe(48)
    return ProjectKeys(
        jwt_secret=jwt_secret,
        anon=_role_key(jwt_secret, role="anon"),
        service=_role_key(jwt_secret, role="service_role"),
        vault=_role_key(jwt_secret, role="token_vault"),
        authenticated=_role_key(jwt_secret, role="authenticated"),
        wrong=_role_key(secrets.token_urlsafe(48), role="service_role"),
        expired=_role_key(jwt_secret, role="token_vault", lifetime_seconds=-3600),
        secret=f"sb_secret_{secrets.token_urlsafe(24)}",
    )


@dataclass(frozen=True, slots=True)
class SupabaseStack:
    """A running project: an empty database with the migrations applied."""

    keys: ProjectKeys
    database: Database
    postgres: Postgres
    postgrest: Postgrest
    gateway: Gateway

    @property
    def url(self) -> str:
        """The value of `SUPABASE_URL`."""
        return self.gateway.url

    @property
    def service_key(self) -> str:
        """The value of `SUPABASE_SERVICE_KEY`: a key whose role has only the privileges that the vault needs."""
        return self.keys.vault

    def new_service_key(self, *, lifetime_seconds: int = 3600) -> str:
        """Make another service key; a negative lifetime makes one that has expired so long ago."""
        key = self.keys.service_for(lifetime_seconds)
        self.gateway.admit(key, authorization=f"Bearer {key}")
        return key

    def let_key_expire(self, key: str) -> None:
        """Let PostgREST see a key that expired a minute ago in place of this one."""
        self.gateway.admit(key, authorization=f"Bearer {self.keys.service_for(-60)}")

    @property
    def login_url(self) -> str:
        """The value of `DATABASE_URL` for a login role that was granted `token_vault`."""
        return self.postgres.uri(self.database.name, user=f"{VAULT_LOGIN}:{LOGIN_PASSWORD}")

    @property
    def faults(self) -> Faults:
        """The faults that the gateway injects."""
        return self.gateway.faults

    def recording(self) -> AbstractContextManager[list[Request]]:
        """Collect the requests that reach the gateway within the block."""
        return self.gateway.recording()

    def sql(self, query: LiteralString, parameters: Parameters = None) -> list[dict[str, Any]]:
        """Run a statement as superuser, past PostgREST and row level security."""
        return self.database.sql(query, parameters)

    def truncate(self) -> None:
        """Delete all tokens."""
        self.sql("delete from public.oauth_tokens")  # a few rows: ten times as fast as TRUNCATE

    @contextmanager
    def at_most(self, rows: int) -> Iterator[None]:
        """Cap PostgREST's answers at this many rows; it applies the setting a moment later."""
        self.sql(f"alter role authenticator set pgrst.db_max_rows = '{rows:d}'")
        self.sql("notify pgrst, 'reload config'")
        try:
            yield
        finally:
            self.sql("alter role authenticator reset pgrst.db_max_rows")
            self.sql("notify pgrst, 'reload config'")

    def stop_postgrest(self) -> None:
        """Leave the gateway without PostgREST: it answers 502."""
        self.postgrest.stop()

    def start_postgrest(self) -> None:
        self.postgrest.start()

    def reset(self) -> None:
        """Restore the initial state: every part runs, no fault is injected, no token is stored."""
        self.faults.reset()
        self.start_postgrest()
        self.truncate()


@dataclass(frozen=True, slots=True)
class Api:
    """PostgREST over a database, and the gateway in front of it."""

    keys: ProjectKeys
    postgrest: Postgrest
    gateway: Gateway


@contextmanager
def running_api(*, database_uri: str, reaper: Reaper, pool_size: int = 10) -> Iterator[Api]:
    """Run PostgREST and a gateway over a migrated database; the URI is that of the role `authenticator`."""
    keys = new_project_keys()
    with tempfile.TemporaryDirectory(prefix="vault-postgrest-") as folder:
        reaper.remove_folder(Path(folder))
        postgrest = Postgrest(
            database_uri=database_uri,
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
                keys.vault: None,
                # the gateway compares keys; only PostgREST checks the expiry
                keys.expired: None,
                keys.secret: f"Bearer {keys.service}",
            },
        )
        with postgrest.running(), gateway.running():
            yield Api(keys=keys, postgrest=postgrest, gateway=gateway)


@contextmanager
def running_supabase(*, postgres: Postgres, reaper: Reaper, pool_size: int = 10) -> Iterator[SupabaseStack]:
    """Run a project in a new database of this server."""
    with postgres.new_database() as database:
        database.migrate()
        database.connection.execute(CREATE_LOGIN)
        uri = postgres.uri(database.name, user="authenticator")
        with running_api(database_uri=uri, reaper=reaper, pool_size=pool_size) as api:
            yield SupabaseStack(
                keys=api.keys,
                database=database,
                postgres=postgres,
                postgrest=api.postgrest,
                gateway=api.gateway,
            )


def _role_key(jwt_secret: str, *, role: str, lifetime_seconds: int = _TEN_YEARS_SECONDS) -> str:
    now = int(time.time())
    claims: dict[str, object] = {"iss": "supabase", "ref": "vaulttests", "role": role}
    if role == "authenticated":
        claims |= {"aud": "authenticated", "sub": "0d3b7a52-5c1a-4a6e-9b1f-3f2f1d7b9f10"}
    return jwt.encode(
        claims | {"iat": now - _TEN_YEARS_SECONDS, "exp": now + lifetime_seconds},
        jwt_secret,
        algorithm="HS256",
    )
