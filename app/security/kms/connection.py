"""Settings of the connection to AWS KMS. Importing this module does not import boto3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from pydantic import SecretStr

_ARN_PARTS: Final = 6


class ConnectionSettingsError(Exception):
    """The settings do not make a client. The text names them, never their values."""


@dataclass(frozen=True, slots=True)
class KmsConnection:
    """The KMS endpoint, region and credentials. boto3's default chain finds each value that is `None`.

    A session token counts only beside an access key.
    """

    key_id: str | None = None
    region: str | None = None
    endpoint_url: str | None = None
    access_key_id: SecretStr | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None

    @property
    def region_of_key(self) -> str | None:
        """The Region in the key's ARN, `arn:aws:kms:REGION:ACCOUNT:key/ID`; `None` for an id or an alias."""
        parts = (self.key_id or "").split(":")
        return parts[3] if len(parts) == _ARN_PARTS and parts[3] else None

    @property
    def is_stand_in(self) -> bool:
        """Whether the endpoint is not one of AWS; a VPC endpoint is one of AWS."""
        host = urlsplit(self.endpoint_url or "").hostname
        return host is not None and not host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws"))
