"""docs/adopting.md, followed word for word on PulsePlan's table, while a stand-in for PulsePlan reads and writes it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, Self
from uuid import uuid4

import psycopg
import pytest

from tests.support.paths import ROOT
from tests.support.process.home import AS_USERS_HAVE_IT, COMMAND, Home, new_home
from tests.support.process.server import Serve, Server
from tests.support.process.wire import token_path, wires
from tests.support.rewrap.stored_rows import KEYS
from tests.support.stack.postgres import MIGRATIONS, Database, Postgres
from tests.support.stores.pulseplan_service import PulsePlan, pulseplan_service
from tests.support.stores.pulseplan_table import POLICIES, TABLE
from tests.support.stores.table_inspection import assert_is_the_vaults_table, policies
from tests.support.waiting import eventually

PAGE: Final = (ROOT / "docs" / "adopting.md").read_text()
USERS: Final = [str(uuid4()) for _ in range(4)]
LOGIN: Final = "adopting_login"
BLOCK: Final = re.compile(r"^```(ini|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(number: int) -> list[tuple[str, str]]:
    """Return the blocks of a step in order: `ini` for settings, `sh` for commands."""
    found = re.search(rf"^## {number}\. .*?\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found, number
    return BLOCK.findall(found[1])


class Operator:
    """Follows the page: writes settings into `.env`, restarts the vault, and types the commands."""

    def __init__(self, home: Home, serve: Serve, *, owner_url: str, vault_url: str, psql: Path) -> None:
        self._home = home
        self._serve = serve
        self._settings = {name: home.settings[name] for name in ("SERVICE_KEYS",)}
        self._stands_for = {"<vault's address>": vault_url, "<PulsePlan's master key>": KEYS[1]}
        path = os.pathsep.join([str(Path(COMMAND).parent), str(psql.parent), os.environ["PATH"]])
        self._environment = {"OWNER_URL": owner_url, "PATH": path, **AS_USERS_HAVE_IT}
        self._stack = ExitStack()
        self._server: Server | None = None

    def __enter__(self) -> Self:
        (self._home.folder / "migrations").symlink_to(MIGRATIONS)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def follow(self, block: tuple[str, str]) -> str:
        """Apply one block, and return what its commands print."""
        language, text = block
        if language == "sh":
            return self._type(text)
        for name, value in self._stands_for.items():
            text = text.replace(name, value)
        self._settings |= dict(line.split("=", 1) for line in text.splitlines())
        self._stack.close()
        lines = [f"{name}={value}" for name, value in self._settings.items()]
        (self._home.folder / ".env").write_text("\n".join(lines) + "\n")
        home = Home(self._home.folder, self._home.service_key, {"PORT": self._home.settings["PORT"]})
        self._server = self._stack.enter_context(self._serve(home))
        return ""

    def _type(self, text: str) -> str:
        done = subprocess.run(
            ["bash", "-ec", text],
            cwd=self._home.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def reveal(self, user: str) -> int:
        """Return the number in the user's token, as the vault reveals it."""
        assert self._server is not None
        with wires(self._server, 1) as [wire]:
            answer = wire.call("GET", f"{token_path(user, 'google')}?service_type=calendar&min_ttl=0")
        assert answer.status == 200, answer
        return int(answer.body["access_token"])

    def store(self, user: str, number: int) -> None:
        """Store the user's token through the vault."""
        assert self._server is not None
        with wires(self._server, 1) as [wire]:
            answer = wire.call(
                "PUT", f"{token_path(user, 'google')}?service_type=calendar", {"access_token": str(number)}
            )
        assert answer.status == 200, answer


def require_both(operator: Operator, pulseplan: PulsePlan) -> None:
    """Require that PulsePlan goes on without an error, and that the vault reveals what PulsePlan has written."""
    rounds = pulseplan.rounds
    eventually(lambda: pulseplan.rounds >= rounds + 2, within_seconds=60)
    for user in USERS:
        earliest = pulseplan.written[user]
        revealed = operator.reveal(user)
        assert earliest <= revealed <= pulseplan.begun[user]
    assert pulseplan.errors == []


@pytest.fixture
def pulseplans_database(empty_database: Database) -> Database:
    empty_database.run_file(TABLE)
    empty_database.connection.execute(
        POLICIES + "alter table public.oauth_tokens enable row level security;"
        "alter table public.oauth_tokens add unique (user_id, provider);"
    )
    for user in USERS:
        empty_database.sql("insert into public.users (id) values (%s)", (user,))
    return empty_database


@contextmanager
def login_role(database: Database) -> Iterator[None]:
    """Create the login of docs/stores.md on the server, whose databases share it."""
    with suppress(psycopg.errors.DuplicateObject):
        database.sql("create role token_vault nologin bypassrls")
    database.connection.execute(f"create role {LOGIN} login bypassrls in role token_vault".encode())
    try:
        yield
    finally:
        database.connection.execute(f"drop role {LOGIN}".encode())


def test_every_step_and_the_ways_back(
    pulseplans_database: Database, postgres: Postgres, tmp_path: Path, serve: Serve
) -> None:
    database = pulseplans_database
    operator = Operator(
        new_home(tmp_path),
        serve,
        owner_url=postgres.uri(database.name),
        vault_url=postgres.uri(database.name, user=LOGIN),
        psql=postgres.psql,
    )
    with login_role(database), pulseplan_service(postgres, database, USERS) as pulseplan, operator:
        prepare, *start = (block for number in (1, 2) for block in blocks(number))
        operator.follow(prepare)
        for block in start:
            operator.follow(block)
            require_both(operator, pulseplan)

        pulseplan.reads = False  # 3: the readers move, one comes back, and moves again
        require_both(operator, pulseplan)
        pulseplan.reads = True
        require_both(operator, pulseplan)
        pulseplan.reads = False

        moved, *others = USERS  # 4: the writers move
        pulseplan.writes = False
        rounds = pulseplan.rounds
        eventually(lambda: pulseplan.rounds >= rounds + 2, within_seconds=60)
        require_both(operator, pulseplan)
        operator.store(moved, 1_000)
        [way_back] = blocks(4)
        listed = operator.follow(way_back)
        assert moved in listed
        assert not any(user in listed for user in others)
        assert pulseplan.read(without=[moved]) == {user: pulseplan.written[user] for user in others}
        pulseplan.write(others[0])
        assert operator.reveal(others[0]) == pulseplan.written[others[0]]

        for block in blocks(5):
            operator.follow(block)
        holds = {user: pulseplan.written[user] for user in others} | {moved: 1_000}
        assert {user: operator.reveal(user) for user in USERS} == holds
        assert database.sql("select count(*) as n from public.oauth_tokens where encryption_scheme is null") == [
            {"n": 0}
        ]

        close, way_back = blocks(6)
        before = policies(database)
        operator.follow(close)
        assert_is_the_vaults_table(database)
        assert {user: operator.reveal(user) for user in USERS} == holds
        operator.follow(way_back)
        assert policies(database) == before
        pulseplan.write(others[0])  # its upsert has its key again
        assert pulseplan.errors == []
        migrate, _ = close[1].splitlines()
        operator.follow(("sh", migrate))  # for good
        assert_is_the_vaults_table(database)


def test_the_commands_of_the_tables_work(pulseplans_database: Database, postgres: Postgres) -> None:
    pulseplans_database.migrate()
    first, second = (text for _, text in BLOCK.findall(PAGE.partition("## PulsePlan's refreshers")[2]))
    environment = {"OWNER_URL": postgres.uri(pulseplans_database.name), "PATH": f"{postgres.psql.parent}:/bin:/usr/bin"}
    for listing in (first, second):
        assert subprocess.run(["bash", "-ec", listing], env=environment, check=False).returncode == 0


# of PulsePlan's repository, besides those whose names begin with an underscore
FUNCTIONS: Final = {
    "TokenService": "get_user_connected_accounts get_user_tokens_for_agent store_user_tokens remove_user_tokens "
    "has_provider_connected get_user_connection_status has_calendar_access has_email_access has_contacts_access",
    "CanvasTokenService": "store_canvas_token retrieve_canvas_token mark_needs_reauth validate_token_direct "
    "validate_token delete_canvas_integration",
    "TokenRefreshService": "start_background_refresh stop_background_refresh force_refresh_user_tokens "
    "get_token_health get_refresh_metrics",
    "OAuthTokenRepository": "get_expiring_tokens update_token_after_refresh mark_token_inactive get_active_by_user "
    "upsert_token get_by_provider delete_by_provider update_by_user_and_provider delete_by_user_provider_service "
    "check_provider_exists",
    "EncryptionService": "derive_user_key encrypt_token decrypt_token rotate_key_version get_master_key health_check",
}


@pytest.mark.parametrize("of", FUNCTIONS)
def test_every_function_of_pulseplan_has_a_row(of: str) -> None:
    table = PAGE.partition("\n| function of PulsePlan | call of the vault |\n")[2].partition("\n\n")[0]
    rows = table.partition(f"| **`{of}`**")[2].partition("\n| **")[0].splitlines()[1:]
    described = {name for row in rows for name in re.findall(r"`([a-z_]+)", row.split(" | ")[0])}
    assert set(FUNCTIONS[of].split()) <= described
    assert all(len(row.strip("| ").split(" | ")) == 2 for row in rows)
