"""The baseline of a reveal: the vault's own application, authentication included, and a route that does nothing.

What it serves over a second is what HTTP, the framework and the service key cost; the rest is the vault's work.
"""

from __future__ import annotations

import json
import sys

import uvicorn
from fastapi import FastAPI
from starlette.responses import Response

from app.api.authentication import Revealer
from app.api.schemas import EXAMPLE_USER_ID
from app.cli.serve import GRACEFUL_SHUTDOWN_SECONDS, KEEP_ALIVE_SECONDS
from app.main import create_app as create_vault_app

PATH = "/v1/constant"
# about as long as a revealed token
_ANSWER = json.dumps({"user_id": EXAMPLE_USER_ID, "filler": "." * 500})


def create_app() -> FastAPI:
    app = create_vault_app()

    @app.get(PATH)
    async def constant(caller: Revealer) -> Response:  # noqa: ARG001  being one is the point
        return Response(_ANSWER, media_type="application/json")

    # Routes are tried in order. Behind the vault's own, the baseline would be slower than it has to be.
    app.router.routes.insert(0, app.router.routes.pop())
    return app


if __name__ == "__main__":
    # as app/cli/serve.py has it
    uvicorn.run(
        "benchmarks.constant_app:create_app",
        factory=True,
        port=int(sys.argv[1]),
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
    )
