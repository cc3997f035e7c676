"""Clients for AWS KMS: the service's, bounded in time, and an administrator's for setting things up."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from pydantic_settings import BaseSettings

from app.config.settings import Settings
from app.config.source import ENV_FILE, FROM_ENVIRONMENT, SettingsError
from app.security.kms.client import CONCURRENT_REQUESTS
from app.security.kms.errors import AWS_ERRORS, concerns_credentials, error_name, meaning_of

CONNECT_SECONDS: Final = 1
READ_SECONDS: Final = 2
ADMIN_CONNECT_SECONDS: Final = 5
ADMIN_READ_SECONDS: Final = 20
_ARN_PARTS: Final = 6
_USER_AGENT: Final = f"pulseplan-token-vault/{version('pulseplan-token-vault')}"
_THEY_LOG_WHAT_THEY_RECEIVE: Final = ("botocore.parsers", "botocore.endpoint")


def open_kms_client(settings: Settings) -> Any:  # noqa: ANN401  boto3's clients have no static type
    """Return boto3's KMS client for the service.

    Raises `SettingsError` where the Region is missing or a setting is wrong, and `KeyDenied` where credentials should
    be there and are not: boto3 looks for some of them here already, and they may come later.

    Keys from the settings are used where they are set; otherwise boto3's own chain finds a profile, a web identity or
    an instance role. Retries are off: `app.security.kms.client` knows which errors deserve one.
    """
    for name in _THEY_LOG_WHAT_THEY_RECEIVE:  # in a script that logs everything, data keys in the clear
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        return _session(settings).client(
            "kms",
            endpoint_url=settings.aws_endpoint_url_kms,
            # a name of its own tells the vault in CloudTrail, and spares boto3 a tenth of each request for making one
            config=Config(max_pool_connections=CONCURRENT_REQUESTS, user_agent=_USER_AGENT),
        )
    except AWS_ERRORS as error:
        if concerns_credentials(error):
            raise meaning_of(error) from None
        raise SettingsError(f"the AWS settings do not make a KMS client: {error_name(error)}") from None


def open_sts_client(settings: Settings) -> Any:  # noqa: ANN401  boto3 has no static types
    """Return a client that can tell whose credentials these are; beside a stand-in for KMS it asks that one."""
    return _session(settings).client(
        "sts",
        endpoint_url=settings.aws_endpoint_url_kms if is_stand_in(settings.aws_endpoint_url_kms) else None,
    )


def is_stand_in(endpoint_url: str | None) -> bool:
    """Whether this is none of AWS's own endpoints; a VPC has such too."""
    host = urlsplit(endpoint_url or "").hostname
    return host is not None and not host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws"))


def open_kms_admin_client(*, region: str | None) -> Any:  # noqa: ANN401  boto3 has no static types
    """Return a client for an administrator who sets up KMS; raises `SettingsError`.

    It asks the KMS that the service will ask: AWS_REGION and AWS_ENDPOINT_URL_KMS count from the environment and from
    `.env`. The credentials are those that boto3 finds, and never the service's in `.env`, which should not suffice.
    Retries are off, for CreateKey repeated is two keys.
    """
    try:
        place = _Place()
    except (OSError, UnicodeDecodeError):
        raise SettingsError(f"{ENV_FILE} cannot be read as UTF-8 text") from None
    try:
        region = region or place.aws_region or boto3.Session().region_name
        if region is None:
            raise SettingsError("no Region: give --region, or set AWS_REGION")
        return boto3.Session(region_name=region).client(
            "kms",
            endpoint_url=place.aws_endpoint_url_kms,
            config=Config(
                connect_timeout=ADMIN_CONNECT_SECONDS,
                read_timeout=ADMIN_READ_SECONDS,
                retries={"total_max_attempts": 1, "mode": "standard"},
            ),
        )
    except (BotoCoreError, ValueError) as error:
        raise SettingsError(
            f"no KMS client: {type(error).__name__}; check --region or AWS_REGION, and AWS_ENDPOINT_URL_KMS"
        ) from None


class _Place(BaseSettings):
    """Where KMS is. The other settings need not be there yet when it is set up."""

    model_config = FROM_ENVIRONMENT

    aws_region: str | None = None
    aws_endpoint_url_kms: str | None = None


def _session(settings: Settings) -> boto3.Session:
    chosen: dict[str, str | None] = {}
    if settings.aws_access_key_id is not None:  # a session token alone would cut boto3's chain short
        chosen = {
            "aws_access_key_id": _text(settings.aws_access_key_id),
            "aws_secret_access_key": _text(settings.aws_secret_access_key),
            "aws_session_token": _text(settings.aws_session_token),
        }
    region = settings.aws_region or boto3.Session().region_name or _region_of(settings.kms_key_id or "")
    if region is None:
        raise SettingsError("AWS_REGION is needed: neither it, nor a profile, nor KMS_KEY_ID names a Region")
    botocore_session = botocore.session.Session()
    # for every client of the session, so also for the one that botocore makes to ask STS for a role
    botocore_session.set_default_client_config(
        Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"total_max_attempts": 1, "mode": "standard"},
        )
    )
    return boto3.Session(region_name=region, botocore_session=botocore_session, **chosen)


def _region_of(key_id: str) -> str | None:
    """Return the Region that an ARN names: `arn:aws:kms:REGION:ACCOUNT:key/ID`."""
    parts = key_id.split(":")
    return parts[3] if len(parts) == _ARN_PARTS and parts[3] else None


def _text(secret: Any) -> str | None:  # noqa: ANN401  a `SecretStr` or nothing
    return None if secret is None else secret.get_secret_value()
