"""The life of a token with the client that `openapi-python-client` generates: a type-correct program.

`test_generated_python_client.py` checks it with mypy, and runs it with VAULT_URL and VAULT_KEY.
"""

from __future__ import annotations

import os
from http import HTTPStatus
from uuid import uuid4

from pulse_plan_token_vault_client import AuthenticatedClient
from pulse_plan_token_vault_client.api.tokens import (
    delete_token,
    patch_token,
    reveal_token,
    rotate_token,
    store_token,
)
from pulse_plan_token_vault_client.models import (
    PatchTokenRequest,
    Problem,
    Revealed,
    RevealTokenInclude,
    StoreTokenRequest,
    StoreTokenRequestMetadata,
    Token,
    TokenResponse,
    TokenStatus,
)
from pulse_plan_token_vault_client.types import UNSET

USER, GOOGLE = uuid4(), "google"


def main() -> None:
    with AuthenticatedClient(base_url=os.environ["VAULT_URL"], token=os.environ["VAULT_KEY"]) as vault:
        metadata = StoreTokenRequestMetadata.from_dict({"courses": 4})
        body = StoreTokenRequest(access_token="one", expires_in=None, metadata=metadata)
        stored = store_token.sync(USER, GOOGLE, client=vault, body=body)
        assert isinstance(stored, Token), stored
        assert (stored.status, stored.expires_at, stored.metadata["courses"]) == (TokenStatus.OK, None, 4)

        answer = TokenResponse.from_dict(
            {"access_token": "two", "refresh_token": "1//r", "expires_in": 3599, "scope": "a b", "token_type": "Bearer"}
        )
        taken = store_token.sync(USER, GOOGLE, client=vault, body=answer)
        assert isinstance(taken, Token), taken
        assert taken.scopes == ["a", "b"]

        revealed = reveal_token.sync(USER, GOOGLE, client=vault, include=RevealTokenInclude.REFRESH_TOKEN, min_ttl=0)
        assert isinstance(revealed, Revealed), revealed
        assert (revealed.access_token, revealed.refresh_token) == ("two", "1//r")
        unasked = reveal_token.sync(USER, GOOGLE, client=vault)
        assert isinstance(unasked, Revealed), unasked
        assert unasked.refresh_token is UNSET

        change = PatchTokenRequest(status=TokenStatus.NEEDS_REAUTH, status_reason="why")
        patched = patch_token.sync(USER, GOOGLE, client=vault, body=change)
        assert isinstance(patched, Token), patched
        assert (patched.status, patched.status_reason) == (TokenStatus.NEEDS_REAUTH, "why")

        new = StoreTokenRequest(access_token="three")
        stale = rotate_token.sync_detailed(USER, GOOGLE, client=vault, body=new, if_match=f'"{stored.version}"')
        assert isinstance(stale.parsed, Problem), stale
        assert (stale.status_code, stale.parsed.code) == (HTTPStatus.PRECONDITION_FAILED, "version_conflict")
        rotated = rotate_token.sync(USER, GOOGLE, client=vault, body=new, if_match=f'"{patched.version}"')
        assert isinstance(rotated, Token), rotated
        assert rotated.version == patched.version + 1

        assert delete_token.sync_detailed(USER, GOOGLE, client=vault).status_code is HTTPStatus.NO_CONTENT
        gone = reveal_token.sync(USER, GOOGLE, client=vault)
        assert isinstance(gone, Problem), gone
        assert (gone.code, gone.retryable) == ("token_not_found", False)


if __name__ == "__main__":
    main()
