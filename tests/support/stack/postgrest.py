"""PostgREST, the HTTP API in front of Supabase's tables, as a process."""

import urllib.request
from pathlib import Path

from tests.support.stack.install import POSTGREST
from tests.support.stack.loopback import LOOPBACK, free_port
from tests.support.stack.reaper import Reaper
from tests.support.stack.server_process import ServerProcess


class Postgrest(ServerProcess):
    """One PostgREST over one database, which can be stopped and started again on the same port."""

    def __init__(self, *, database_uri: str, jwt_secret: str, pool_size: int, log: Path, reaper: Reaper) -> None:
        """`database_uri` is that of the role `authenticator`."""
        if not POSTGREST.exists():
            raise RuntimeError("PostgREST is not installed: run `make test`")
        self.port = free_port()
        self._admin_port = free_port()
        settings = {
            "PGRST_DB_URI": database_uri,
            "PGRST_DB_SCHEMAS": "public",
            "PGRST_DB_ANON_ROLE": "anon",
            "PGRST_DB_MAX_ROWS": "1000",
            "PGRST_DB_POOL": str(pool_size),
            "PGRST_JWT_SECRET": jwt_secret,
            "PGRST_SERVER_HOST": LOOPBACK,
            "PGRST_SERVER_PORT": str(self.port),
            "PGRST_ADMIN_SERVER_PORT": str(self._admin_port),
            "PGRST_LOG_LEVEL": "error",
        }
        super().__init__("PostgREST", [str(POSTGREST)], settings=settings, log=log, reaper=reaper)

    def is_ready(self) -> bool:
        # the schema cache is loaded, not only the port open
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{self._admin_port}/ready", timeout=1.0) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
