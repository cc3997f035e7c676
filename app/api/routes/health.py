"""What orchestrators probe. No key is needed, and the answers name no host, key or error text."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.schemas import Health, Ready, json_answer

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="The process answers", response_model=Health)
async def healthz() -> Response:
    """Touch nothing else: a failing store must not restart the process."""
    return json_answer(Health(status="ok"))


@router.get("/readyz", summary="The replica can serve", response_model=Ready, responses={503: {"model": Ready}})
async def readyz(request: Request) -> Response:
    """Check the store, the encryption, the service keys and KMS; 503 where one is down.

    `degraded` is what fails without keeping the replica from its work.
    """
    checks = await request.state.readiness.states()
    ready = "down" not in checks.values()
    body = Ready(status="ready" if ready else "not_ready", checks=checks)
    return json_answer(body, status=200 if ready else 503)
