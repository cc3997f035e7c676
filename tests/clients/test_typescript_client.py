"""The TypeScript client: its types are those of the document, and a type-correct program works under Node."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts.write_openapi import OPENAPI_FILE
from tests.support.api.service import Service
from tests.support.paths import ROOT, STACK
from tests.support.stack.install import TYPESCRIPT
from tests.support.stores.stores import SqliteStore

CLIENT = ROOT / "clients" / "typescript"
NODE = shutil.which("node") or str(STACK / "node" / "bin" / "node")


def _run(*command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(NODE).parent), os.environ["PATH"]])
    environment = {"PATH": path, "NO_COLOR": "1", **variables}
    return subprocess.run(
        [NODE, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def _generate(output: Path) -> subprocess.CompletedProcess[str]:
    program = TYPESCRIPT / "openapi-typescript" / "bin" / "cli.js"
    return _run(str(program), str(OPENAPI_FILE), "--output", str(output), folder=TYPESCRIPT.parent)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client and its test program, compiled where nothing of the repository is."""
    folder = tmp_path_factory.mktemp("typescript")
    for name in ("src", "test"):
        shutil.copytree(CLIENT / name, folder / name)
    for name in ("tsconfig.json", "package.json"):
        shutil.copyfile(CLIENT / name, folder / name)
    (folder / "node_modules").symlink_to(TYPESCRIPT)
    done = _run(str(TYPESCRIPT / "typescript" / "bin" / "tsc"), folder=folder)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout
    return folder


def test_the_types_are_generated_from_the_document_without_warning(tmp_path: Path) -> None:
    done = _generate(tmp_path / "schema.ts")
    assert done.returncode == 0, done.stderr
    assert not [line for line in (done.stdout + done.stderr).splitlines() if "warn" in line.lower() or "\u26a0" in line]
    assert (tmp_path / "schema.ts").read_text() == (CLIENT / "src" / "schema.ts").read_text(), "run `make openapi`"


def test_a_typed_program_stores_reveals_rotates_and_deletes(
    compiled: Path, sqlite_service: tuple[Service, SqliteStore]
) -> None:
    service, _ = sqlite_service
    done = _run("dist/test/life.js", folder=compiled, VAULT_URL=service.url, VAULT_KEY=service.keys["full"])
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
