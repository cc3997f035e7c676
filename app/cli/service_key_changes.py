"""Record changes of service keys in the audit trail."""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import Callable, Sequence

from app.audit.targets import STANDARD_ERROR
from app.callers.service_keys import ServiceKey
from app.cli.errors import UsageError
from app.composition import open_audit
from app.config.service_keys import ServiceKeySettings
from app.errors import AuditUnavailable
from app.observability.logging import configure_command_logging
from app.tokens.events import SUCCESS, Operation, TokenEvent
from app.tokens.models import Caller


def record_changes(
    settings: ServiceKeySettings, operation: Operation, change: Callable[[], Sequence[ServiceKey]]
) -> Sequence[ServiceKey]:
    """Make a change and record an event for each key that it returns; without AUDIT_LOG only make it.

    Raises `UsageError` before the change if the trail cannot be written, or after it if an event was not.
    """
    if settings.audit_log is None:
        return change()
    configure_command_logging()
    return asyncio.run(_record_changes(settings, operation, change))


async def _record_changes(
    settings: ServiceKeySettings, operation: Operation, change: Callable[[], Sequence[ServiceKey]]
) -> Sequence[ServiceKey]:
    audit = await open_audit(settings, standard_stream=STANDARD_ERROR)  # standard output is for the key
    try:
        try:
            audit.require_open()
        except AuditUnavailable:
            raise UsageError("AUDIT_LOG cannot be written; nothing was changed") from None
        keys = change()
        try:
            for key in keys:
                await audit.append(_event(operation, key))
        except AuditUnavailable:
            changed = ", ".join(key.fingerprint for key in keys)
            raise UsageError(f"{changed}: the change was made, but AUDIT_LOG could not be written") from None
    finally:
        await audit.close()
    return keys


def _event(operation: Operation, key: ServiceKey) -> TokenEvent:
    providers = ", ".join(sorted(key.providers)) if key.providers else "all"
    expires = key.expires_at.isoformat(timespec="seconds") if key.expires_at else "never"
    users = "all" if key.on_behalf_of is None else "on behalf of"
    scopes = ", ".join(sorted(key.scopes))
    purpose = f"by {_user()}; scopes {scopes}; users {users}; providers {providers}; expires {expires}"
    return TokenEvent(
        operation=operation,
        user_id=None,
        token_id=None,
        scheme=None,
        encryption_method=None,
        outcome=SUCCESS,
        detail=None,
        caller=Caller(key.service, key_fingerprint=key.fingerprint, purpose=purpose),
    )


def _user() -> str:
    """Return the name or number of the user that runs the command."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"
