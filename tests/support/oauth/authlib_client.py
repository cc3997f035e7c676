"""Token exchanges with authlib: prints what `openid_client.mjs` prints, for the same REQUESTS in the environment."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.httpx_client import OAuth2Client


def outcome(request: dict[str, Any]) -> dict[str, Any]:
    with OAuth2Client(request["service"], request["key"], trust_env=False) as client:
        try:
            return {"token": client.fetch_token(request["url"], **request["parameters"])}
        except OAuthError as error:
            return {"error": error.error, "description": error.description}


sys.stdout.write(json.dumps([outcome(one) for one in json.loads(os.environ["REQUESTS"])]))
