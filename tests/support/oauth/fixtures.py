"""The OAuth server as pytest fixtures."""

from collections.abc import Iterator

import pytest

from tests.support.oauth.oidc import OidcServer
from tests.support.stack.reaper import Reaper


@pytest.fixture(scope="session")
def oidc_server(tmp_path_factory: pytest.TempPathFactory, stack_reaper: Reaper) -> Iterator[OidcServer]:
    """One OAuth server for the session; tests use `oidc`, whose counts are zero."""
    server = OidcServer(log=tmp_path_factory.mktemp("oidc") / "oidc-provider.log", reaper=stack_reaper)
    with server.running():
        yield server


@pytest.fixture
def oidc(oidc_server: OidcServer) -> OidcServer:
    """The session's OAuth server with counts at zero and access tokens of an hour."""
    oidc_server.reset()
    return oidc_server
