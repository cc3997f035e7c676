# ruff: noqa: INP001  a script outside of any package
"""Make deploy/compose/secrets.env: new secrets for docker-compose.yml. Needs only Python.

Keeps an existing file, because its TOKEN_ENCRYPTION_KEY and KMS_STAND_IN_SEED decrypt the stored tokens.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import sys
import time
from pathlib import Path

_PATH = Path(__file__).with_name("secrets.env")
_TEN_YEARS_SECONDS = 10 * 365 * 24 * 3600


def main() -> None:
    """Write the file, readable by its owner alone."""
    jwt_secret = secrets.token_hex(32)
    values = {
        "POSTGRES_PASSWORD": secrets.token_hex(16),
        "AUTHENTICATOR_PASSWORD": secrets.token_hex(16),
        "VAULT_LOGIN_PASSWORD": secrets.token_hex(16),
        "JWT_SECRET": jwt_secret,
        "SUPABASE_SERVICE_KEY": _service_key(jwt_secret),
        "TOKEN_ENCRYPTION_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
        "KMS_STAND_IN_SEED": base64.b64encode(secrets.token_bytes(32)).decode(),
        "AUDIT_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
        "GRAFANA_ADMIN_PASSWORD": secrets.token_hex(16),
    }
    try:
        descriptor = os.open(_PATH, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        sys.exit(f"{_PATH} exists already and is kept.")
    with os.fdopen(descriptor, "w") as file:
        file.writelines(f"{name}={value}\n" for name, value in values.items())
    sys.stdout.write(f"Created {_PATH}. Keep a copy: without its keys no stored token can be decrypted.\n")


def _service_key(jwt_secret: str) -> str:
    """Return the vault's key for PostgREST: a JWT with HS256 and the role that PostgREST switches to."""
    now = int(time.time())
    claims = {"iss": "supabase", "role": "token_vault", "iat": now, "exp": now + _TEN_YEARS_SECONDS}
    signed = f"{_encode({'alg': 'HS256', 'typ': 'JWT'})}.{_encode(claims)}"
    signature = hmac.digest(jwt_secret.encode(), signed.encode(), hashlib.sha256)
    return f"{signed}.{_base64url(signature)}"


def _encode(part: dict[str, object]) -> str:
    return _base64url(json.dumps(part, separators=(",", ":")).encode())


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


if __name__ == "__main__":
    main()
