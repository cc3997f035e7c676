"""Write docs/openapi.json, from which clients are generated: `make openapi`."""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from pathlib import Path

from app.config.settings import Settings
from app.main import create_app

OPENAPI_FILE = Path(__file__).parents[1] / "docs" / "openapi.json"


def openapi_text() -> str:
    """Return the document as the file holds it. The settings of the environment do not change it."""
    no_key = b64encode(bytes(32)).decode()
    settings = Settings(_env_file=None, TOKEN_ENCRYPTION_KEY=no_key, METRICS=True, METRICS_PORT=None)  # type: ignore[call-arg]  # pydantic-settings takes `_env_file`, and fields from elsewhere
    return json.dumps(create_app(settings).openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    OPENAPI_FILE.write_text(openapi_text())
    sys.stdout.write(f"Wrote {OPENAPI_FILE}\n")
