"""Every command that a document shows in a block is run by a test, or the block is listed with what it needs."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from app.stores.sqlite.database import prepare_database
from tests.support.paths import ROOT
from tests.support.process.home import initialised_home, new_master_key, token_vault
from tests.support.stack.postgres import Database, Postgres

_DOCUMENTS: Final = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *(
        ROOT / folder / "README.md"
        for folder in ("client", "clients/typescript", "examples/pulseplan_api", "migrations")
    ),
]
_BLOCK: Final = re.compile(r"^( *)```(?:sh|console)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_PROGRAM: Final = re.compile(r"(?:\.venv/bin/)?token-vault$")
_ASSIGNMENT: Final = re.compile(r"([A-Z_]+)=(.*)", re.DOTALL)
_SUPABASE: Final = "postgresql://postgres:PASSWORD@db.abcdefgh.supabase.co:5432/postgres?sslrootcert=supabase-ca.crt"

_ADOPTING: Final = "tests/documents/test_adopting.py::test_every_step_and_the_ways_back"
_BACKUP: Final = "tests/documents/test_backup.py::test_a_restore_brings_the_rows_and_the_trail_says_what_is_newer"
_DOCUMENTED_CLIENT: Final = "tests/api/test_token_exchange_clients.py::test_the_documented_example_prints_the_token"
_QUICK_START: Final = "tests/documents/test_quick_start.py::test_it_works_if_it_is_pasted_before_the_vault_listens"
# the test that runs every block of a document, or the block whose first line begins so
RUN_BY: Final = {
    ("README.md", "make run"): "tests/system/test_distribution.py::test_the_installed_vault_starts_and_answers",
    ("README.md", "until curl"): _QUICK_START,
    ("README.md", "curl -iw"): _QUICK_START,
    ("CONTRIBUTING.md", "make dev"): "tests/documents/test_repository.py::test_make_dev_installs_and_runs_no_test",
    ("docs/adopting.md", ""): _ADOPTING,
    ("docs/agents.md", "curl -s"): _DOCUMENTED_CLIENT,
    ("docs/api.md", "openapi-python-client"): "tests/clients/test_generated_python_client.py"
    "::test_a_typed_program_stores_reveals_patches_rotates_and_deletes",
    ("docs/backup.md", ""): _BACKUP,
    ("docs/cli.md", "_TOKEN_VAULT_COMPLETE"): "tests/cli/test_help.py"
    "::test_the_documented_completion_is_a_script_that_bash_takes",
    ("docs/first-steps.md", ""): "tests/documents/test_first_steps.py::test_postgresql",
    ("docs/hardening.md", "token-vault serve"): "tests/server/test_tls.py"
    "::test_a_client_of_the_right_ca_is_served_with_hsts",
    ("docs/key-rotation.md", "$ token-vault"): "tests/documents/test_key_rotation_runbook.py::test_a_new_master_key",
    ("docs/kms.md", "token-vault kms setup"): "tests/documents/test_kms_document.py"
    "::test_the_commands_of_the_page_set_a_key_up",
    ("docs/kms.md", ".venv/bin/python -m"): "tests/stand_ins/test_kms.py::test_the_module_serves_until_sigterm",
    ("docs/observability.md", "pip install"): "tests/observability/test_tracing.py"
    "::test_spans_reach_the_collector_that_the_environment_names",
    ("examples/pulseplan_api/README.md", "pip install"): "tests/clients/test_provider_calls.py"
    "::test_the_example_connects_reads_and_disconnects",
    ("migrations/README.md", "python -c"): "tests/migrations/test_row_level_security.py"
    "::test_the_readmes_command_makes_a_key_that_works",
}
# what the others need, which no test has
NEEDS: Final = {
    ("CONTRIBUTING.md", "pipx install pre-commit"): "a download of pre-commit",
    ("client/README.md", "pip install"): "a release of the client",
    ("docs/containers.md", "python3 deploy/compose"): "a container engine",
    ("docs/containers.md", "TOKEN_STORE=supabase docker"): "a container engine",
    ("docs/containers.md", "kubectl create"): "a cluster",
    ("docs/containers.md", "kubectl delete"): "a cluster",
    ("docs/containers.md", "python3 -m venv /opt/vault"): "root and systemd",
    ("docs/kms.md", "aws kms"): "AWS",
    ("docs/kms.md", "aws cloudtrail"): "AWS",
    ("docs/releasing.md", "make dist sbom"): "a container engine",
    ("migrations/README.md", "curl -X POST"): "a Supabase account",
}


@dataclass(frozen=True, slots=True)
class Block:
    document: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}: {self.text.splitlines()[0][:40]}"

    def entries_of(self, table: dict[tuple[str, str], str]) -> list[tuple[str, str]]:
        return [key for key in table if key[0] == self.document and self.text.startswith(key[1])]


def _blocks() -> list[Block]:
    found = []
    for path in _DOCUMENTS:
        for indent, text in _BLOCK.findall(path.read_text()):
            found.append(Block(str(path.relative_to(ROOT)), re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)))
    return found


BLOCKS: Final = _blocks()
RUN_HERE: Final = [block for block in BLOCKS if not block.entries_of(RUN_BY) and not block.entries_of(NEEDS)]


def test_every_entry_is_that_of_a_block_and_no_block_has_two() -> None:
    listed = [entry for block in BLOCKS for table in (RUN_BY, NEEDS) for entry in block.entries_of(table)]
    assert set(listed) == RUN_BY.keys() | NEEDS.keys()
    assert [str(block) for block in BLOCKS if len(block.entries_of(RUN_BY) + block.entries_of(NEEDS)) > 1] == []


def test_few_blocks_are_run_by_no_test() -> None:
    """A block that needs something else than AWS, a container engine, a cluster or an account belongs into a test."""
    assert len(NEEDS) == 11


@pytest.mark.parametrize("test", sorted(set(RUN_BY.values())))
def test_every_named_test_exists(test: str) -> None:
    file, _, name = test.partition("::")
    functions = ast.walk(ast.parse((ROOT / file).read_text()))
    assert name in {one.name for one in functions if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}


@dataclass(frozen=True, slots=True)
class Place:
    """A folder after `make run`, with an audit trail and the owner of an empty database."""

    folder: Path
    owner_url: str
    psql: Path

    def run(self, line: str) -> None:
        """Run `token-vault` with the words and the assignments of a line."""
        settings = {"AUDIT_LOG": "data/audit/audit.jsonl", "AUDIT_KEY": self.folder.joinpath("audit-key").read_text()}
        words = shlex.split(line, comments=True)
        while found := _ASSIGNMENT.fullmatch(words[0]):
            settings[found[1]] = {"$OWNER_URL": self.owner_url, _SUPABASE: self.owner_url}[found[2]]
            del words[0]
        assert _PROGRAM.match(words[0]), f"no test runs this: {line}"
        arguments = [one for word in words[1:] for one in self._expanded(word)]
        if arguments[:1] == ["migrate"]:
            settings.setdefault("DATABASE_URL", self.owner_url)
        done = token_vault(*arguments, folder=self.folder, settings=settings)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"

    def _expanded(self, word: str) -> list[str]:
        """Return the files of the trail in place of a pattern, which names those of another day or folder."""
        return [str(file) for file in self.folder.glob("data/audit/*.jsonl")] if "*" in word else [word]


@pytest.fixture
def place(tmp_path: Path, postgres: Postgres, empty_database: Database) -> Place:
    initialised_home(tmp_path)
    prepare_database(tmp_path / "data" / "vault.db")
    (tmp_path / "audit-key").write_text(new_master_key())
    (tmp_path / "migrations").symlink_to(ROOT / "migrations")
    found = Place(tmp_path, postgres.uri(empty_database.name), postgres.psql)
    found.run("token-vault service-key create --service before --scope tokens:read")  # begins the trail
    return found


@pytest.mark.parametrize("document", dict.fromkeys(block.document for block in RUN_HERE))
def test_the_commands_of_a_document_work_in_order(document: str, place: Place) -> None:
    for block in RUN_HERE:
        if block.document != document:
            continue
        if "for file in migrations" in block.text:
            _run_shell(block.text.replace("supabase db push\n", ""), place)
            continue
        for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
            if line != "wait":  # for what runs beside each other, which here has ended
                place.run(line.removesuffix(" &"))


def _run_shell(text: str, place: Place) -> None:
    (place.folder / "supabase" / "migrations").mkdir(parents=True, exist_ok=True)
    variables = {"DATABASE_URL": place.owner_url, "PATH": f"{place.psql.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-ec", text], cwd=place.folder, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ERROR" not in done.stderr
