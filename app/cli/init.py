"""`token-vault init`: create the files for a first start on one machine."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from app.callers.service_key_file import add_key
from app.callers.service_keys import KeyListError, Scope, ServiceKey, generate_key, hash_key
from app.cli.errors import UsageError, settings_or_stop
from app.config.settings import ENV_FILE, Settings
from app.security.keyring import new_key_text

_DATABASE = Path("data/vault.db")
_AUDIT = Path("data/audit/audit.jsonl")
_SERVICE_KEYS = Path("data/service-keys.json")
_SECRETS = ("TOKEN_ENCRYPTION_KEY", "AUDIT_KEY")  # written unless a file holds them
_KEY_LIFETIME = timedelta(days=365)
_EXAMPLE_USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"

_ENV = """\
# Written by `token-vault init`. TOKEN_ENCRYPTION_KEY decrypts every stored token: keep this file secret, and keep a
# copy. AUDIT_KEY signs the audit trail: anybody who has it can forge lines.
# .env.example describes every setting.
TOKEN_STORE=sqlite
SQLITE_PATH={database}
TOKEN_ENCRYPTION_KEY={master_key}
ENCRYPTION_KEY_VERSION=1
ALLOW_LEGACY_FORMATS=false
SERVICE_KEYS_FILE={service_keys}
AUDIT_LOG={audit}
AUDIT_KEY={audit_key}
LOG_FORMAT=console
"""

_CURL = """\
curl -X PUT {url} -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \
-d '{{"access_token": "1234~my-canvas-token", "base_url": "https://canvas.example.edu"}}'
curl {url} -H 'Authorization: Bearer {key}'
curl -X POST {url}/rotate -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \
-d '{{"access_token": "1234~my-next-canvas-token"}}'
"""


@click.command()
def init() -> None:
    """Create .env with a new master key, and a file with a service key for development.

    Prints the service key once, with curl commands to try it. Keeps existing files unchanged: safe to run again.

    Exit codes: 0 created, or nothing to create, 2 a file cannot be written, or a setting is wrong.
    """
    if not ENV_FILE.exists():
        _write_env()
    settings = settings_or_stop()
    if settings.service_keys_file is not None and not settings.service_keys_file.exists():
        _write_service_keys(settings, settings.service_keys_file)


def _write_env() -> None:
    from_files = {name for name in _SECRETS if f"{name}_FILE" in os.environ}
    if _DATABASE.exists() and "TOKEN_ENCRYPTION_KEY" not in os.environ.keys() | from_files:
        raise UsageError(
            f"{_DATABASE} holds tokens, but {ENV_FILE} with their master key is missing. Restore it: a new key cannot "
            f"decrypt them. Without it, move {_DATABASE} away to start empty."
        )
    text = _ENV.format(
        database=_DATABASE,
        master_key=new_key_text(),
        service_keys=_SERVICE_KEYS,
        audit=_AUDIT,
        audit_key=new_key_text(),
    )
    text = "".join(line for line in text.splitlines(keepends=True) if line.partition("=")[0] not in from_files)
    draft = ENV_FILE.with_name(f"{ENV_FILE.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)  # the only copy of the key must be on disk before the first token
        os.link(draft, ENV_FILE)  # atomic, and fails if the file exists
        draft.unlink()
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UsageError(f"{ENV_FILE} cannot be written: {error.strerror}") from None
    if "TOKEN_ENCRYPTION_KEY" in from_files:
        click.echo(f"Created {ENV_FILE}; the master key is in the file that TOKEN_ENCRYPTION_KEY_FILE names.")
        return
    click.echo(f"Created {ENV_FILE} with a new master key. Keep a copy: without that key no token can be decrypted.")


def _write_service_keys(settings: Settings, path: Path) -> None:
    key = generate_key()
    end = datetime.now(UTC).replace(microsecond=0) + _KEY_LIFETIME
    entry = ServiceKey(service="development", sha256=hash_key(key), scopes=frozenset(Scope), expires_at=end)
    try:
        add_key(path, entry)
    except (KeyListError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{path} cannot be written: {reason}") from None
    url = f"http://{settings.host}:{settings.port}/v1/users/{_EXAMPLE_USER}/tokens/canvas"
    click.echo(f"Created {path} with a service key for development until {end:%Y-%m-%d}. It is shown only once:\n")
    click.echo(f"    {key}\n")
    click.echo("With the vault running (`token-vault serve`), store a token, reveal it and rotate it:\n")
    click.echo(_CURL.format(url=url, key=key))
