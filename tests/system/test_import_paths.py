"""The import paths of PulsePlan's scripts work in `python -c` with nothing but settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from uuid import uuid4

import pytest

from tests.support.process.home import Home, files_of, new_home, new_master_key, run
from tests.support.process.server import Serve
from tests.support.stack.supabase import SupabaseStack

# unchanged from PulsePlan
ENCRYPTION_SERVICE = """\
from app.security.encryption import get_encryption_service; service = get_encryption_service(); \
e = service.encrypt_token("test-canvas-token-123", "user-id-123"); \
assert service.decrypt_token(e, "user-id-123") == "test-canvas-token-123"\
"""

CANVAS = """\
import asyncio, json, sys
from app.services.integrations.canvas_token_service import get_canvas_token_service
user_id, stranger, url = sys.argv[1:]
service = get_canvas_token_service()
asyncio.run(service.store_canvas_token(user_id, url, "1234~token"))
found = asyncio.run(service.retrieve_canvas_token(user_id))
print(json.dumps([found, asyncio.run(service.retrieve_canvas_token(stranger))]))
"""

WRONG_URLS = """\
import asyncio, sys
from app.errors import InvalidRequest
from app.services.integrations.canvas_token_service import get_canvas_token_service
user_id, *urls = sys.argv[1:]
for url in urls:
    try:
        asyncio.run(get_canvas_token_service().store_canvas_token(user_id, url, "1234~token"))
    except InvalidRequest as error:
        print(error)
"""

EVERY_MODULE = """\
import importlib, pkgutil, threading, app
names = [module.name for module in pkgutil.walk_packages(app.__path__, "app.")]
for name in names:
    importlib.import_module(name)
assert len(names) > 40, names
assert threading.active_count() == 1
"""

URL = "https://canvas.example.edu"


def _python(code: str, *arguments: str, folder: Path, settings: Mapping[str, str]) -> CompletedProcess[str]:
    return run(sys.executable, "-W", "error", "-c", code, *arguments, folder=folder, settings=settings)


def test_the_encryption_service_needs_only_a_master_key(tmp_path: Path) -> None:
    done = _python(ENCRYPTION_SERVICE, folder=tmp_path, settings={"TOKEN_ENCRYPTION_KEY": new_master_key()})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(params=["sqlite", "supabase"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    if request.param == "sqlite":
        return new_home(tmp_path)
    stack: SupabaseStack = request.getfixturevalue("supabase")
    return new_home(tmp_path, TOKEN_STORE="supabase", SUPABASE_URL=stack.url, SUPABASE_SERVICE_KEY=stack.service_key)


def _last_line(done: CompletedProcess[str]) -> Any:
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout.splitlines()[-1])


def test_a_canvas_token_of_a_script_is_retrieved_and_served(home: Home, serve: Serve) -> None:
    user_id = str(uuid4())
    done = _python(CANVAS, user_id, str(uuid4()), URL, folder=home.folder, settings=home.settings)
    found, unknown = _last_line(done)
    assert found == {"api_token": "1234~token", "base_url": URL, "status": "ok", "user_id": user_id}
    assert unknown is None
    with serve(home) as server, server.client() as client:
        revealed = client.get(f"/v1/users/{user_id}/tokens/canvas").json()
    assert (revealed["access_token"], revealed["base_url"]) == ("1234~token", URL)


def test_a_script_uses_the_canvas_token_that_pulseplan_has_stored(tmp_path: Path, serve: Serve) -> None:
    home, user_id = new_home(tmp_path), str(uuid4())
    tokens = f"/v1/users/{user_id}/tokens"
    with serve(home) as server, server.client() as client:
        client.put(f"{tokens}/canvas?service_type=canvas", json={"access_token": "old", "base_url": URL})
        done = _python(CANVAS, user_id, str(uuid4()), URL, folder=tmp_path, settings=home.settings)
        assert _last_line(done)[0]["api_token"] == "1234~token"
        listed = client.get(tokens).json()["tokens"]
        assert [one["service_type"] for one in listed] == ["canvas"]
        assert client.get(f"{tokens}/canvas?service_type=canvas").json()["access_token"] == "1234~token"


def test_a_canvas_url_that_is_not_https_is_refused_before_any_write(tmp_path: Path) -> None:
    urls = ("http://canvas.example.edu", "canvas.example.edu", "")
    done = _python(WRONG_URLS, str(uuid4()), *urls, folder=tmp_path, settings=new_home(tmp_path).settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.startswith("base_url must be an https URL") for line in done.stdout.splitlines()] == [True] * 3
    assert "1234~token" not in done.stdout
    assert files_of(tmp_path) == {}


def test_importing_every_module_reads_no_setting_and_starts_nothing(tmp_path: Path) -> None:
    wrong = dict.fromkeys(("PORT", "TOKEN_STORE", "TOKEN_ENCRYPTION_KEY", "SERVICE_KEYS", "SUPABASE_URL"), "wrong")
    (tmp_path / ".env").write_bytes(b"\xff\xfe")
    before = files_of(tmp_path)
    done = _python(EVERY_MODULE, folder=tmp_path, settings=wrong)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert files_of(tmp_path) == before
