"""Liveness and readiness for orchestrators, metrics for Prometheus.

No key is required. The answers and labels name no user, host, key or error.
"""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.answers import json_response
from app.api.direct_route import DirectRoute
from app.api.schemas.answers import Health, Ready
from app.observability.metrics.registry import MEDIA_TYPE

router = APIRouter(tags=["health"], route_class=DirectRoute)
metrics_router = APIRouter(tags=["health"], route_class=DirectRoute)


@router.get("/healthz", summary="Check that the process answers", response_model=Health)
async def healthz() -> Response:
    """Answer 200 while the process runs. No dependency is checked, so a failing store does not cause a restart."""
    return json_response(Health(status="ok"))


@router.get(
    "/readyz", summary="Check that the replica can serve", response_model=Ready, responses={503: {"model": Ready}}
)
async def readyz(request: Request) -> Response:
    """Check the store, the encryption, the service keys, the audit trail and KMS; 503 if one of them is `down`.

    `degraded` is a failure that the replica can serve with. A replica that is `stopping` serves for
    SHUTDOWN_DRAIN_SECONDS more, and is 503 so that load balancers send its callers elsewhere.
    """
    checks = await request.state.readiness.states()
    ready = "down" not in checks.values()
    status: Literal["ready", "not_ready", "stopping"] = "ready" if ready else "not_ready"
    if request.state.drain.started:
        status = "stopping"
    return json_response(Ready(status=status, checks=checks), status=200 if status == "ready" else 503)


@metrics_router.get(
    "/metrics",
    summary="Get metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Return the metrics from memory, so the store may be down."""
    return Response(await request.state.exposition.text(), media_type=MEDIA_TYPE)
