"""Findings of `token-vault doctor` about calls on behalf of a user."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from app.callers.service_keys import ServiceKey
from app.cli.doctor_finding import DoctorFinding
from app.cli.output import counted_noun
from app.composition.callers import build_service_key_directory, build_user_jwts
from app.config.settings import Settings, SettingsError
from app.errors import KeyUnavailable


def on_behalf_of_findings(settings: Settings) -> Iterator[DoctorFinding]:
    """Yield a finding for keys that reveal every user, and one for the verification of users' JWTs."""
    try:
        keys = build_service_key_directory(settings).alive_keys()
    except SettingsError:  # reported with the service keys
        return
    unlimited = [_name(key) for key in keys if key.reveals_every_user()]
    limited = [_name(key) for key in keys if key.on_behalf_of is not None]
    if unlimited:
        subject, text = "service keys", f"{', '.join(unlimited)}: each reveals the tokens of every user"
        if settings.user_jwt_issuer is None or limited:
            yield DoctorFinding.ok(subject, text)
        else:
            advice = "for a service that acts for signed-in users, create a key with --on-behalf-of required"
            yield DoctorFinding.warning(subject, f"{text}; {advice}")
    yield from _user_jwt_findings(settings, limited)


def _user_jwt_findings(settings: Settings, limited: list[str]) -> Iterator[DoctorFinding]:
    subject = "users' JWTs"
    user_jwts = build_user_jwts(settings)
    if user_jwts is None:
        if limited:
            text = f"USER_JWT_ISSUER is not set, so every call with these service keys is 403: {', '.join(limited)}"
            yield DoctorFinding.failure(subject, text)
        return
    if user_jwts.key_set is None:
        yield DoctorFinding.ok(subject, "verified with USER_JWT_SECRET (HS256); its holders can sign for every user")
        return
    try:
        algorithms = asyncio.run(user_jwts.key_set.download_now())
    except KeyUnavailable as error:
        yield DoctorFinding.failure(subject, f"{error.detail}; calls on behalf of a user get 503")
        return
    yield DoctorFinding.ok(subject, f"the key set has {counted_noun(len(algorithms), 'key')}: {', '.join(algorithms)}")


def _name(key: ServiceKey) -> str:
    return f"{key.service} ({key.fingerprint})"
