"""Settings as they are read: defaults, sources, errors and warnings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.config.settings import Settings, SettingsError, load_settings
from tests.support.security.keys import MASTER_KEY, OTHER_MASTER_KEY

CANARY = "CANARY-secret-value"


def _load(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Settings:
    for name, value in {"TOKEN_ENCRYPTION_KEY": MASTER_KEY, **environment}.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def test_defaults_are_the_documented_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _load(monkeypatch)
    assert settings.token_store == "sqlite"
    assert settings.sqlite_path == Path("data/vault.db")
    assert (settings.encryption_key_version, settings.min_key_version) == (1, 1)
    assert (settings.allow_legacy_formats, settings.rewrap_legacy, settings.use_kms) == (True, False, False)
    assert (settings.host, settings.port, settings.log_level, settings.log_format) == (
        "127.0.0.1",
        8080,
        "INFO",
        "json",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKEN_STORE", CANARY),
        ("PORT", CANARY),
        ("PORT", "70000"),
        ("LOG_LEVEL", CANARY),
        ("LOG_FORMAT", CANARY),
        ("ENCRYPTION_KEY_VERSION", CANARY),
        ("ENCRYPTION_KEY_VERSION", "0"),
        ("MIN_KEY_VERSION", "-1"),
        ("MIN_KEY_VERSION", "2"),
        ("ALLOW_LEGACY_FORMATS", CANARY),
        ("USE_KMS", CANARY),
        ("USE_KMS", "true"),
        ("TOKEN_ENCRYPTION_KEY", "CANARY"),
        ("TOKEN_ENCRYPTION_KEY", "CANARY-15-bytes"),
        ("TOKEN_ENCRYPTION_KEY", "CANARY1!xxxxxxxxx"),  # 17 characters; 16 of them decode to 12 bytes
        ("TOKEN_ENCRYPTION_PREVIOUS_KEYS", CANARY),
        ("TOKEN_ENCRYPTION_PREVIOUS_KEYS", json.dumps([CANARY])),
        ("TOKEN_ENCRYPTION_PREVIOUS_KEYS", json.dumps({CANARY: OTHER_MASTER_KEY})),
        ("TOKEN_ENCRYPTION_PREVIOUS_KEYS", json.dumps({"2": "CANARY"})),
        ("TOKEN_ENCRYPTION_PREVIOUS_KEYS", json.dumps({"2": ["CANARY"]})),
        ("TOKEN_ENCRYPTION_PREVIOUS_KEYS", json.dumps({"1": CANARY * 2})),
        ("TOKEN_ENCRYPTION_PREVIOUS_KEYS", f'{{"2": "{CANARY}{CANARY}", "2": "{CANARY}{CANARY}x"}}'),
        ("TOKEN_ENCRYPTION_PREVIOUS_KEYS", "[" * 100_000),
        ("TOKEN_ENCRYPTION_PREVIOUS_KEYS", f'{{"2": "{CANARY}", "02": "{CANARY}{CANARY}"}}'),
        ("RATE_LIMIT_PER_SECOND", "-1"),
        ("RATE_LIMIT_PER_SECOND", "nan"),
        ("RATE_LIMIT_PER_SECOND", "inf"),
        ("MAXIMUM_CONCURRENT", "1.5"),
        ("MAXIMUM_CONCURRENT_PER_SERVICE", CANARY),
        ("API_DOCS", CANARY),
        ("TLS_CERT_FILE", CANARY),
        ("TLS_KEY_FILE", CANARY),
        ("TLS_CLIENT_CA_FILE", CANARY),
        ("SUPABASE_URL", CANARY),
        ("SUPABASE_URL", f"https://user:{CANARY}@abcdefgh.supabase.co"),
        ("SUPABASE_URL", f"https://abcdefgh.supabase.co/rest/v1?{CANARY}"),
        ("SUPABASE_URL", "https://abcdefgh.supabase.co/rest/v1"),
        ("SUPABASE_URL", "https://"),
        ("SUPABASE_URL", f"https://example.com:{CANARY}"),
        ("SUPABASE_SERVICE_KEY", f"{CANARY}\n"),
        ("USER_JWT_SECRET", f"{CANARY}-12345678901"),  # 31 bytes
        ("USER_JWT_SECRET", CANARY * 3),  # without an issuer
        ("USER_JWT_JWKS_URL", CANARY),
        ("USER_JWT_JWKS_URL", f"https://{CANARY}:x/jwks.json"),
        ("USER_JWT_JWKS_URL", "https://abcdefgh.supabase.co/jwks.json"),  # without an issuer
        ("USER_JWT_ISSUER", CANARY),  # without a key
    ],
)
def test_a_wrong_value_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        _load(monkeypatch, **{name: value})
    line = str(caught.value)
    assert name in line
    assert "CANARY" not in line
    assert "\n" not in line
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"TOKEN_ENCRYPTION_KEY": ""}, "TOKEN_ENCRYPTION_KEY"),
        ({"TOKEN_STORE": "supabase", "SUPABASE_SERVICE_KEY": CANARY}, "SUPABASE_URL"),
        ({"TOKEN_STORE": "supabase", "SUPABASE_URL": "https://x.test"}, "SUPABASE_SERVICE_KEY"),
    ],
)
def test_a_missing_value_is_named(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        _load(monkeypatch, **environment)


_ISSUER = {"USER_JWT_ISSUER": "https://abcdefgh.supabase.co/auth/v1"}
_KEY_SET = "https://abcdefgh.supabase.co/auth/v1/.well-known/jwks.json"


@pytest.mark.parametrize(
    ("url", "accepted"),
    [
        (_KEY_SET, True),
        ("https://auth.example.edu:8443/keys?v=1", True),
        ("http://127.0.0.1:9999/keys", True),
        ("http://localhost/keys", True),
        ("http://[::1]:9999/keys", True),
        ("http://abcdefgh.supabase.co/keys", False),
        ("http://127.0.0.1.example.edu/keys", False),
        ("http://10.0.0.7/keys", False),
        ("ftp://127.0.0.1/keys", False),
        ("file:///etc/keys", False),
        ("https:///keys", False),
        ("https://user@auth.example.edu/keys", False),
        ("https://:secret@auth.example.edu/keys", False),
        ("https://auth.example.edu/keys#1", False),
        ("https://auth.example.edu:0/keys", False),
        ("https://auth.example.edu:99999/keys", False),
        ("https://auth example.edu/keys", False),
        ("https://auth.example.edu/keys\n", False),
        ("https://auth..example.edu/keys", False),
    ],
)
def test_the_key_set_comes_over_https_or_from_this_machine(
    monkeypatch: pytest.MonkeyPatch, url: str, accepted: bool
) -> None:
    if accepted:
        assert _load(monkeypatch, USER_JWT_JWKS_URL=url, **_ISSUER).user_jwt_jwks_url == url
    else:
        with pytest.raises(SettingsError, match="USER_JWT_JWKS_URL"):
            _load(monkeypatch, USER_JWT_JWKS_URL=url, **_ISSUER)


def test_key_set_and_secret_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="exclude each other") as caught:
        _load(monkeypatch, USER_JWT_JWKS_URL=_KEY_SET, USER_JWT_SECRET=CANARY * 2, **_ISSUER)
    assert "CANARY" not in str(caught.value)


def test_the_issuers_secret_shows_in_no_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _load(monkeypatch, USER_JWT_SECRET=CANARY * 2, **_ISSUER)
    assert settings.user_jwt_audience == "authenticated"
    assert "CANARY" not in repr(settings) + str(settings)


@pytest.mark.parametrize(
    ("key", "length"), [("AAAAAAAAAAAAAAAAAAAAAA==", 16), ("CANARY-15-bytes!!", 17), (MASTER_KEY, 32)]
)
def test_a_master_key_is_long_enough_after_decoding(monkeypatch: pytest.MonkeyPatch, key: str, length: int) -> None:
    settings = _load(monkeypatch, TOKEN_ENCRYPTION_KEY=key, SERVICE_KEYS="[]")
    keyring = settings.keyring()
    assert keyring is not None
    assert len(keyring.key(1)) == length
    warned = [line for line in settings.warnings() if "TOKEN_ENCRYPTION_KEY" in line]
    assert bool(warned) is (length < 32)
    assert key not in "".join(warned)


@pytest.mark.parametrize("allowed", ["true", "false"])
def test_rewrap_legacy_without_legacy_formats_is_warned_about(monkeypatch: pytest.MonkeyPatch, allowed: str) -> None:
    settings = _load(monkeypatch, REWRAP_LEGACY="true", ALLOW_LEGACY_FORMATS=allowed)
    warned = [line for line in settings.warnings() if line.startswith("REWRAP_LEGACY")]
    assert bool(warned) is (allowed == "false")


def test_previous_keys_are_read_by_version(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _load(
        monkeypatch,
        ENCRYPTION_KEY_VERSION="3",
        TOKEN_ENCRYPTION_PREVIOUS_KEYS=json.dumps({"1": OTHER_MASTER_KEY, "2": "dev-only master key, not base64!"}),
    )
    keyring = settings.keyring()
    assert keyring is not None
    assert sorted(keyring.keys) == [1, 2, 3]
    assert keyring.key(2) == b"dev-only master key, not base64!"


def test_the_env_file_is_read_and_the_environment_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"TOKEN_ENCRYPTION_KEY={MASTER_KEY}\nPORT=9000\nHOST=0.0.0.0\n")
    monkeypatch.setenv("PORT", "9001")
    settings = load_settings()
    assert (settings.port, settings.host) == (9001, "0.0.0.0")  # noqa: S104  a value, nothing listens


def test_an_env_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"TOKEN_ENCRYPTION_KEY=\xff\xfe")
    with pytest.raises(SettingsError, match=r"\.env"):
        load_settings()


def test_no_secret_shows_in_the_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _load(
        monkeypatch,
        TOKEN_ENCRYPTION_PREVIOUS_KEYS=json.dumps({"2": OTHER_MASTER_KEY}),
        ENCRYPTION_KEY_VERSION="1",
        SUPABASE_SERVICE_KEY=CANARY,
        SERVICE_KEYS=CANARY,
    )
    shown = repr(settings) + str(settings) + repr(settings.keyring())
    assert MASTER_KEY not in shown
    assert OTHER_MASTER_KEY not in shown
    assert "CANARY" not in shown
