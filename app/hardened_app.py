"""The factory that uvicorn calls in each serving process."""

from __future__ import annotations

import gc
from threading import Thread
from typing import TYPE_CHECKING

from pydantic import BaseModel

from app.composition.encryption import build_local_strategy
from app.config.settings import load_settings
from app.server.drain import Drain
from app.server.hardening import lock_memory_and_log, protect_process

if TYPE_CHECKING:
    from fastapi import FastAPI


def create_hardened_app() -> FastAPI:
    """Protect the process before it holds a key, then build the application from the environment.

    While the application is imported, a thread derives the root of the local keys, which takes 0.2 s and runs without
    the interpreter's lock. The first self-test waits for it.
    """
    protect_process()
    settings = load_settings()
    local = build_local_strategy(settings)
    if local is not None and not settings.use_kms:  # with KMS as the primary, old rows alone need it
        Thread(target=local.derive_root, name="derive-root", daemon=True).start()
    gc.disable()  # imports leave hardly any garbage, and each collection among them visits all that there is
    _import_fastapi()
    from app.main import create_app  # noqa: PLC0415  takes as long as the derivation

    app = create_app(settings, local=local, drain=Drain(seconds=settings.shutdown_drain_seconds))
    gc.freeze()  # these objects live as long as the process; collections that visited them delayed calls by 30 ms
    gc.enable()
    lock_memory_and_log()  # again, because only now is the log configured
    return app


def _import_fastapi() -> None:
    """Import FastAPI without building the validators of its 36 models of an OpenAPI document.

    They took a tenth of all imports. pydantic builds them when the document is asked for.
    """
    BaseModel.model_config["defer_build"] = True  # inherited by the models that are defined meanwhile
    try:
        import fastapi  # noqa: F401, PLC0415  see above
    finally:
        del BaseModel.model_config["defer_build"]
