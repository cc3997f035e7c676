"""Liveness and readiness, for orchestrators. No key is required; the answers name no host, key or error."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.schemas import Health, Ready, json_response

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Check that the process answers", response_model=Health)
async def healthz() -> Response:
    """Answer 200 while the process runs. No dependency is checked, so a failing store does not cause a restart."""
    return json_response(Health(status="ok"))


@router.get(
    "/readyz", summary="Check that the replica can serve", response_model=Ready, responses={503: {"model": Ready}}
)
async def readyz(request: Request) -> Response:
    """Check the store, the encryption, the service keys, the audit trail and KMS; 503 if one of them is `down`.

    `degraded` is a failure that the replica can serve with.
    """
    checks = await request.state.readiness.states()
    ready = "down" not in checks.values()
    body = Ready(status="ready" if ready else "not_ready", checks=checks)
    return json_response(body, status=200 if ready else 503)
