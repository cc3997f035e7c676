"""What the start of the service, and the list of commands, import."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.process.home import new_home, run

_UNUSED = "aiohttp asyncpg boto3 cryptography.x509 httpx jwt pydantic.v1 supabase"
_CODE = f"""
import sys, app.cli.serve, app.server.http_limits, app.hardened_app, app.main
print(*(name for name in {_UNUSED!r}.split() if name in sys.modules))
"""


def test_a_vault_on_sqlite_imports_no_library_that_it_does_not_use() -> None:
    done = subprocess.run([sys.executable, "-c", _CODE], check=True, capture_output=True, text=True)

    assert done.stdout.split() == []


_DOCUMENT = """
import json, pathlib
from app.hardened_app import create_hardened_app
create_hardened_app()
from fastapi.openapi.models import OpenAPI
assert not OpenAPI.__pydantic_complete__
from app.main import create_app  # the application within, whose models are those of the first import
pathlib.Path("document.json").write_text(json.dumps(create_app().openapi()))
assert OpenAPI.__pydantic_complete__
"""


def test_the_models_of_the_document_are_built_when_it_is_asked_for(tmp_path: Path) -> None:
    done = run(sys.executable, "-c", _DOCUMENT, folder=tmp_path, settings=new_home(tmp_path).settings)

    assert (done.returncode, done.stderr) == (0, "")
    committed = json.loads((ROOT / "docs" / "openapi.json").read_text())
    assert json.loads((tmp_path / "document.json").read_text()) == committed


_LIST_COMMANDS = """
import sys
from app.cli import main
try:
    main(prog_name="token-vault")
finally:
    print(*(name for name in sys.modules if name.startswith("app.cli.") or name == "pydantic"), file=sys.stderr)
"""
_COMPLETE = {"_TOKEN_VAULT_COMPLETE": "bash_complete", "COMP_WORDS": "token-vault s", "COMP_CWORD": "1"}


@pytest.mark.parametrize(("arguments", "variables"), [(["--help"], {}), ([], _COMPLETE)], ids=["help", "completion"])
def test_the_commands_are_listed_without_importing_any(arguments: list[str], variables: dict[str, str]) -> None:
    command = [sys.executable, "-c", _LIST_COMMANDS, *arguments]
    done = subprocess.run(command, env=os.environ | variables, check=False, capture_output=True, text=True)

    assert "service-key" in done.stdout
    assert done.stderr.split() == ["app.cli.group"]
