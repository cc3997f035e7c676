"""The baseline of a reveal: the vault's application with authentication, and a route that does nothing.

Its rate is the cost of HTTP, the framework and the service key; the difference to a reveal is the vault's work.
"""

from __future__ import annotations

import json
import sys

import uvicorn
from fastapi import FastAPI
from starlette.responses import Response

from app.api.authentication import Revealer
from app.api.schemas.fields import EXAMPLE_USER_ID
from app.cli.serve import GRACEFUL_SHUTDOWN_SECONDS, KEEP_ALIVE_SECONDS
from app.main import create_app as create_vault_app

PATH = "/v1/constant"
# about the length of a revealed token
_ANSWER = json.dumps({"user_id": EXAMPLE_USER_ID, "filler": "." * 500})


def create_app() -> FastAPI:
    app = create_vault_app()

    @app.get(PATH)
    async def constant(caller: Revealer) -> Response:  # noqa: ARG001  authentication is part of the baseline
        return Response(_ANSWER, media_type="application/json")

    # routes are tried in order; behind the vault's routes the baseline would be slower
    app.router.routes.insert(0, app.router.routes.pop())
    return app


if __name__ == "__main__":
    # as in app/cli/serve.py
    uvicorn.run(
        "benchmarks.constant_app:create_app",
        factory=True,
        port=int(sys.argv[1]),
        workers=int(sys.argv[2]),
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
    )
