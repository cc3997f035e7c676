"""What schemathesis must not take for valid, although the document has no words for it."""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis import Case, HookContext


@schemathesis.hook
def filter_case(_context: HookContext, case: Case[Any]) -> bool:
    """Leave out what has both conditions: OpenAPI cannot say that two headers exclude each other."""
    return not {"If-Match", "If-None-Match"} <= set(case.headers or {})
