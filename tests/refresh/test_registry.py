"""The list of providers: strict entries, presets, and a registry that follows its files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr
from structlog.testing import capture_logs

from app.refresh.presets import ALIASES, PRESETS
from app.refresh.provider_list import ProviderListError, ProviderSource
from app.refresh.providers import ClientAuthentication, OAuthProvider, Revocation, Rotation
from app.refresh.registry import ProviderRegistry
from tests.support.oauth.providers import provider_of
from tests.support.security.clock import Clock

SECRET = "secret-4f9a0c-canary"
GOOGLE = {"preset": "google", "client_id": "g", "client_secret": SECRET}
ACME = {
    "token_url": "https://acme.example/token",
    "client_auth": "basic",
    "client_id": "a",
    "client_secret": SECRET,
    "rotation": "single_use",
}
P256 = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
APPLE = {"preset": "apple", "client_id": "x", "client_secret": P256, "team_id": "T", "signing_key_id": "K"}
OF_PRESETS: dict[str, dict[str, Any]] = {
    "google": GOOGLE,
    "microsoft": GOOGLE | {"preset": "microsoft", "tenant": "organizations"},
    "canvas": GOOGLE | {"preset": "canvas", "allowed_hosts": ["school.example"]},
    "notion": GOOGLE | {"preset": "notion"},
    "apple": APPLE,
}


def _problem(entries: Any) -> str:
    text = entries if isinstance(entries, str) else json.dumps(entries)
    with pytest.raises(ProviderListError) as caught:
        ProviderSource(text=SecretStr(text)).load()
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- presets


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_makes_a_complete_provider(preset: str) -> None:
    provider = provider_of(OF_PRESETS[preset], preset)
    assert provider.name == preset
    assert all(url.startswith("https://") for url in PRESETS[preset].sources)
    assert (provider.token_url is None) is (preset == "canvas")
    assert "{" not in str(provider.token_url)
    assert "invalid_grant" in provider.reauth_errors


def test_presets_state_what_is_known_of_each_provider() -> None:
    of = {name: provider_of(entry, name) for name, entry in OF_PRESETS.items()}
    assert {name: one.rotation for name, one in of.items()} == {
        "google": Rotation.NONE,
        "microsoft": Rotation.REUSABLE,
        "canvas": Rotation.NONE,
        "notion": Rotation.SINGLE_USE,
        "apple": Rotation.NONE,
    }
    assert {name: one.lease_seconds for name, one in of.items()} == dict.fromkeys(of, 60) | {"notion": 180}
    assert {name: one.idle_days for name, one in of.items() if one.idle_days} == {"google": 180, "microsoft": 90}
    assert of["canvas"].invalidates_old_access_token
    assert of["canvas"].refresh_margin_seconds == 0
    assert "invalid_request" in of["canvas"].reauth_errors
    assert {"interaction_required", "consent_required", "login_required"} <= of["microsoft"].reauth_errors
    assert of["microsoft"].revocation is Revocation.NONE
    assert of["microsoft"].token_url == "https://login.microsoftonline.com/organizations/oauth2/v2.0/token"
    assert (of["notion"].body, of["notion"].client_auth) == ("json", ClientAuthentication.BASIC)
    assert of["apple"].minimum_interval_seconds == 86_400


def test_an_entry_overrides_members_of_its_preset() -> None:
    provider = provider_of(GOOGLE | {"refresh_margin_seconds": 30, "idle_days": None})
    assert (provider.refresh_margin_seconds, provider.idle_days, provider.rotation) == (30, None, Rotation.NONE)


def test_an_entry_without_preset_needs_what_no_preset_knows() -> None:
    for member in ("token_url", "client_auth", "client_id", "client_secret", "rotation"):
        assert _problem({"acme": {name: value for name, value in ACME.items() if name != member}}).startswith(
            f"acme.{member}: is required"
        )


# --- strict parsing

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt member": (ACME | {"client_secrt": SECRET}, "did you mean client_secret?"),
    "a strange member": (ACME | {SECRET: 1}, "has an unknown member"),
    "a wrong preset": (ACME | {"preset": SECRET}, "acme.preset: "),
    "a preset that is no text": (ACME | {"preset": [SECRET]}, "acme.preset: "),
    "text for a number": (ACME | {"lease_seconds": "60"}, "acme.lease_seconds: "),
    "text for a bool": (ACME | {"send_scope": "yes"}, "acme.send_scope: "),
    "a lease shorter than a request": (ACME | {"lease_seconds": 10}, "acme.lease_seconds: "),
    "an unknown rotation": (ACME | {"rotation": SECRET}, "acme.rotation: "),
    "http": (ACME | {"token_url": f"http://acme.example/{SECRET}"}, "acme.token_url: must start with https"),
    "userinfo": (ACME | {"revoke_url": f"https://u:{SECRET}@acme.example/r"}, "acme.revoke_url: "),
    "an address": (ACME | {"token_url": "https://10.0.0.1/t"}, "acme.token_url: must name a host"),
    "two secrets": (ACME | {"client_secret_file": "/x"}, "acme.client_secret_file: excludes client_secret"),
    "an empty secret": (ACME | {"client_secret": "  "}, "acme.client_secret: is empty"),
    "a missing file": ({**ACME, "client_secret": None, "client_secret_file": "/none"}, "acme.client_secret_file: "),
    "a missing variable": ({**ACME, "client_secret": None, "client_secret_env": SECRET}, "acme.client_secret_env: "),
    "Canvas without hosts": (GOOGLE | {"preset": "canvas"}, "acme.allowed_hosts: is required"),
    "hosts without effect": (ACME | {"allowed_hosts": ["a.example"]}, "acme.allowed_hosts: has no effect"),
    "a wildcard": (OF_PRESETS["canvas"] | {"allowed_hosts": ["*.instructure.com"]}, "acme.allowed_hosts: "),
    "a URL as host": (OF_PRESETS["canvas"] | {"allowed_hosts": ["https://a.example"]}, "acme.allowed_hosts: "),
    "Apple without a team": (APPLE | {"team_id": None}, "acme.team_id: is required"),
    "Apple with a password": (APPLE | {"client_secret": SECRET}, "acme.client_secret: is not a private key"),
    "a tenant elsewhere": (ACME | {"tenant": "common"}, "acme.tenant: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_entry_is_named_without_its_value(case: str) -> None:
    entry, expected = WRONG[case]
    problem = _problem({"acme": entry})
    assert problem.startswith("acme")
    assert expected in problem


@pytest.mark.parametrize("text", ["", "[]", "7", "{", '{"a": 1}', '{"A B": {}}', '{"a": {}, "a": {}}', "[" * 2_000])
def test_a_list_that_is_no_object_of_entries_is_refused(text: str) -> None:
    assert _problem(text)


# --- the registry


class _Files:
    def __init__(self, folder: Path) -> None:
        self.list = folder / "providers.json"
        self.secret = folder / "acme-secret"
        self.write({"acme": {**ACME, "client_secret": None, "client_secret_file": "acme-secret"}})
        self.replace(self.secret, SECRET + "\n")
        self.clock = Clock()

    def write(self, entries: Any) -> None:
        self.replace(self.list, entries if isinstance(entries, str) else json.dumps(entries))

    def replace(self, path: Path, text: str) -> None:
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").replace(path)

    def registry(self) -> ProviderRegistry:
        return ProviderRegistry(source=ProviderSource(file=self.list), monotonic=self.clock)


@pytest.fixture
def files(tmp_path: Path) -> _Files:
    return _Files(tmp_path)


def _secret(registry: ProviderRegistry) -> str:
    provider = registry.find("acme")
    assert isinstance(provider, OAuthProvider)
    return provider.client_secrets[0].get_secret_value()


def test_a_corrected_secret_file_is_read_within_seconds(files: _Files) -> None:
    registry = files.registry()
    assert _secret(registry) == SECRET
    files.replace(files.secret, "the right one")
    files.clock.advance(2)
    assert _secret(registry) == "the right one"


def test_a_changed_list_is_read_again(files: _Files) -> None:
    registry = files.registry()
    files.write({"google": GOOGLE})
    files.clock.advance(2)
    assert registry.names() == ("google",)
    assert registry.find("acme") is None


@pytest.mark.parametrize("broken", ["", "{}}", '{"acme": {"preset": "gogle"}}'])
def test_a_broken_list_keeps_the_last_good_one_and_is_reported(files: _Files, broken: str) -> None:
    registry = files.registry()
    with capture_logs() as lines:
        files.write(broken)
        for _ in range(3):
            files.clock.advance(2)
            assert _secret(registry) == SECRET
        assert registry.problem is not None
        files.write({"acme": ACME | {"client_secret": "repaired"}})
        files.clock.advance(2)
        assert _secret(registry) == "repaired"
    assert registry.problem is None
    assert [line["event"] for line in lines] == ["oauth_providers_refused", "oauth_providers_loaded"]
    assert SECRET not in json.dumps(lines)


@pytest.mark.parametrize("broken", ["an entry", "a secret's file"])
def test_an_invalid_list_is_parsed_once_for_each_change(files: _Files, broken: str) -> None:
    """Each second would cost the event loop a parse of up to a megabyte, for as long as nobody corrects the list."""
    parsed: list[str] = []
    entry = {**ACME, "client_secret": None, "client_secret_env": "ACME_SECRET"}
    files.write({"acme": entry})

    def read_variable(name: str) -> str:
        parsed.append(name)
        return SECRET

    source = ProviderSource(file=files.list, read_variable=read_variable)
    registry = ProviderRegistry(source=source, monotonic=files.clock)
    also = (
        ACME | {"client_secrt": ""}
        if broken == "an entry"
        else {**ACME, "client_secret": None, "client_secret_file": "b"}
    )
    files.write({"acme": entry, "b": also})
    files.clock.advance(2)
    assert registry.problem is not None
    parsed.clear()
    for _ in range(10):
        files.clock.advance(2)
        assert registry.problem is not None
    assert len(parsed) <= 1, "a file that the list names newly may be read once more"
    files.replace(files.list.parent / "b", "now there is one")
    files.write({"acme": entry} if broken == "an entry" else {"acme": entry, "b": also})
    files.clock.advance(2)
    assert registry.problem is None


def test_a_secret_file_that_vanishes_keeps_the_last_secret(files: _Files) -> None:
    registry = files.registry()
    files.secret.unlink()
    files.clock.advance(2)
    assert _secret(registry) == SECRET
    assert re.search(r"acme\.client_secret_file", registry.problem or "")
    files.replace(files.secret, "back")
    files.clock.advance(2)
    assert _secret(registry) == "back"
    assert registry.problem is None


def test_a_file_that_others_can_write_is_refused(files: _Files) -> None:
    files.secret.chmod(0o666)
    with pytest.raises(ProviderListError, match="other users can write"):
        files.registry()


def test_an_alias_finds_the_entry_unless_it_has_one_itself() -> None:
    google, acme = provider_of(GOOGLE, "google"), provider_of(ACME, "outlook")
    registry = ProviderRegistry(providers=[google, acme])
    assert ALIASES == {"gmail": "google", "outlook": "microsoft"}
    assert registry.find("gmail") is google
    assert registry.find("outlook") is acme
    assert registry.find("microsoft") is None


def test_secrets_come_from_variables_and_the_previous_one_is_second() -> None:
    entry = {**ACME, "client_secret": None, "client_secret_env": "ACME_SECRET", "previous_client_secret": "old"}
    source = ProviderSource(text=SecretStr(json.dumps({"acme": entry})), read_variable={"ACME_SECRET": "new"}.get)
    [provider] = source.load().providers
    assert [secret.get_secret_value() for secret in provider.client_secrets] == ["new", "old"]


def test_an_insecure_entry_warns() -> None:
    registry = ProviderRegistry(providers=[provider_of(ACME), provider_of(GOOGLE | {"allow_insecure": True}, "google")])
    [warning] = registry.warnings()
    assert "google has allow_insecure" in warning


def test_an_entry_that_becomes_insecure_later_warns_once(files: _Files) -> None:
    registry = files.registry()
    with capture_logs() as lines:
        for _ in range(2):
            files.write({"acme": ACME | {"allow_insecure": True}, "google": GOOGLE})
            files.clock.advance(2)
            assert registry.find("google") is not None
        files.write({"acme": ACME | {"allow_insecure": True}})
        files.clock.advance(2)
        assert registry.find("google") is None
    [warning] = [line for line in lines if line["log_level"] == "warning"]
    assert warning["event"] == "setting_is_weak"
    assert "acme has allow_insecure" in warning["reason"]
