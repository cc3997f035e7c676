"""boto3 clients for AWS: KMS and STS for the service, and KMS for an administrator."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import Any, Final

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from pydantic import SecretStr

from app.security.kms.client import CONCURRENT_REQUESTS
from app.security.kms.connection import ConnectionSettingsError, KmsConnection
from app.security.kms.errors import AWS_ERRORS, concerns_credentials, error_name, vault_error_of

CONNECT_SECONDS: Final = 1
READ_SECONDS: Final = 2
ADMIN_CONNECT_SECONDS: Final = 5
ADMIN_READ_SECONDS: Final = 20
_USER_AGENT: Final = f"pulseplan-token-vault/{version('pulseplan-token-vault')}"
_LOGGERS_OF_RESPONSES: Final = ("botocore.parsers", "botocore.endpoint")


def open_kms_client(connection: KmsConnection) -> Any:  # noqa: ANN401  boto3's clients have no static type
    """Return a KMS client for the service, without retries: `KmsClient` decides which errors deserve one.

    Raises `ConnectionSettingsError` if the Region is missing or a setting is wrong, and `KeyDenied` if boto3 finds no
    credentials where it expects them: they may come later.
    """
    for name in _LOGGERS_OF_RESPONSES:  # at DEBUG they log plaintext data keys
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        return _session(connection).client(
            "kms",
            endpoint_url=connection.endpoint_url,
            # the name shows in CloudTrail, and saves the tenth of each request that boto3 takes to make one up
            config=Config(max_pool_connections=CONCURRENT_REQUESTS, user_agent=_USER_AGENT),
        )
    except AWS_ERRORS as error:
        if concerns_credentials(error):
            raise vault_error_of(error) from None
        raise ConnectionSettingsError(f"the AWS settings do not make a KMS client: {error_name(error)}") from None


def open_sts_client(connection: KmsConnection) -> Any:  # noqa: ANN401  boto3's clients have no static type
    """Return a client for GetCallerIdentity, which goes to a stand-in for KMS if there is one."""
    endpoint_url = connection.endpoint_url if connection.is_stand_in else None
    return _session(connection).client("sts", endpoint_url=endpoint_url)


def open_kms_admin_client(connection: KmsConnection) -> Any:  # noqa: ANN401  boto3's clients have no static type
    """Return a KMS client for an administrator who sets KMS up; raises `ConnectionSettingsError`.

    It takes Region and endpoint from `connection` and credentials from boto3's own chain only, because the service's
    should not suffice. Retries are off: a repeated CreateKey makes a second key.
    """
    try:
        region = connection.region or boto3.Session().region_name or connection.region_of_key
        if region is None:
            raise ConnectionSettingsError("no Region: give --region, or set AWS_REGION")
        return boto3.Session(region_name=region).client(
            "kms",
            endpoint_url=connection.endpoint_url,
            config=_without_retries(ADMIN_CONNECT_SECONDS, ADMIN_READ_SECONDS),
        )
    except (BotoCoreError, ValueError) as error:
        raise ConnectionSettingsError(
            f"no KMS client: {type(error).__name__}; check --region or AWS_REGION, and AWS_ENDPOINT_URL_KMS"
        ) from None


def _session(connection: KmsConnection) -> boto3.Session:
    credentials: dict[str, str | None] = {}
    if connection.access_key_id is not None:  # a session token alone would end boto3's search for credentials
        credentials = {
            "aws_access_key_id": _text(connection.access_key_id),
            "aws_secret_access_key": _text(connection.secret_access_key),
            "aws_session_token": _text(connection.session_token),
        }
    region = connection.region or boto3.Session().region_name or connection.region_of_key
    if region is None:
        raise ConnectionSettingsError("AWS_REGION is needed: neither it, nor a profile, nor KMS_KEY_ID names a Region")
    botocore_session = botocore.session.Session()
    # for every client of the session, so also for the one that botocore makes to get a role from STS
    botocore_session.set_default_client_config(_without_retries(CONNECT_SECONDS, READ_SECONDS))
    return boto3.Session(region_name=region, botocore_session=botocore_session, **credentials)


def _without_retries(connect_seconds: int, read_seconds: int) -> Config:
    return Config(
        connect_timeout=connect_seconds,
        read_timeout=read_seconds,
        retries={"total_max_attempts": 1, "mode": "standard"},
    )


def _text(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
