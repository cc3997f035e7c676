"""Record changes of service keys in the audit trail."""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress

import click

from app.audit.targets import STANDARD_ERROR
from app.callers.service_key_file import Announce
from app.callers.service_keys import ServiceKey
from app.cli.errors import UsageError
from app.composition.audit import open_audit
from app.config.service_keys import ServiceKeySettings
from app.errors import AuditUnavailable, InternalError
from app.observability.logging import configure_command_logging
from app.tokens.events import INTENT, SUCCESS, Operation, TokenEvent, new_intent
from app.tokens.models import Caller

Change = Callable[[Announce], Sequence[ServiceKey]]


def record_changes(settings: ServiceKeySettings, operation: Operation, change: Change) -> Sequence[ServiceKey]:
    """Make a change and record it for each key that it returns; without AUDIT_LOG only make it.

    `change` gives its keys to its argument before it changes anything. That leaves an intent for each, and an event
    with the outcome follows, so a command that is killed in between leaves a trace.

    If the trail cannot be written, the creation of a key raises `UsageError` before the change. A revocation is made
    all the same, because a full disk must not keep a stolen key in use; it raises `UnrecordedRevocationError`
    afterwards. Raises `UsageError` after a creation that has no event.
    """
    if settings.audit_log is None:
        return change(lambda _: None)
    configure_command_logging()
    return asyncio.run(_record_changes(settings, operation, change))


class UnrecordedRevocationError(click.ClickException):
    """`keys` are revoked, and the trail has no event of it."""

    exit_code = 3

    def __init__(self, keys: Sequence[ServiceKey]) -> None:
        super().__init__(
            "AUDIT_LOG cannot be written: this revocation has no record there; note it yourself, and repair the trail"
        )
        self.keys = keys


async def _record_changes(settings: ServiceKeySettings, operation: Operation, change: Change) -> Sequence[ServiceKey]:
    audit = await open_audit(settings, standard_stream=STANDARD_ERROR)  # standard output is for the key
    loop = asyncio.get_running_loop()
    is_urgent = operation is Operation.REVOKE_KEY
    intents: list[TokenEvent] = []

    async def announce(keys: Sequence[ServiceKey]) -> None:
        intents.extend(_intent(operation, key) for key in keys)
        with suppress(AuditUnavailable) if is_urgent else nullcontext():
            for intent in intents:
                await audit.append(intent)

    async def conclude(outcome: str) -> None:
        for intent in intents:
            await audit.append(intent._replace(outcome=outcome))

    try:
        try:
            if not is_urgent:
                audit.require_open()
            # in a thread, because the change holds the file's lock while it waits for its intents
            keys = await asyncio.to_thread(
                change, lambda keys: asyncio.run_coroutine_threadsafe(announce(keys), loop).result()
            )
        except AuditUnavailable:
            raise UsageError("AUDIT_LOG cannot be written; nothing was changed") from None
        except BaseException:
            with suppress(AuditUnavailable):
                await conclude(InternalError.code)
            raise
        try:
            await conclude(SUCCESS)
        except AuditUnavailable:
            if is_urgent:
                raise UnrecordedRevocationError(keys) from None
            changed = ", ".join(key.fingerprint for key in keys)
            raise UsageError(f"{changed}: the change was made, but AUDIT_LOG could not be written") from None
    finally:
        await audit.close()
    return keys


def _intent(operation: Operation, key: ServiceKey) -> TokenEvent:
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
        outcome=INTENT,
        detail=None,
        caller=Caller(key.service, key_fingerprint=key.fingerprint, purpose=purpose),
        intent=new_intent(),
    )


def _user() -> str:
    """Return the name or number of the user that runs the command."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"
