"""Background tasks of the application that end with an error."""

from __future__ import annotations

from pathlib import Path

import jwt
import pytest

from tests.support.observability.application import running_application
from tests.support.security.user_jwts import new_signing_key
from tests.support.stack.jwks import jwks_endpoint
from tests.support.waiting import eventually_async


async def test_the_end_of_a_background_task_is_logged_at_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("CANARY")

    monkeypatch.setattr(jwt, "PyJWK", failing)  # an error that the download of the key set does not foresee
    logged: list[str] = []

    def is_logged() -> bool:
        logged.append(capfd.readouterr().out)
        return "unhandled_in_loop" in "".join(logged)

    with jwks_endpoint(new_signing_key()) as endpoint:
        async with running_application(tmp_path, tracing=None, **endpoint.environment()):
            await eventually_async(is_logged)
    assert "RuntimeError" in "".join(logged)
    assert "CANARY" not in "".join(logged)
