"""Answers built from our own models, so nothing is validated twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

if TYPE_CHECKING:
    from pydantic import BaseModel


def json_answer(body: BaseModel, *, status: int = 200, version: int | None = None) -> Response:
    """Return the model as JSON, without the fields that were never set, and its version as the ETag."""
    headers = {} if version is None else {"ETag": f'"{version}"'}
    content = body.model_dump_json(exclude_unset=True)
    return Response(content, status, headers, media_type="application/json")
