"""Rows in a store before and after a sweep, read and written without the vault."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from app.composition.encryption import build_encryption
from app.config.settings import Settings
from app.security.context import SecretField
from app.security.encryption_service import EncryptionService
from app.security.schemes import scheme_of
from app.stores.sqlite.database import prepare_database
from tests.support.paths import VECTORS
from tests.support.security.keys import MASTER_KEY, OTHER_MASTER_KEY
from tests.support.security.legacy_tokens import legacy_ciphertext
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import raw_row, sqlite_connection

# the master keys by version, as settings have them; the committed vectors of PulsePlan's formats are under the first
KEYS: Final = {
    1: MASTER_KEY,
    2: OTHER_MASTER_KEY,
    3: "mnnzGuEIfuUKZrgwUTCJVPIZI8Ll6TfbNhx6uDoOXz4=",
}
_VECTORS: Final = VECTORS / "pulseplan_local_tokens.json"
Row = dict[str, Any]


def key_settings(primary: int, *previous: int) -> dict[str, str]:
    """Return the settings under which this version writes and the others read."""
    return {
        "TOKEN_ENCRYPTION_KEY": KEYS[primary],
        "ENCRYPTION_KEY_VERSION": str(primary),
        "TOKEN_ENCRYPTION_PREVIOUS_KEYS": json.dumps({str(version): KEYS[version] for version in previous}),
    }


def encryption(settings: Mapping[str, str]) -> EncryptionService:
    """Build the encryption service of a process with these settings."""
    values: dict[str, Any] = {name.lower(): value for name, value in settings.items()}
    return build_encryption(Settings(_env_file=None, **values)).service  # type: ignore[call-arg]  # pydantic-settings takes `_env_file`, and fields from elsewhere


@cache
def local_encryption(version: int) -> EncryptionService:
    """Return the service whose primary is this version and that reads every other; its keys are derived once."""
    return encryption(key_settings(version, *(KEYS.keys() - {version})))


def access_of(row_id: str) -> str:
    return f"1234~access of {row_id}"


def refresh_of(row_id: str) -> str:
    return f"refresh of {row_id}"


def sealed_row(
    service: EncryptionService,
    *,
    provider: str = "canvas",
    service_type: str = "default",
    user_id: str | None = None,
    **columns: Any,
) -> Row:
    """Return a row as the vault writes it under this service's primary; of a new user unless one is given."""
    row_id, url = str(uuid4()), "https://canvas.example.edu"
    user_id = user_id or str(uuid4())

    def seal(text: str, field: SecretField) -> str:
        return service.encrypt_token(
            text, user_id, provider=provider, service_type=service_type, field=field, base_url=url
        )

    access = seal(access_of(row_id), SecretField.ACCESS_TOKEN)
    scheme = scheme_of(access)
    return raw_row(
        id=row_id,
        user_id=user_id,
        provider=provider,
        service_type=service_type,
        access_token=access,
        refresh_token=seal(refresh_of(row_id), SecretField.REFRESH_TOKEN),
        encryption_scheme=scheme,
        provider_url=url,
        metadata={"status": "ok", "course": "algebra"},
        **columns,
    )


def row_without_scheme() -> Row:
    """Return a row under the first master key as it was before the column for its scheme."""
    return sealed_row(local_encryption(1)) | {"encryption_scheme": None}


def half_legacy_row() -> Row:
    """Return such a row whose refresh token is in PulsePlan's format."""
    row = row_without_scheme()
    return row | {"refresh_token": legacy_ciphertext("old", row["user_id"])}


def rows_under_first(count: int, provider: str = "canvas") -> list[Row]:
    """Return so many rows under the first master key, each of another user."""
    return [sealed_row(local_encryption(1), provider=provider) for _ in range(count)]


def rows_of_users(service: EncryptionService, count: int, *, users: int) -> list[Row]:
    """Return so many rows under this service's primary, shared out among `users` users.

    KMS is asked once for each user, and the stand-in for it takes longer than the vault.
    """
    ids = [str(uuid4()) for _ in range(users)]
    return [
        sealed_row(service, user_id=ids[number % users], service_type=f"s{number // users}") for number in range(count)
    ]


def pulseplan_rows() -> list[tuple[Row, str]]:
    """Return rows as PulsePlan wrote them under the first key, and what they hold; no ciphertext stands in two."""
    blocks = json.loads(_VECTORS.read_text())
    vectors = [one for block in blocks if block["master_key"] == KEYS[1] for one in block["vectors"]]
    first = [one for one in vectors if one["key_version"] == 1 and _is_uuid(one["user_id"])]
    by_ciphertext = {one["ciphertext"].removeprefix("v1:"): one for one in first}  # some are spelt in both ways
    found = list(by_ciphertext.values())
    assert any(one["ciphertext"].startswith("v1:") for one in found)
    assert any(not one["ciphertext"].startswith("v1:") for one in found)
    return [
        (
            raw_row(
                user_id=one["user_id"],
                provider="google",
                service_type=f"service-{number}",
                access_token=one["ciphertext"],
            ),
            one["plaintext"],
        )
        for number, one in enumerate(found)
    ]


def broken_rows() -> dict[str, Row]:
    """Return unreadable rows by the name of their fault."""
    first = local_encryption(1)
    flipped, foreign = sealed_row(first), sealed_row(first)
    flipped["access_token"] = flipped["access_token"][:-4] + ("AAAA" if flipped["access_token"][-4:] != "AAAA" else "B")
    foreign["user_id"] = str(uuid4())
    unknown = sealed_row(first)
    unknown |= {"access_token": "v9:" + unknown["access_token"].partition(":")[2], "encryption_scheme": None}
    nonsense = sealed_row(first) | {"access_token": "nonsense", "encryption_scheme": None}
    return {"flipped": flipped, "foreign": foreign, "unknown version": unknown, "nonsense": nonsense}


class SqliteRows:
    """The file of a SQLite store."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        prepare_database(path)
        self.path = path

    def settings(self) -> dict[str, str]:
        return {"TOKEN_STORE": "sqlite", "SQLITE_PATH": str(self.path)}

    def insert(self, rows: Iterable[Row]) -> None:
        with closing(sqlite_connection(self.path)) as connection, connection:
            for row in rows:
                values = [json.dumps(value) if isinstance(value, dict | list) else value for value in row.values()]
                names, marks = ", ".join(row), ", ".join("?" * len(row))
                connection.execute(f"INSERT INTO oauth_tokens ({names}) VALUES ({marks})", values)  # noqa: S608  a test's own columns

    def replace(self, rows: Iterable[Row]) -> None:
        """Replace all rows by these."""
        with closing(sqlite_connection(self.path)) as connection:
            connection.execute("DELETE FROM oauth_tokens")
        self.insert(rows)

    def rows(self) -> dict[str, Row]:
        """Return every row by id."""
        with closing(sqlite_connection(self.path)) as connection:
            cursor = connection.execute("SELECT * FROM oauth_tokens")
            names = [column[0] for column in cursor.get_description()]
            found = [dict(zip(names, values, strict=True)) for values in cursor]
        return {row["id"]: row | {"metadata": json.loads(row["metadata"])} for row in found}

    def count(self, scheme: str) -> int:
        """Return how many rows have this scheme."""
        with closing(sqlite_connection(self.path)) as connection:
            [(found,)] = connection.execute("SELECT count(*) FROM oauth_tokens WHERE encryption_scheme = ?", (scheme,))
        return int(found)

    def settle(self) -> None:
        """Do nothing: SQLite finishes no write of a dead process."""


class SupabaseRows:
    """The table of a Supabase project."""

    def __init__(self, stack: SupabaseStack) -> None:
        self.stack = stack

    def settings(self) -> dict[str, str]:
        return {
            "TOKEN_STORE": "supabase",
            "SUPABASE_URL": self.stack.url,
            "SUPABASE_SERVICE_KEY": self.stack.service_key,
        }

    def insert(self, rows: Iterable[Row]) -> None:
        listed = list(rows)
        names = ", ".join(listed[0]) if listed else "id"
        self.stack.sql(
            f"insert into public.oauth_tokens ({names})"  # noqa: S608  column names of a test
            f" select {names} from jsonb_populate_recordset(null::public.oauth_tokens, %s::jsonb)",
            [json.dumps(listed)],
        )

    def replace(self, rows: Iterable[Row]) -> None:
        """Replace all rows by these."""
        self.stack.truncate()
        self.insert(rows)

    def rows(self) -> dict[str, Row]:
        """Return every row by id."""
        found = self.stack.sql("select to_jsonb(t) as row from public.oauth_tokens t")
        return {one["row"]["id"]: dict(one["row"]) for one in found}

    def count(self, scheme: str) -> int:
        """Return how many rows have this scheme."""
        [found] = self.stack.sql(
            "select count(*) as rows from public.oauth_tokens where encryption_scheme = %s", [scheme]
        )
        return int(found["rows"])

    def settle(self) -> None:
        """Wait until the database has finished the writes of a dead process."""
        deadline = time.monotonic() + 60
        while self.stack.sql(
            "select from pg_stat_activity"
            " where datname = current_database() and state <> 'idle' and pid <> pg_backend_pid()"
        ):
            assert time.monotonic() < deadline
            time.sleep(0.01)


class PostgresRows(SupabaseRows):
    """The same table, through a connection to the database."""

    def settings(self) -> dict[str, str]:
        return {"TOKEN_STORE": "postgres", "DATABASE_URL": self.stack.login_url}


Rows = SqliteRows | SupabaseRows


def what_a_row_holds(service: EncryptionService, row: Row) -> tuple[str, str]:
    """Decrypt both secrets; raises an `EncryptionError`."""

    def open_one(text: str, field: SecretField) -> str:
        return service.decrypt_token(
            text,
            row["user_id"],
            provider=row["provider"],
            service_type=row["service_type"],
            field=field,
            base_url=row["metadata"].get("base_url") or row["provider_url"] or "",
        )

    return (
        open_one(row["access_token"], SecretField.ACCESS_TOKEN),
        open_one(row["refresh_token"] or "", SecretField.REFRESH_TOKEN),
    )


def differences_but_for_encryption(before: Row, after: Row) -> Iterator[str]:
    """Name the columns that differ and that a rewrap must leave alone."""
    about_encryption = {"access_token", "refresh_token", "encryption_scheme", "metadata"}
    for name in before.keys() - about_encryption:
        if before[name] != after[name]:
            yield name
    ours = {"encryption_method", "kms_key_id", "encryption_fallback"}
    metadata = [{key: value for key, value in row["metadata"].items() if key not in ours} for row in (before, after)]
    if metadata[0] != metadata[1]:
        yield "metadata"


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
