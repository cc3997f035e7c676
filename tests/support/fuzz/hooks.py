"""Combinations that are invalid although the OpenAPI document cannot express it."""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis import Case, HookContext


@schemathesis.hook
def filter_case(_context: HookContext, case: Case[Any]) -> bool:
    """Skip requests with both conditions: OpenAPI cannot say that two headers exclude each other."""
    return not {"If-Match", "If-None-Match"} <= set(case.headers or {})
