"""A part of PulsePlan's API: connect Google, then read the user's calendars with a token from the vault.

    pip install fastapi uvicorn ./client
    VAULT_URL=http://127.0.0.1:8080 VAULT_KEY=ptv_… GOOGLE_CLIENT_ID=… uvicorn main:app

This service holds no token, refresh token or client secret:
the vault redeems the code, and hands out an access token for each call.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated
from urllib.parse import urlencode

import httpx
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from token_vault_client import AsyncVaultAuth, AsyncVaultClient, TokenInactive, TokenNotFound, VaultError

PROVIDER = "google"
AUTHORIZE_URL = os.environ.get("GOOGLE_AUTHORIZE_URL", "https://accounts.google.com/o/oauth2/v2/auth")
CALENDARS_URL = os.environ.get("GOOGLE_CALENDARS_URL", "https://www.googleapis.com/calendar/v3/users/me/calendarList")
CALENDAR_SCOPE = "https://www.googleapis.com/auth/calendar.readonly"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep one client of the vault, and so its connections, for the life of the process."""
    async with AsyncVaultClient(os.environ["VAULT_URL"], os.environ["VAULT_KEY"]) as vault:
        app.state.vault = vault
        yield


app = FastAPI(title="PulsePlan API", lifespan=lifespan)
# of the sign-ins in progress: state to user and PKCE verifier. PulsePlan has a session store for them, with an expiry.
pending: dict[str, tuple[str, str]] = {}
STATE_COOKIE = "connect_state"


def signed_in_user(credentials: Annotated[HTTPBasicCredentials, Depends(HTTPBasic())]) -> str:
    """Return the id of the signed-in user.

    It is the user name that a browser asks for, and no password is compared. PulsePlan verifies the session's JWT here.
    """
    return credentials.username


User = Annotated[str, Depends(signed_in_user)]


@app.get("/connect/google")
async def connect(user_id: User, request: Request) -> RedirectResponse:
    """Send the browser to Google's consent page."""
    state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(48)
    pending[state] = user_id, verifier
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    query = {
        "client_id": os.environ["GOOGLE_CLIENT_ID"],
        "redirect_uri": str(request.url_for("callback")),
        "response_type": "code",
        "scope": CALENDAR_SCOPE,
        "access_type": "offline",  # gives a refresh token
        "prompt": "consent",
        "state": state,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    response = RedirectResponse(f"{AUTHORIZE_URL}?{urlencode(query)}", status_code=303)
    # the browser that comes back must be the one that left: else an attacker sends somebody else the link above, and
    # gets that person's calendar
    response.set_cookie(STATE_COOKIE, state, max_age=600, secure=True, httponly=True, samesite="lax")
    return response


@app.get("/connect/google/callback")
async def callback(state: str, request: Request, code: str | None = None) -> dict[str, object]:
    """Hand the code to the vault, which redeems it and stores the tokens."""
    sent = request.cookies.get(STATE_COOKIE, "")
    same = secrets.compare_digest(sent.encode(), state.encode())
    user_id, verifier = pending.pop(state, (None, "")) if same else (None, "")
    if user_id is None:
        raise HTTPException(400, "this sign-in was not started here")
    if code is None:
        raise HTTPException(400, "the user has not consented")
    vault: AsyncVaultClient = request.app.state.vault
    redirect_uri = str(request.url_for("callback"))
    token = await vault.for_purpose("connect.google").exchange(
        user_id, PROVIDER, code=code, redirect_uri=redirect_uri, code_verifier=verifier
    )
    return {"connected": PROVIDER, "scopes": token.scopes}


@app.get("/calendars")
async def calendars(user_id: User, request: Request) -> list[str]:
    """Read the user's calendars at Google with the user's token, which is refreshed if Google rejects it."""
    vault: AsyncVaultClient = request.app.state.vault.for_purpose("read.calendars")
    async with httpx.AsyncClient(auth=AsyncVaultAuth(vault, user_id, PROVIDER)) as google:
        answer = await google.get(CALENDARS_URL)
    answer.raise_for_status()
    return [calendar["summary"] for calendar in answer.json()["items"]]


@app.delete("/connect/google")
async def disconnect(user_id: User, request: Request) -> dict[str, str]:
    """Revoke the tokens at Google, and delete them."""
    vault: AsyncVaultClient = request.app.state.vault
    receipt = await vault.delete(user_id, PROVIDER, revoke="true")
    return {"revoked": "unknown" if receipt is None else receipt.access_token}


@app.exception_handler(VaultError)
async def on_vault_error(_: Request, error: VaultError) -> JSONResponse:
    """Answer for the vault: connect again, try again later, or a defect."""
    if isinstance(error, TokenNotFound | TokenInactive):
        return JSONResponse({"error": "connect_google"}, 409)
    if error.retryable:
        headers = {"Retry-After": str(int(error.retry_after_seconds or 1))}
        return JSONResponse({"error": "try_again"}, 503, headers)
    return JSONResponse({"error": "internal", "vault_request": error.request_id}, 500)
