"""Metrics for Prometheus. No key is required; the labels name no user, host or key."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.observability.metrics.exposition import MEDIA_TYPE

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    summary="Get metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Return the metrics from memory, so the store may be down."""
    return Response(await request.state.exposition.text(), media_type=MEDIA_TYPE)
