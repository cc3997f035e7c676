"""`oidc-provider`, a certified OAuth server with rotation and reuse detection, as a process under Node.

    def test_...(oidc: OidcServer) -> None:      # the session's server, with counts at zero
        token = oidc.seed()                      # the refresh token of a new grant
        entry = oidc.entry()                     # of OAUTH_PROVIDERS
        oidc.reset(access_token_seconds=5)       # counts at zero, and access tokens that live five seconds
        oidc.counts()                            # refreshes that succeeded, reuses, rejected ones, revocations

A reused refresh token revokes its whole grant, as the standard advises (RFC 9700, section 4.14).
"""

from __future__ import annotations

import json
import shutil
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.support.paths import STACK
from tests.support.stack.loopback import LOOPBACK, free_port
from tests.support.stack.reaper import Reaper
from tests.support.stack.server_process import ServerProcess

CLIENT_ID: Final = "the-vault"
CLIENT_SECRET: Final = "a-secret-of-the-tests-91c7"
SIGNING_CLIENT_ID: Final = "the-signing-vault"
NODE_MODULES: Final = STACK / "npm" / "node_modules"
_SCRIPT: Final = Path(__file__).with_name("oidc_server.mjs")


@dataclass(frozen=True, slots=True)
class Counts:
    """What the server has counted since the last reset."""

    refreshes: int
    reuses: int
    rejected: int
    revoked: int


class OidcServer(ServerProcess):
    """One server with two clients: one with a secret, one that signs assertions with `signing_key`."""

    def __init__(self, *, log: Path, reaper: Reaper) -> None:
        if not (NODE_MODULES / "oidc-provider").exists():
            raise RuntimeError("oidc-provider is not installed: run `make test`")
        self.port = free_port()
        self._admin_port = free_port()
        key = ec.generate_private_key(ec.SECP256R1())
        self.signing_key = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())) | {"use": "sig", "alg": "ES256"}
        node = shutil.which("node") or str(STACK / "node" / "bin" / "node")
        ports = str(self.port), str(self._admin_port)
        command = [node, str(_SCRIPT), str(NODE_MODULES), *ports, json.dumps(_clients(jwk))]
        super().__init__("oidc-provider", command, settings={"NODE_ENV": "test"}, log=log, reaper=reaper)

    @property
    def origin(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def entry(self, **changes: Any) -> dict[str, Any]:
        """Return the entry of the provider registry; a change of `None` leaves a member out."""
        entry = {
            "token_url": f"{self.origin}/token",
            "revoke_url": f"{self.origin}/token/revocation",
            "discovery_url": f"{self.origin}/.well-known/openid-configuration",
            "client_auth": "basic",
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "rotation": "single_use",
            "allow_insecure": True,
        } | changes
        return {name: value for name, value in entry.items() if value is not None}

    def seed(self, *, client_id: str = CLIENT_ID) -> str:
        """Return the refresh token of a new grant."""
        return str(self._admin("/seed", {"clientId": client_id})["refresh_token"])

    def counts(self) -> Counts:
        return Counts(**self._admin("/counts"))

    def reset(self, *, access_token_seconds: int = 3600) -> None:
        """Set the counts to zero, and the lifetime of the access tokens that are issued from now on."""
        self._admin("/reset", {"accessTokenSeconds": access_token_seconds})

    def is_ready(self) -> bool:
        try:
            self._admin("/counts")
            with urllib.request.urlopen(
                f"http://{LOOPBACK}:{self.port}/.well-known/openid-configuration", timeout=5.0
            ) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _admin(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{LOOPBACK}:{self._admin_port}{path}", data=data)
        with urllib.request.urlopen(request, timeout=30.0) as answer:  # noqa: S310  http, as the line above says
            result: dict[str, Any] = json.load(answer)
        return result


def _clients(jwk: dict[str, Any]) -> list[dict[str, Any]]:
    common = {"grant_types": ["authorization_code", "refresh_token"], "redirect_uris": ["https://app.test/back"]}
    signing = {
        "token_endpoint_auth_method": "private_key_jwt",
        "token_endpoint_auth_signing_alg": "ES256",
        "jwks": {"keys": [jwk]},
    }
    return [
        common | {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET},
        common | {"client_id": SIGNING_CLIENT_ID, **signing},
    ]
