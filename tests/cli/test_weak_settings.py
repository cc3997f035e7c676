"""Settings that are allowed but weak: a warning when the vault starts, and in `token-vault doctor`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.config.listening import unencrypted_listener
from app.config.settings import Settings
from tests.support.process.certificates import new_authority
from tests.support.process.home import Home, initialised_home, new_home, token_vault
from tests.support.process.server import Serve
from tests.support.security.keys import MASTER_KEY

EVERY_ADDRESS = "0.0.0.0"  # noqa: S104  a value that must be warned about
WEAK = {
    f"the vault listens on {EVERY_ADDRESS} without TLS",
    "the environment variable USE_KSM is not a setting; did you mean USE_KMS?",
    "a stolen service key works for ever if it never expires: replace those of tests",
}

INSECURE = {
    "token_url": "http://127.0.0.1:9/token",
    "client_auth": "post",
    "client_id": "a",
    "client_secret": "a-secret",
    "rotation": "none",
    "allow_insecure": True,
}


def _weak_home(folder: Path) -> Home:
    return new_home(folder, HOST=EVERY_ADDRESS, USE_KSM="true")


def _missing(lines: list[str]) -> set[str]:
    return {weakness for weakness in WEAK if not any(weakness in line for line in lines)}


@pytest.mark.parametrize("workers", [1, 2])
def test_the_start_warns(tmp_path: Path, serve: Serve, workers: int) -> None:
    home = new_home(tmp_path, HOST=EVERY_ADDRESS, USE_KSM="true", OAUTH_PROVIDERS=json.dumps({"acme": INSECURE}))
    with serve(home, workers=workers) as server:
        lines = [json.loads(line) for line in server.stop().output.splitlines()]
    warned = [line["reason"] for line in lines if line["event"] == "setting_is_weak" and line["level"] == "warning"]
    assert _missing(warned) == set()
    assert any("acme has allow_insecure" in reason for reason in warned)


def test_doctor_warns_and_finds_no_failure(tmp_path: Path) -> None:
    home = _weak_home(tmp_path)
    done = token_vault("doctor", folder=tmp_path, settings=home.settings)
    assert done.returncode == 0
    assert _missing([line for line in done.stdout.splitlines() if line.startswith("warn")]) == set()


def test_the_host_of_the_command_line_counts(tmp_path: Path, serve: Serve) -> None:
    with serve(new_home(tmp_path, HOST=EVERY_ADDRESS), "--host", "127.0.0.1") as server:
        assert "without TLS" not in server.stop().output


def test_tls_and_a_key_with_an_end_are_not_weak(tmp_path: Path) -> None:
    home = initialised_home(tmp_path)
    certificate, key = new_authority(tmp_path, "servers").issue(tmp_path, "vault")
    tls = {"HOST": EVERY_ADDRESS, "TLS_CERT_FILE": str(certificate), "TLS_KEY_FILE": str(key)}
    done = token_vault("doctor", folder=tmp_path, settings={**home.settings, **tls})
    assert done.returncode == 0
    assert "warn" not in done.stdout


def test_the_key_that_init_makes_ends_in_a_year(tmp_path: Path) -> None:
    initialised_home(tmp_path)
    [entry] = json.loads((tmp_path / "data" / "service-keys.json").read_text())
    left = datetime.fromisoformat(entry["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=364) < left < timedelta(days=366)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST"])
def test_a_loopback_address_needs_no_tls(host: str) -> None:
    assert unencrypted_listener(host, tls=False) is None


@pytest.mark.parametrize("host", [EVERY_ADDRESS, "::", "10.1.2.3", "vault.example.com", "fe80::1", "localhost.example"])
def test_another_address_needs_tls(host: str) -> None:
    assert unencrypted_listener(host, tls=True) is None
    assert host in (unencrypted_listener(host, tls=False) or "")


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"SUPABASE_URL": "http://gateway:8000"}, "SUPABASE_URL is not https"),
        ({"SUPABASE_URL": "http://127.0.0.1:8000"}, None),
        ({"SUPABASE_URL": "https://abcdefgh.supabase.co"}, None),
        ({"AWS_ENDPOINT_URL_KMS": "http://10.0.0.9:4566"}, "AWS_ENDPOINT_URL_KMS is not https"),
        ({"AWS_ENDPOINT_URL_KMS": "http://[::1]:4566"}, None),
        ({"AWS_ENDPOINT_URL_KMS": "https://kms.eu-central-1.amazonaws.com"}, None),
    ],
)
def test_plain_http_to_another_machine_warns(settings: dict[str, Any], warned: str | None) -> None:
    values = {"TOKEN_ENCRYPTION_KEY": MASTER_KEY, **settings}
    found = [line for line in Settings(_env_file=None, **values).warnings() if "is not https" in line]  # type: ignore[call-arg]  # pydantic-settings takes `_env_file`, and fields from elsewhere
    assert [line.partition(":")[0] for line in found] == ([] if warned is None else [warned])
