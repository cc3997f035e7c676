"""The service with KMS as its primary: answers, rows and readiness, normally and in outages.

The services run for the whole module, under the least-privilege policy of the documentation, and each test uses other
users. Rows that another process has encrypted stand for cold reads: this process has no data key for them.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr

from app.composition.vault import open_vault
from app.config.settings import Settings
from app.security.kms import circuit_breaker
from app.tokens.models import Caller, TokenId, TokenInput
from app.tokens.reveals import RevealOptions
from tests.support.api.fixtures import problem
from tests.support.api.service import Service, running_service
from tests.support.observability.exposed import scraped
from tests.support.process.home import token_vault
from tests.support.rewrap.stored_rows import Row, access_of, encryption, local_encryption, sealed_row
from tests.support.security.keys import MASTER_KEY
from tests.support.sizes import size
from tests.support.stack.kms import Kms
from tests.support.stack.kms_faults import Policy
from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.stores.stores import SqliteStore, Store
from tests.support.waiting import eventually, once_available

BODY = {"access_token": "access", "refresh_token": "refresh"}
POLICY = Policy(frozenset({"kms:Decrypt", "kms:GenerateDataKey"}), {"service": "pulseplan"})
CALLER = Caller("tests", "request")
OUTAGE_SECONDS = 600.0
RECOVERY_SECONDS = 180.0
BLIP_SECONDS = 0.7
READERS, READS = size(20, 100), size(5, 10)


class KmsService:
    """A running service and its store."""

    def __init__(self, service: Service, store: SqliteStore) -> None:
        self.service, self.store = service, store
        self.client = service.client()

    def row(self, user: str) -> Row:
        [row] = [row for row in self.store.rows() if row["user_id"] == user]
        return row

    def insert_cold(self, kms: Kms) -> Row:
        """Insert a row that another process has encrypted under KMS."""
        row = sealed_row(encryption(kms.environment()))
        self.store.insert_raw(**row)
        return row

    def kms_state(self) -> tuple[int, str]:
        """Return the status of `/readyz` and the state of its check of KMS."""
        answer = self.client.get("/readyz")
        return answer.status_code, answer.json()["checks"]["kms"]

    def data_keys(self) -> float:
        return scraped(self.client).value("token_vault_data_keys")


@pytest.fixture(scope="module")
def start(kms_server: Kms, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., KmsService]]:
    """Start services under one new key; they run until the end of the module."""
    kms_server.renew()
    kms_server.faults.policy = POLICY
    with ExitStack() as stack:

        def started(**settings: str) -> KmsService:
            folder = tmp_path_factory.mktemp("kms")
            store = SqliteStore(folder / "vault.db")
            environment = {**store.environment(), **kms_server.environment(), **settings}
            service = KmsService(stack.enter_context(running_service(folder, environment)), store)
            stack.callback(service.client.close)
            return service

        yield started


@pytest.fixture(scope="module")
def _plain(start: Callable[..., KmsService]) -> KmsService:
    return start(TOKEN_ENCRYPTION_KEY="")


@pytest.fixture(scope="module")
def _fallback(start: Callable[..., KmsService]) -> KmsService:
    return start(KMS_FALLBACK_TO_LOCAL="true")


@pytest.fixture(scope="module")
def short_lived(start: Callable[..., KmsService]) -> KmsService:
    """A service that keeps data keys for a second."""
    return start(DATA_KEY_MAX_AGE_SECONDS="1")


@pytest.fixture
def kms(kms_server: Kms, start: object) -> Iterator[Kms]:
    """The KMS of the module's services, without faults."""
    del start  # renews the key, so before any request
    kms_server.faults.clear()
    kms_server.faults.policy = POLICY
    kms_server.forget_requests()
    yield kms_server
    kms_server.faults.clear()


@pytest.fixture
def plain(kms: Kms, _plain: KmsService) -> KmsService:
    """A service without fallback and without a local key."""
    return _recovered(kms, _plain)


@pytest.fixture
def fallback(kms: Kms, _fallback: KmsService) -> KmsService:
    """A service that falls back to the local key."""
    return _recovered(kms, _fallback)


def _recovered(kms: Kms, service: KmsService) -> KmsService:
    """Wait until the service has noticed that a fault of the test before is over."""

    def writes_under_kms() -> bool:
        answer = service.client.put(_path(str(uuid4())), json=BODY)
        return answer.is_success and answer.json()["encryption_method"] == "kms"

    eventually(writes_under_kms, within_seconds=RECOVERY_SECONDS, every_seconds=0.2)
    kms.forget_requests()
    return service


def _path(user: str) -> str:
    return f"/v1/users/{user}/tokens/canvas"


def test_a_token_is_encrypted_under_kms_and_its_row_says_so(kms: Kms, plain: KmsService) -> None:
    user, client = str(uuid4()), plain.client
    assert client.put(_path(user), json=BODY).status_code == 201
    assert kms.operations() == ["GenerateDataKey"], "one data key for both secrets"
    revealed = client.get(_path(user), params={"include": "refresh_token"}).json()
    for _ in range(5):
        client.post(f"{_path(user)}/rotate", json=BODY)
        client.get(_path(user))
    assert kms.operations() == ["GenerateDataKey"], "the cached data key serves all later calls"
    assert (revealed["access_token"], revealed["refresh_token"]) == ("access", "refresh")
    row = plain.row(user)
    assert row["access_token"].startswith('kms:{"fmt":1,')
    assert row["refresh_token"].startswith('kms:{"fmt":1,')
    assert row["encryption_scheme"] == f"kms:{kms.key_arn}"
    assert row["metadata"]["encryption_method"] == revealed["encryption_method"] == "kms"
    assert re.fullmatch(rf"canvas_kms_{user}_[0-9a-f]{{16}}", row["metadata"]["kms_key_id"])
    assert "encryption_fallback" not in row["metadata"]
    assert revealed["kms_key_id"].startswith(f"canvas_kms_{user}_")
    assert plain.data_keys() >= 1


def test_the_least_privilege_policy_is_enough(kms: Kms, plain: KmsService) -> None:
    cold = plain.insert_cold(kms)
    assert plain.client.put(_path(str(uuid4())), json=BODY).status_code == 201
    assert plain.client.get(_path(cold["user_id"])).json()["access_token"] == access_of(cold["id"])
    assert plain.kms_state() == (200, "up")
    assert set(kms.operations()) == {"GenerateDataKey", "Decrypt"}


async def test_switching_kms_on_and_off_keeps_tokens_readable(kms: Kms, store: Store) -> None:
    users = [str(uuid4()) for _ in range(4)]
    modes = ["false", "true", "false", "true"]
    for step, use_kms in enumerate(modes):
        values = {**store.environment(), **kms.environment(), "USE_KMS": use_kms, "TOKEN_ENCRYPTION_KEY": MASTER_KEY}
        settings: dict[str, Any] = {name.lower(): value for name, value in values.items()}
        async with open_vault(Settings(_env_file=None, **settings)) as vault:  # type: ignore[call-arg]  # pydantic-settings takes `_env_file`
            given = TokenInput(access_token=SecretStr(f"of step {step}"), refresh_token=SecretStr("r"))
            await once_available(partial(vault.store, TokenId(users[step], "canvas"), given, caller=CALLER))
            for earlier, user in enumerate(users[: step + 1]):
                reveal = partial(
                    vault.reveal, TokenId(user, "canvas"), caller=CALLER, options=RevealOptions(include_refresh=True)
                )
                revealed = await once_available(reveal)
                assert revealed.refresh_token is not None
                assert revealed.access_token.get_secret_value() == f"of step {earlier}"
                assert revealed.refresh_token.get_secret_value() == "r"
                assert revealed.token.encryption_method == ("kms" if modes[earlier] == "true" else "aes256-gcm-v1")
            again = TokenInput(access_token=SecretStr("of step 0"))
            await once_available(partial(vault.rotate, TokenId(users[0], "canvas"), again, caller=CALLER))
            modes[0] = use_kms


def test_an_outage_refuses_writes_and_serves_cached_users(kms: Kms, plain: KmsService) -> None:
    cached, fresh, cold = _path(str(uuid4())), _path(str(uuid4())), plain.insert_cold(kms)
    client = plain.client
    client.put(cached, json=BODY)
    before = plain.store.rows()
    kms.faults.down()
    for _ in range(8):  # the breaker opens after some of them
        for answer in (client.put(fresh, json=BODY), client.get(_path(cold["user_id"]))):
            problem(answer, 503, "key_unavailable")
            assert 1 <= int(answer.headers["retry-after"]) <= 5
        assert client.get("/readyz").status_code == 200, "each replica keeps serving the users whose data key it has"
    assert client.get(cached).json()["access_token"] == "access"
    assert plain.store.rows() == before, "nothing was written, under the local key neither"
    kms.faults.clear()
    eventually(
        lambda: client.put(fresh, json=BODY).status_code == 201, within_seconds=RECOVERY_SECONDS, every_seconds=0.2
    )
    eventually(
        lambda: client.get(_path(cold["user_id"])).status_code == 200,
        within_seconds=RECOVERY_SECONDS,
        every_seconds=0.2,
    )


def test_a_batch_is_503_if_every_token_in_it_would_be(kms: Kms, plain: KmsService) -> None:
    client = plain.client
    cold = [{"user_id": plain.insert_cold(kms)["user_id"], "provider": "canvas"} for _ in range(3)]
    missing = {"user_id": str(uuid4()), "provider": "canvas"}
    kms.faults.down()
    answer = client.post("/v1/tokens/batch-get", json={"tokens": cold})
    problem(answer, 503, "key_unavailable")
    assert 1 <= int(answer.headers["retry-after"]) <= 5
    mixed = client.post("/v1/tokens/batch-get", json={"tokens": [*cold, missing]})
    assert mixed.status_code == 200
    codes = [one["problem"]["code"] for one in mixed.json()["results"]]
    assert codes == [*["key_unavailable"] * 3, "token_not_found"]
    kms.faults.clear()


def test_a_blip_of_kms_asks_new_users_to_come_back_in_a_second(kms: Kms, plain: KmsService) -> None:
    """The breaker's first pauses are below a second; the third failed probe, if the machine stalls, makes it two."""

    def stores() -> httpx.Response:
        return plain.client.put(_path(str(uuid4())), json=BODY)

    assert stores().status_code == 201
    began = time.monotonic()
    kms.faults.down()
    refused: list[httpx.Response] = []
    while time.monotonic() - began < BLIP_SECONDS or len(refused) < circuit_breaker.FAILURES + 2:
        refused.append(stores())
    kms.faults.clear()
    assert {answer.status_code for answer in refused} == {503}
    assert {answer.headers["retry-after"] for answer in refused} <= {"1", "2"}
    eventually(lambda: stores().status_code == 201, within_seconds=RECOVERY_SECONDS, every_seconds=0.2)


def test_the_fallback_writes_locally_and_marks_the_row(kms: Kms, fallback: KmsService) -> None:
    user, client = str(uuid4()), fallback.client
    kms.faults.down()
    with fallback.service.logged() as lines:
        assert client.put(_path(user), json=BODY).status_code == 201
    row = fallback.row(user)
    assert row["metadata"]["encryption_fallback"] is True
    assert (row["encryption_scheme"], row["metadata"]["encryption_method"]) == ("local:v1", "aes256-gcm-v1")
    assert row["refresh_token"].startswith("v1:")
    assert any(line["event"] == "sealed_by_fallback" and line["level"] == "warning" for line in lines)
    assert client.get(_path(user)).json()["access_token"] == "access"
    kms.faults.clear()

    def rotates_under_kms() -> bool:
        return str(client.post(f"{_path(user)}/rotate", json=BODY).json()["encryption_method"]) == "kms"

    eventually(rotates_under_kms, within_seconds=RECOVERY_SECONDS, every_seconds=0.2)
    row = fallback.row(user)
    assert "encryption_fallback" not in row["metadata"]
    assert row["refresh_token"].startswith("kms:")


def test_a_denial_is_no_reason_to_fall_back(kms: Kms, fallback: KmsService) -> None:
    before = fallback.store.rows()
    kms.faults.error("AccessDeniedException")
    problem(fallback.client.put(_path(str(uuid4())), json=BODY), 500, "key_denied")
    assert fallback.store.rows() == before


def test_readiness_tolerates_an_outage_of_kms_and_no_denial(kms: Kms, plain: KmsService, fallback: KmsService) -> None:
    """Readiness asks KMS every ten seconds, every two while it fails, so one test follows all of its states."""

    def become(of_plain: tuple[int, str], of_fallback: tuple[int, str]) -> None:
        eventually(
            lambda: (plain.kms_state(), fallback.kms_state()) == (of_plain, of_fallback),
            within_seconds=RECOVERY_SECONDS,
            every_seconds=0.2,
        )

    become((200, "up"), (200, "up"))
    with fallback.service.logged() as lines:
        kms.faults.delay(OUTAGE_SECONDS)
        become((200, "degraded"), (200, "degraded"))
    assert "sealed_by_fallback" not in {line["event"] for line in lines}, "the self-test never falls back"
    kms.faults.clear()
    kms.faults.error("AccessDeniedException")
    become((503, "down"), (503, "down"))  # a denial may be this replica's own, with fallback or without
    kms.faults.clear()
    become((200, "up"), (200, "up"))


def test_a_replica_is_not_ready_before_it_has_reached_kms(
    kms: Kms, plain: KmsService, start: Callable[..., KmsService]
) -> None:
    """Otherwise a rollout without a way to KMS replaces every replica that has data keys by one that has none."""
    eventually(lambda: plain.kms_state() == (200, "up"), within_seconds=RECOVERY_SECONDS, every_seconds=0.2)
    kms.faults.down()
    replica = start(TOKEN_ENCRYPTION_KEY="")
    assert replica.kms_state() == (503, "down")
    eventually(lambda: plain.kms_state() == (200, "degraded"), within_seconds=RECOVERY_SECONDS, every_seconds=0.2)
    assert replica.kms_state() == (503, "down"), "a repeated failure proves nothing either"
    assert replica.client.get("/healthz").status_code == 200
    kms.faults.clear()
    eventually(lambda: replica.kms_state() == (200, "up"), within_seconds=RECOVERY_SECONDS, every_seconds=0.2)
    kms.faults.down()
    eventually(lambda: replica.kms_state() == (200, "degraded"), within_seconds=RECOVERY_SECONDS, every_seconds=0.2)
    kms.faults.clear()
    eventually(lambda: replica.kms_state() == (200, "up"), within_seconds=RECOVERY_SECONDS, every_seconds=0.2)


def test_a_hung_kms_is_answered_for_within_a_deadline(kms: Kms, plain: KmsService) -> None:
    kms.faults.delay(OUTAGE_SECONDS)
    problem(plain.client.put(_path(str(uuid4())), json=BODY), 503, "key_unavailable")  # the client waits 20 s at most


async def test_many_cold_reads_of_one_user_make_one_request(kms: Kms, plain: KmsService) -> None:
    cold = plain.insert_cold(kms)
    url = plain.service.url + _path(cold["user_id"])
    kms.forget_requests()
    kms.faults.delay(0.5, operation="Decrypt", times=1)

    async def read() -> list[int]:
        # a client each: callers of one client would wait for its connections
        async with httpx.AsyncClient(
            headers=plain.client.headers, timeout=60, trust_env=False, verify=PLAIN_HTTP
        ) as reader:
            return [(await reader.get(url)).status_code for _ in range(READS)]

    assert await asyncio.gather(*(read() for _ in range(READERS))) == [[200] * READS] * READERS
    assert kms.operations().count("Decrypt") == 1


@pytest.mark.usefixtures("kms")
def test_an_idle_service_drops_data_keys_at_their_age(short_lived: KmsService) -> None:
    assert short_lived.client.put(_path(str(uuid4())), json=BODY).status_code == 201
    eventually(lambda: short_lived.data_keys() == 0)


def test_an_expired_data_key_is_decrypted_again(kms: Kms, short_lived: KmsService) -> None:
    path, client = _path(str(uuid4())), short_lived.client
    client.put(path, json=BODY)
    eventually(lambda: short_lived.data_keys() == 0)
    assert "Decrypt" not in kms.operations()
    assert client.get(path).status_code == 200
    assert "Decrypt" in kms.operations()
    kms.disable(kms.key_arn)
    try:
        eventually(lambda: short_lived.data_keys() == 0)
        problem(client.get(path), 500, "key_denied")
    finally:
        kms.enable(kms.key_arn)
    assert client.get(path).status_code == 200


def test_nothing_is_due_before_kms_resolves_its_alias(kms: Kms, start: Callable[..., KmsService]) -> None:
    alias = {"KMS_KEY_ID": kms.alias}
    cold = [sealed_row(encryption(kms.environment() | alias)) for _ in range(3)]
    local = sealed_row(local_encryption(1))
    kms.faults.down()
    service = start(**alias, METRICS_CENSUS_SECONDS="0.5")
    for row in (*cold, local):
        service.store.insert_raw(**row)
    body = service.client.get("/v1/encryption").json()
    assert (body["primary_scheme"], body["due"], body["tokens"]) == (None, None, 4)
    eventually(lambda: scraped(service.client).value("token_vault_rows", scheme="kms") == 3)
    assert scraped(service.client).value("token_vault_rows_due") == 0, "as before the count"
    with service.service.logged() as lines:
        assert service.client.get(_path(local["user_id"])).status_code == 200
        time.sleep(0.2)  # a wrong rewrap would come within a few milliseconds
    assert [line for line in lines if line.get("operation") == "rewrap"] == [], "it may be under the primary already"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"KMS_KEY_ID": ""}, "KMS_KEY_ID"),
        ({"AWS_REGION": "", "KMS_KEY_ID": "alias/x"}, "AWS_REGION"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "AWS_SECRET_ACCESS_KEY"),
        ({"KMS_PREVIOUS_KEY_IDS": "CANARY"}, "KMS_PREVIOUS_KEY_IDS"),
        ({"DATA_KEY_MAX_AGE_SECONDS": "0"}, "DATA_KEY_MAX_AGE_SECONDS"),
        ({"KMS_FALLBACK_TO_LOCAL": "true", "TOKEN_ENCRYPTION_KEY": ""}, "TOKEN_ENCRYPTION_KEY"),
        ({"AWS_ENDPOINT_URL_KMS": "CANARY"}, "AWS_ENDPOINT_URL_KMS"),
    ],
)
def test_a_wrong_kms_setting_stops_the_start_with_one_line(
    kms_server: Kms, tmp_path: Path, settings: dict[str, str], named: str
) -> None:
    environment = {"TOKEN_ENCRYPTION_KEY": MASTER_KEY, **kms_server.environment(), **settings, "PORT": "0"}
    run = token_vault("serve", folder=tmp_path, settings=environment)
    assert run.returncode == 2, run.stdout + run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert named in run.stderr
    assert "CANARY" not in run.stderr
    assert run.stdout == ""


def test_the_documented_snippet_prints_a_kms_ciphertext(kms: Kms, tmp_path: Path) -> None:
    program = (
        "from app.security.encryption import get_encryption_service; service = get_encryption_service(); "
        'e = service.encrypt_token("test-canvas-token-123", "user-id-123"); '
        'assert service.decrypt_token(e, "user-id-123") == "test-canvas-token-123"; print(e)'
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=kms.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout.startswith('kms:{"fmt":1,')
    assert run.stderr == ""
