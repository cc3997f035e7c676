"""`token-vault service-key` in a home with a file of service keys."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Final

from tests.support.process.home import Home, new_home, token_vault

KEY_FILE: Final = "keys/service-keys.json"


def home_with_key_file(folder: Path) -> Home:
    """Return a home with `SERVICE_KEYS_FILE`, which does not exist yet, and without `SERVICE_KEYS`."""
    return new_home(folder, SERVICE_KEYS="", SERVICE_KEYS_FILE=KEY_FILE)


def service_key(home: Home, *arguments: str) -> CompletedProcess[str]:
    return token_vault("service-key", *arguments, folder=home.folder, settings=home.settings)


def create_key(home: Home, *arguments: str, service: str = "api") -> str:
    """Create a key with `tokens:read` and the scopes in `arguments`, and return it."""
    done = service_key(home, "create", "--service", service, "--scope", "tokens:read", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


def write_key_file(home: Home, content: str, encoding: str = "utf-8") -> None:
    path = home.folder / KEY_FILE
    path.parent.mkdir()
    path.write_text(content, encoding=encoding)


def entries_of(home: Home) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((home.folder / KEY_FILE).read_text())
    return entries


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
