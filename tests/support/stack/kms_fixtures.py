"""KMS as pytest fixtures."""

from collections.abc import Iterator

import pytest

import tests.support.stack.aws_models  # noqa: F401  what it does to every client
from tests.support.stack.kms import Kms


@pytest.fixture(scope="session")
def kms_server() -> Iterator[Kms]:
    """One KMS for the session; most tests use `kms`, which is clean."""
    server = Kms()
    with server.running():
        yield server


@pytest.fixture
def kms(kms_server: Kms) -> Kms:
    """The session's KMS with a new key, no faults and no requests."""
    kms_server.renew()
    return kms_server
