"""The start of the serving process."""

import subprocess
import sys

_UNUSED = "aiohttp asyncpg boto3 cryptography.x509 httpx jwt pydantic.v1 supabase"
_CODE = f"""
import sys, app.cli.serve, app.server.http_limits, app.hardened_app, app.main
print(*(name for name in {_UNUSED!r}.split() if name in sys.modules))
"""


def test_a_vault_on_sqlite_imports_no_library_that_it_does_not_use() -> None:
    done = subprocess.run([sys.executable, "-c", _CODE], check=True, capture_output=True, text=True)

    assert done.stdout.split() == []
