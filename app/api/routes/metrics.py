"""What Prometheus scrapes. No key is needed, and nothing in it names a user, a host or a key."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.observability.metrics.exposition import MEDIA_TYPE

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Answer from memory; whatever state the store is in."""
    return Response(await request.state.exposition.text(), media_type=MEDIA_TYPE)
