"""What README.md, .env.example and docs/ say is what the code does."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from app.api.problems import STATUS
from app.callers.service_keys import Scope
from app.config.secret_files import file_fields
from app.config.settings import Settings
from app.main import create_app
from tests.support.api.service import Service, running_service
from tests.support.paths import ROOT
from tests.support.process.command_lines import PROGRAM, check_command_line
from tests.support.security.keys import MASTER_KEY

README = (ROOT / "README.md").read_text()
ENV_EXAMPLE = (ROOT / ".env.example").read_text()
DOCS = ROOT / "docs"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), ROOT / "migrations" / "README.md", *sorted(DOCS.rglob("*.md"))]

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def _table(document: str, heading: str) -> list[list[str]]:
    """Return the cells of all rows in the document's tables with this heading."""
    tables = (DOCS / document).read_text().split(f"\n{heading}\n|---")[1:]
    rows = [row for table in tables for row in table.partition("\n\n")[0].splitlines()[1:]]
    assert rows, heading
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def _code(cell: str) -> str:
    return cell.strip("`")


def _without_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


# --- settings


SETTINGS = [name.upper() for name in Settings.model_fields]


def _example_values() -> dict[str, str]:
    lines = [line for line in ENV_EXAMPLE.splitlines() if line and not line.startswith("#")]
    pairs = [line.partition("=") for line in lines]
    values = {name: value for name, _, value in pairs}
    assert len(values) == len(pairs), "a setting stands in .env.example twice"
    return values


def test_env_example_has_exactly_the_settings() -> None:
    assert sorted(_example_values()) == sorted(SETTINGS)


def test_env_example_holds_the_defaults_and_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _without_environment(monkeypatch)
    assert {name: value for name, value in _example_values().items() if "KEY" in name and value} == {
        "ENCRYPTION_KEY_VERSION": "1",
        "TOKEN_ENCRYPTION_PREVIOUS_KEYS": "{}",
        "MIN_KEY_VERSION": "1",
        "KMS_PREVIOUS_KEY_IDS": "[]",
        "DATA_KEY_MAX_AGE_SECONDS": "300",
        "DATA_KEY_MAX_MESSAGES": "1000",
        "DATA_KEY_CACHE_SIZE": "10000",
        "AUDIT_PREVIOUS_KEYS": "[]",
    }
    example = tmp_path / ".env"
    example.write_text(ENV_EXAMPLE + f"\nTOKEN_ENCRYPTION_KEY={MASTER_KEY}\n")
    with_example = Settings(_env_file=example)  # type: ignore[call-arg]  # pydantic-settings takes it
    bare = Settings(_env_file=None, TOKEN_ENCRYPTION_KEY=MASTER_KEY)  # type: ignore[call-arg]  # pydantic-settings takes `_env_file`, and fields from elsewhere
    assert with_example == bare


def test_every_setting_of_env_example_has_a_comment() -> None:
    commented = re.findall(r"^# .+\n([A-Z_]+)=", ENV_EXAMPLE, re.MULTILINE)
    assert set(SETTINGS) - set(commented) == {"PORT"}, "PORT shares HOST's comment"


def test_every_secret_of_env_example_can_come_from_a_file() -> None:
    secret = re.findall(r"^# Secret\.(?:.*\n#)*.*\n([A-Z_]+)=", ENV_EXAMPLE, re.MULTILINE)
    assert sorted(name.lower() for name in secret) == sorted(file_fields(Settings))


def test_every_setting_is_documented_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    _without_environment(monkeypatch)
    rows = _table("settings.md", "| name | default | meaning |")
    assert sorted(_code(row[0]) for row in rows) == sorted(SETTINGS)
    assert {_code(row[0]): _code(row[1]) for row in rows} == _example_values()


# --- scopes, errors, routes


def test_every_scope_is_documented() -> None:
    assert [_code(row[0]) for row in _table("api.md", "| scope | allows |")] == [scope.value for scope in Scope]


def test_every_error_is_documented_with_status_and_retryable() -> None:
    rows = _table("errors.md", "| code | status | retryable | what to do |")
    errors = ((f"`{error.code}`", str(status), "yes" if error.retryable else "no") for error, status in STATUS.items())
    assert [tuple(row[:3]) for row in rows] == list(dict.fromkeys(errors)), "a class may share its base's code"
    assert all(row[3] for row in rows)


def test_every_route_is_documented_with_its_scope(tmp_path: Path) -> None:
    settings = Settings(  # type: ignore[call-arg]  # pydantic-settings takes `_env_file`, and fields from elsewhere
        _env_file=None, TOKEN_ENCRYPTION_KEY=MASTER_KEY, SQLITE_PATH=str(tmp_path / "vault.db")
    )
    paths = create_app(settings).openapi()["paths"]
    served = {
        f"{method.upper()} {path}": re.findall(r"Needs `(tokens:[a-z_]+)`", operation["description"])
        for path, methods in paths.items()
        for method, operation in methods.items()
        if path.startswith(("/v1", "/oauth"))
    }
    documented = {_code(row[0]): [_code(row[1])] for row in _table("api.md", "| route | scope | does |")}
    assert documented == served


# --- the running service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("service"), {}) as running:
        yield running


def test_every_readiness_check_is_documented(service: Service) -> None:
    with service.client() as client:
        checks = client.get("/readyz").json()["checks"]
    assert {_code(row[0]) for row in _table("operating.md", "| check that is down | what to do |")} == {
        *checks,
        "kms",
        "audit",
        "user_jwt_keys",
        "providers",
    }


def test_the_example_log_line_has_the_fields_of_a_real_one(service: Service) -> None:
    [example] = re.findall(r"^```json\n(.*?)^```$", (DOCS / "operating.md").read_text(), re.DOTALL | re.MULTILINE)
    documented = json.loads(example)
    token = f"/v1/users/{documented['user_id']}/tokens/google"
    with service.client() as client, service.logged() as written:
        client.put(token, json={"access_token": "1234~a-token"})
        client.post(f"{token}/rotate", json={"access_token": "1234~a-token"})
    line = written[-1]
    assert list(line) == list(documented)
    differing = {name for name in documented if documented[name] != line[name]}
    assert differing == {"provider", "service", "request_id", "duration_ms", "timestamp"}


# --- commands


def _command_lines(text: str) -> Iterator[list[str]]:
    """Find what follows `token-vault` in code, up to the end of the line, the backtick or the bracket."""
    code = re.sub(r"\\\n\s*", "", "\n".join(re.findall(r"`[^`\n]+`|^```(?:.|\n)*?^```$", text, re.MULTILINE)))
    for match in re.finditer(rf"(?:^|[\s(`/]){PROGRAM} ([a-z-][^`)&\n]*)", code, re.MULTILINE):
        yield [PROGRAM, *shlex.split(match[1], comments=True)]


@every_document
def test_every_command_line_is_one_that_the_program_takes(document: Path) -> None:
    for words in _command_lines(document.read_text()):
        try:
            check_command_line(words)
        except click.ClickException as error:
            pytest.fail(f"{document.name}: {shlex.join(words)}: {error.format_message()}")


def test_command_lines_are_found() -> None:
    found = [words[1:3] for words in _command_lines((DOCS / "operating.md").read_text())]
    assert ["audit", "show"] in found
    assert ["serve", "--workers"] in found
    assert len(found) >= 8


@pytest.mark.parametrize("line", ["serve --no-such-option", "no-such-command", "keys create", "service-key create"])
def test_a_command_line_that_the_program_refuses_is_noticed(line: str) -> None:
    with pytest.raises(click.ClickException):
        check_command_line([PROGRAM, *line.split()])


@every_document
def test_every_make_target_that_is_named_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = re.findall(r"`[^`\n]+`|^```sh\n(?:.|\n)*?^```$", document.read_text(), re.MULTILINE)
    named = re.findall(r"(?:^|`) *make ((?:[a-z-]+ ?)+)", "\n".join(code), re.MULTILINE)
    assert {word for words in named for word in words.split()} <= targets


# --- paths, links, code


@every_document
def test_relative_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_links_are_found() -> None:
    assert "docs/architecture.md" in re.findall(r"\]\((?!https?://|#)([^)#]+)", README)


@every_document
def test_every_path_of_the_repository_that_is_named_exists(document: Path) -> None:
    named = re.findall(r"`((?:app|docs|tests|migrations|deploy|scripts|benchmarks)/[\w./-]*)`", document.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_picture_of_the_layers_is_the_contract() -> None:
    [picture] = re.findall(r"^```layers\n(.*?)\n```$", (DOCS / "architecture.md").read_text(), re.DOTALL | re.MULTILINE)
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert picture.splitlines() == next(one["layers"] for one in contracts if one["type"] == "layers")


def test_the_modules_on_the_walk_of_a_secret_exist() -> None:
    walk = (DOCS / "architecture.md").read_text().partition("### The path of one secret")[2].partition("\n## ")[0]
    [diagram] = re.findall(r"^```mermaid\n(.*?)^```$", walk, re.DOTALL | re.MULTILINE)
    modules = set(re.findall(r"\b[a-z]+/[a-z0-9_/]+", diagram))
    assert len(modules) > 30
    assert [module for module in modules if not (ROOT / "app" / f"{module}.py").exists()] == []


def test_every_decision_is_listed() -> None:
    records = {path.name for path in (DOCS / "decisions").glob("*.md")} - {"README.md"}
    listed = re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "decisions" / "README.md").read_text())
    assert sorted(listed) == sorted(records)


def test_the_scripts_example_runs_as_it_stands(tmp_path: Path) -> None:
    [code] = re.findall(r"^```python\n(.*?)^```$", (DOCS / "api.md").read_text(), re.DOTALL | re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TOKEN_ENCRYPTION_KEY": MASTER_KEY},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "'api_token': '1234~my-canvas-token'" in done.stdout


def test_readme_stays_readable() -> None:
    assert len(README.splitlines()) < 150
