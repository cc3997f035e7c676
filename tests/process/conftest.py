"""Fixtures for tests of whole processes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.process.server import Serve, serving

if TYPE_CHECKING:
    from tests.stack.reaper import Reaper


@pytest.fixture(scope="session")
def serve(stack_reaper: Reaper) -> Serve:
    """Start servers that end with their `with` block, or with this run however it ends."""
    return partial(serving, reaper=stack_reaper)
