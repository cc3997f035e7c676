"""The application as `token-vault serve` runs it, in each of its processes."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from app.main import create_app
from app.server.process import lock_memory
from app.server.protection import protect_process

if TYPE_CHECKING:
    from fastapi import FastAPI


def create_hardened_app() -> FastAPI:
    """Protect the process before it holds a key, then build the application from the environment."""
    protect_process()
    app = create_app()
    gc.collect()
    gc.freeze()  # what is built lives as long as the process, and looking at it each time held calls up for 30 ms
    lock_memory()  # again, for it says so in the log, which is configured only now
    return app
