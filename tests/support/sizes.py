"""Sizes of tests that repeat: small in `make test`, exhaustive in `make soak`."""

from __future__ import annotations

import os
from typing import Final

SOAK: Final = os.environ.get("SOAK") == "1"


def size(quick: int, soak: int) -> int:
    """Return `soak` in `make soak`, else `quick`, which must still find a planted bug."""
    return soak if SOAK else quick
