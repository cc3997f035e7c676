"""Conditional requests (RFC 9110 §13): the ETag, and preconditions from `If-Match` and `If-None-Match`.

`app.api.openapi` documents the headers.
"""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Depends, Request

from app.errors import InvalidRequest
from app.tokens.models import Precondition

ENTITY_TAG_PATTERN = r'(W/)?"[!#-~]*"'
_ENTITY_TAGS = re.compile(rf"\s*{ENTITY_TAG_PATTERN}\s*(?:,\s*{ENTITY_TAG_PATTERN}\s*)*")
_VERSION_TAG = re.compile(r'(?<!/)"([1-9][0-9]{0,18})"')


def entity_tag(version: int) -> str:
    """Return the ETag of a token: its version in quotes."""
    return f'"{version}"'


async def precondition_of_change(request: Request) -> Precondition:
    """Return the precondition of a write to an existing token."""
    if "if-none-match" in request.headers:
        raise InvalidRequest.of_field("if-none-match", "If-None-Match is supported by PUT only")
    return _if_match(request)


async def precondition_of_store(request: Request) -> Precondition:
    """Return the precondition of a write that may create the token."""
    if "if-none-match" not in request.headers:
        return _if_match(request)
    if request.headers.getlist("if-none-match") != ["*"] or "if-match" in request.headers:
        raise InvalidRequest.of_field("if-none-match", "If-None-Match must be * and excludes If-Match")
    return Precondition(must_not_exist=True)


def _if_match(request: Request) -> Precondition:
    if "if-match" not in request.headers:
        return Precondition()
    value = ", ".join(request.headers.getlist("if-match"))  # a repeated header is one list, RFC 9110 §5.2
    if value.strip() == "*":
        return Precondition(must_exist=True)
    if not _ENTITY_TAGS.fullmatch(value):
        raise InvalidRequest.of_field("if-match", 'If-Match must be * or entity tags like "3"')
    # weak tags and tags that are not versions never match strongly: a conflict, not an error
    return Precondition(versions=frozenset(int(tag) for tag in _VERSION_TAG.findall(value)))


ChangeCondition = Annotated[Precondition, Depends(precondition_of_change)]
StoreCondition = Annotated[Precondition, Depends(precondition_of_store)]
