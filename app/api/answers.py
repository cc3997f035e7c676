"""Answers: dictionaries with the fields of the schemas, serialised by pydantic-core.

The schemas are not instantiated: constructing a model costs more than serialising the answer. The values are the
vault's own and need no validation. docs/decisions/answers-from-dictionaries.md has the figures.
"""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from app.api.conditional_requests import entity_tag
from app.api.problems import problem_of, problem_response, receipt_answer
from app.errors import VaultError
from app.tokens.deletion import Erasure
from app.tokens.models import RevealedToken, StoredToken, TokenRow, UnreadableRow


def token_answer(token: StoredToken, *, refreshable: bool) -> dict[str, Any]:
    """Return the fields of `Token`; `refreshable` is whether the vault can refresh it."""
    return {
        "id": token.id,
        "user_id": token.token_id.user_id,
        "provider": token.token_id.provider,
        "service_type": token.token_id.service_type,
        "status": token.status,
        "status_reason": token.status_reason,
        "expires_at": token.expires_at,
        "scopes": token.scopes,
        "email": token.email,
        "base_url": token.valid_base_url,
        "metadata": token.metadata,
        "has_refresh_token": token.refresh_ciphertext is not None,
        "refreshable": refreshable,
        "refresh_retry_at": token.refresh_state.retry_at,
        "encryption_method": token.encryption_method,
        "kms_key_id": token.kms_key_id,
        "version": token.version,
        "created_at": token.created_at,
        "updated_at": token.updated_at,
        "last_refreshed": token.last_refreshed,
    }


def revealed_answer(revealed: RevealedToken, *, include_refresh: bool) -> dict[str, Any]:
    """Return the fields of `Revealed`, with `refresh_token` only if it was asked for."""
    answer = token_answer(revealed.token, refreshable=revealed.refreshable)
    answer["min_ttl_met"] = revealed.min_ttl_met
    answer["access_token"] = revealed.access_token.get_secret_value()
    if include_refresh:
        answer["refresh_token"] = revealed.refresh_token.get_secret_value() if revealed.refresh_token else None
    return answer


def unreadable_answer(row: UnreadableRow, request_id: str) -> dict[str, Any]:
    """Return the fields of `UnreadableToken`."""
    return _token_problem(row, row.error(), request_id)


def erasure_response(erasure: Erasure, request_id: str, *, with_receipts: bool) -> Response:
    """Return the fields of `Erased`; if tokens were kept, as members of the problem that prevented their deletion."""
    answer: dict[str, Any] = {"deleted": erasure.deleted}
    if with_receipts:
        answer["receipts"] = [
            {"provider": row.token_id.provider, "service_type": row.token_id.service_type, **receipt_answer(receipt)}
            for row, receipt in erasure.receipts
        ]
    error = erasure.error
    if error is None:
        return json_response(answer)
    answer["detail"] = f"{len(erasure.kept)} of the user's tokens could not be deleted: {error.detail}"
    answer["kept"] = [_token_problem(one.row, one.error, request_id) for one in erasure.kept]
    return problem_response(error, request_id, more=answer)


def _token_problem(row: TokenRow, error: VaultError, request_id: str) -> dict[str, Any]:
    return {
        "user_id": row.token_id.user_id,
        "provider": row.token_id.provider,
        "service_type": row.token_id.service_type,
        "version": row.version,
        "problem": problem_of(error, request_id),
    }


def json_bytes(answer: object) -> bytes:
    """Return a dictionary or a model as JSON."""
    return to_json(answer, inf_nan_mode="null")


class JsonResponse(Response):
    """A response whose headers are written as they are sent; Starlette's converts and searches a mapping."""

    media_type = "application/json"

    def __init__(self, body: bytes, *, status: int = 200, version: int | None = None) -> None:
        self.status_code = status
        self.body = body
        self.background = None
        self.raw_headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        if version is not None:
            self.raw_headers.append((b"etag", entity_tag(version).encode()))


def json_response(answer: object, *, status: int = 200, version: int | None = None) -> Response:
    """Return the answer as JSON, and the token's version as ETag."""
    return JsonResponse(json_bytes(answer), status=status, version=version)
