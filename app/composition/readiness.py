"""The checks of `/readyz`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from app.audit.trail import SignedAuditTrail
from app.callers.service_key_directory import ServiceKeyDirectory
from app.composition.callers import UserJwts
from app.composition.encryption import Encryption
from app.composition.providers import Providers
from app.config.settings import Settings
from app.errors import KeyDenied, KeyUnavailable, ProviderMisconfigured, ProviderUnavailable
from app.observability.readiness import (
    TIMEOUT,
    Check,
    CheckState,
    Readiness,
    encryption_check,
    kms_check,
    service_keys_check,
)
from app.tokens.events import NoAuditTrail
from app.tokens.repository import TokenRepository


def build_readiness(
    settings: Settings,
    encryption: Encryption,
    service_keys: ServiceKeyDirectory,
    repository: TokenRepository,
    audit: SignedAuditTrail | NoAuditTrail,
    *,
    user_jwts: UserJwts | None = None,
    providers: Providers | None = None,
    on_states: Callable[[Mapping[str, CheckState]], None] | None,
) -> Readiness:
    """Choose the checks of this configuration, and the failures that the replica tolerates."""
    checks: dict[str, Check] = {
        "store": repository.check,
        "encryption": encryption_check(encryption.service, keys_are_remote=settings.use_kms),
        "service_keys": service_keys_check(service_keys),
    }
    if isinstance(audit, SignedAuditTrail):
        checks["audit"] = audit.check
    tolerated: dict[str, frozenset[str]] = {}
    tolerated_later: dict[str, frozenset[str]] = {}
    if user_jwts is not None and user_jwts.key_set is not None:
        checks["user_jwt_keys"] = user_jwts.key_set.check
        tolerated["user_jwt_keys"] = frozenset({KeyUnavailable.code})  # other calls need no user's JWT
    if providers is not None:
        from app.refresh.provider_outages import providers_check  # noqa: PLC0415  imports PyJWT

        checks["providers"] = providers_check(providers.registry, providers.client.outages)
        # it concerns every replica, and each still answers the tokens that are valid
        tolerated["providers"] = frozenset({ProviderUnavailable.code, ProviderMisconfigured.code})
    if encryption.kms is not None:
        checks["kms"] = kms_check(encryption.kms)
        # an outage concerns every replica, and each serves the users whose data key it has; but a replica that never
        # reached KMS has none, and the fault may be its own, such as its network or its Region
        tolerated_later["kms"] = frozenset({KeyUnavailable.code, TIMEOUT})
        if not settings.use_kms:  # a denial may be this replica's own too, and only a KMS primary needs KMS to write
            tolerated["kms"] = frozenset({KeyDenied.code})
    return Readiness(checks=checks, tolerated=tolerated, tolerated_later=tolerated_later, on_states=on_states)
