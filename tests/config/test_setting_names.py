"""Names that no setting has: in `.env` they stop the start, in the environment they warn if they look like a typo."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.config.secret_files import file_fields
from app.config.settings import Settings, SettingsError, load_admin_connection, load_settings
from tests.support.security.keys import MASTER_KEY

SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlYw=="


def _refusal(text: str) -> str:
    Path(".env").write_text(f"TOKEN_ENCRYPTION_KEY={MASTER_KEY}\n{text}\n")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    line = str(caught.value)
    assert "\n" not in line
    assert MASTER_KEY not in line
    assert SECRET[:8] not in line
    return line


# --- .env


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("USE_KSM=true", "line 2: USE_KSM is not a setting; did you mean USE_KMS?"),
        ("USE_KSM=", "line 2: USE_KSM is not a setting; did you mean USE_KMS?"),
        ("USE_KSM", "line 2: USE_KSM is not a setting; did you mean USE_KMS?"),
        ("# comment\n\n  export use_ksm = 'true'", "line 4: USE_KSM is not a setting; did you mean USE_KMS?"),
        ("AUDIT_KEY_FIEL=x", "line 2: AUDIT_KEY_FIEL is not a setting; did you mean AUDIT_KEY_FILE?"),
        ("ENCRYPTION_VERSION=2", "line 2: ENCRYPTION_VERSION is not a setting; did you mean ENCRYPTION_KEY_VERSION?"),
        ("FOO=1", "line 2: the name is not that of a setting"),
        ("USE_KMS", "line 2: USE_KMS has no value, not even an empty one"),
        ("USE_KMS: true", "line 2 is not NAME=value"),
        ('HOST="127.0.0.1', "line 2 is not NAME=value"),
    ],
)
def test_a_wrong_line_of_the_env_file_stops_the_start(text: str, refusal: str) -> None:
    assert _refusal(text) == f".env, {refusal}"


@pytest.mark.parametrize(
    "text",
    [
        f"TOKEN_ENCRYPTION_PREVIOUS_KEYS=\n{SECRET}",
        f"{SECRET}",
        f"{SECRET}=1",
        f"TOKEN_ENCRYPTION_PREVIOUS_KEYS:{SECRET}",
        f"TOKEN_ENCRYPTION_PREVIOUS_KEYS={{\n{SECRET}\n}}",
        f"AUDIT_KEY-{SECRET[:12]}=1",
        f"'{SECRET}'='{SECRET}'",
        f'HOST="{SECRET}',
    ],
)
def test_a_misplaced_secret_in_the_env_file_is_not_shown(text: str) -> None:
    assert ".env, line " in _refusal(text)


def test_a_long_list_of_unknown_names_is_cut() -> None:
    line = _refusal("\n".join(f"FOO_{number}=1" for number in range(100)))
    assert line.endswith("; and 95 more")
    assert len(line) < 500


def test_a_misspelt_name_is_reported_before_what_is_missing() -> None:
    Path(".env").write_text(f"TOKEN_ENCRYPTION_KYE={MASTER_KEY}\n")
    with pytest.raises(SettingsError, match=r"TOKEN_ENCRYPTION_KYE is not .* mean TOKEN_ENCRYPTION_KEY\?"):
        load_settings()


def test_every_setting_and_file_is_a_known_name() -> None:
    names = {*Settings.model_fields, *file_fields(Settings).values()}
    Path(".env").write_text("".join(f"{name.upper()}=\n" for name in names) + f"TOKEN_ENCRYPTION_KEY={MASTER_KEY}\n")
    assert load_settings().port == 8080


def test_a_misspelt_region_stops_the_setup_of_a_kms_key() -> None:
    Path(".env").write_text("AWS_REGOIN=eu-central-1\n")
    with pytest.raises(SettingsError, match=r"did you mean AWS_REGION\?"):
        load_admin_connection(region=None)


def test_an_env_file_that_is_a_fifo_is_refused_at_once() -> None:
    os.mkfifo(".env")
    with pytest.raises(SettingsError, match=r"\.env is not a regular file"):
        load_settings()


# --- the environment


def _warnings(monkeypatch: pytest.MonkeyPatch, variable: str) -> list[str]:
    monkeypatch.setenv("TOKEN_ENCRYPTION_KEY", MASTER_KEY)
    monkeypatch.setenv(variable, SECRET)
    found = [line for line in load_settings().warnings() if "environment variable" in line]
    assert SECRET not in "".join(found)
    return found


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("USE_KSM", "USE_KMS"),
        ("USEKMS", "USE_KMS"),
        ("USE_KMSS", "USE_KMS"),
        ("USE_KMZ", "USE_KMS"),
        ("use_ksm", "USE_KMS"),
        ("SERVICE_KEY_FILE", "SERVICE_KEYS_FILE"),
        ("TOKEN_ENCRYPTION_KEY_FIEL", "TOKEN_ENCRYPTION_KEY_FILE"),
        ("ALLOW_LEGACY_FORMAT", "ALLOW_LEGACY_FORMATS"),
        ("KMS_FALLBACK_T0_LOCAL", "KMS_FALLBACK_TO_LOCAL"),
    ],
)
def test_a_variable_one_typo_away_from_a_setting_warns(
    monkeypatch: pytest.MonkeyPatch, variable: str, meant: str
) -> None:
    assert _warnings(monkeypatch, variable) == [
        f"the environment variable {variable} is not a setting; did you mean {meant}?"
    ]


@pytest.mark.parametrize(
    "variable",
    [
        "HOSTS",
        "POST",
        "HOSTNAME",
        "REDIS_PORT",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "AWS_DEFAULT_REGION",
        "AWS_PROFILE",
        "AWS_ACCESS_KEY",
        "AWS_CA_BUNDLE",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_FMS",
        "AWS_ENDPOINT_URL_S3",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "DATABASE_KEY",
        "KUBERNETES_SERVICE_PORT",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "PROMETHEUS_MULTIPROC_DIR",
        "SUPABASE_ANON_KEY",
        "TOKEN_VAULT_PORT",
    ],
)
def test_a_variable_of_another_program_does_not_warn(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    assert _warnings(monkeypatch, variable) == []
