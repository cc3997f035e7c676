"""`If-Match` and `If-None-Match`, RFC 9110 §13, as preconditions; `app.api.openapi` documents the headers."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Depends, Request

from app.errors import InvalidRequest
from app.tokens.models import Precondition

_ENTITY_TAG = r'(?:W/)?"[\x21\x23-\x7e]*"'
_LIST = re.compile(rf"\s*{_ENTITY_TAG}\s*(?:,\s*{_ENTITY_TAG}\s*)*")
_VERSION = re.compile(r'(?<!/)"([1-9][0-9]{0,18})"')


async def precondition_of_change(request: Request) -> Precondition:
    """Read the condition of a write onto an existing token."""
    if "if-none-match" in request.headers:
        raise InvalidRequest.of_field("if-none-match", "If-None-Match is for PUT alone")
    return _if_match(request)


def _if_match(request: Request) -> Precondition:
    if_match = ", ".join(request.headers.getlist("if-match"))  # a repeated header is one list, RFC 9110 §5.2
    if "if-match" not in request.headers:
        return Precondition()
    if if_match.strip() == "*":
        return Precondition(must_exist=True)
    if not _LIST.fullmatch(if_match):
        raise InvalidRequest.of_field("if-match", 'If-Match must be * or entity tags like "3"')
    # weak tags and tags that are no version of ours never match strongly, which is a conflict and not an error
    return Precondition(versions=frozenset(int(tag) for tag in _VERSION.findall(if_match)))


async def precondition_of_store(request: Request) -> Precondition:
    """Read the condition of a write that may also create."""
    if "if-none-match" not in request.headers:
        return _if_match(request)
    if request.headers.getlist("if-none-match") != ["*"] or "if-match" in request.headers:
        raise InvalidRequest.of_field("if-none-match", "If-None-Match must be * and cannot stand beside If-Match")
    return Precondition(must_not_exist=True)


ChangeCondition = Annotated[Precondition, Depends(precondition_of_change)]
StoreCondition = Annotated[Precondition, Depends(precondition_of_store)]
