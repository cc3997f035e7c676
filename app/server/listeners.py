"""Listening sockets: that of the API and, if METRICS_PORT is set, one more on the same host with the same TLS.

With several workers each of them accepts on both, so metrics are answered while any worker lives.
"""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from typing import Any, Final

import structlog
import uvicorn

_log = structlog.get_logger()
# connections that one process accepts in one turn of its loop; several workers share them more evenly if it is few
_ACCEPTED_ALONE: Final = 64
_ACCEPTED_OF_SEVERAL: Final = 4


def require_free(host: str, port: int) -> None:
    """Raise `OSError` if the address cannot be bound, as uvicorn binds it."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def bind(config: uvicorn.Config, metrics_port: int | None) -> list[socket.socket]:
    """Bind the sockets and log their addresses; exits with uvicorn's code if a port is taken.

    That of the API is there several times, because uvloop accepts one connection for each socket in one turn of its
    loop.
    """
    accepted = _ACCEPTED_ALONE if config.workers == 1 else _ACCEPTED_OF_SEVERAL
    sockets = [bound := config.bind_socket(), *(bound.dup() for _ in range(accepted - 1))]
    if metrics_port is not None:
        second = uvicorn.Config(
            config.app, host=config.host, port=metrics_port, log_config=None, ssl_certfile=config.ssl_certfile
        )
        try:
            sockets.append(second.bind_socket())
        except SystemExit:  # uvicorn's line has the reason alone
            _log.critical("failed", reason="METRICS_PORT cannot be opened")
            raise
    return sockets


def run_one_process(app: str, *, metrics_port: int | None, **options: Any) -> None:  # noqa: ANN401  uvicorn's
    """Serve in this process, as `uvicorn.run` does."""
    config = uvicorn.Config(app, **options)
    server = uvicorn.Server(config)
    with suppress(KeyboardInterrupt):
        server.run(sockets=bind(config, metrics_port))
    if not server.started:
        sys.exit(1)
