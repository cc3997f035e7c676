"""The service with KMS as its primary: what callers, operators and the row see, in calm and in outages."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.support.api.fixtures import problem
from tests.support.api.service import COMMAND, running_service
from tests.support.observability.exposed import scraped
from tests.support.rewrap.stored_rows import SqliteRows, encryption, local_encryption, sealed_row
from tests.support.security.keys import MASTER_KEY
from tests.support.stack.kms import Kms
from tests.support.stack.kms_faults import Policy
from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.stores.stores import SqliteStore, Store

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
CANVAS = f"/v1/users/{USER}/tokens/canvas"
BODY = {"access_token": "access", "refresh_token": "refresh"}
NO_MASTER_KEY = {"TOKEN_ENCRYPTION_KEY": ""}


def test_a_token_is_sealed_under_kms_and_its_row_says_so(kms: Kms, store: Store, tmp_path: Path) -> None:
    with running_service(tmp_path, {**store.environment(), **kms.environment(), **NO_MASTER_KEY}) as service:
        kms.forget_requests()
        with service.client() as client:
            assert client.put(CANVAS, json=BODY).status_code == 201
            assert kms.operations() == ["GenerateDataKey"], "one data key for both secrets"
            revealed = client.get(CANVAS, params={"include": "refresh_token"}).json()
            for _ in range(20):
                client.post(f"{CANVAS}/rotate", json={"access_token": "next"})
                client.get(CANVAS)
        assert kms.operations() == ["GenerateDataKey"], "the cached data key serves all that follows"
    assert (revealed["access_token"], revealed["refresh_token"]) == ("access", "refresh")
    assert revealed["encryption_method"] == "kms"
    row = store.rows()[0]
    assert row["access_token"].startswith('kms:{"fmt":1,')
    assert row["refresh_token"].startswith('kms:{"fmt":1,')
    assert row["encryption_scheme"] == f"kms:{kms.key_arn}"
    assert row["metadata"]["encryption_method"] == "kms"
    assert re.fullmatch(rf"canvas_kms_{USER}_[0-9a-f]{{16}}", row["metadata"]["kms_key_id"])
    assert revealed["kms_key_id"] == row["metadata"]["kms_key_id"]
    assert "encryption_fallback" not in row["metadata"]


def test_the_least_privilege_policy_is_enough(kms: Kms, tmp_path: Path) -> None:
    actions = frozenset({"kms:Encrypt", "kms:Decrypt", "kms:GenerateDataKey"})
    kms.faults.policy = Policy(actions, {"service": "pulseplan"})
    store = SqliteStore(tmp_path / "vault.db")
    for restart in range(2):
        environment = {**store.environment(), **kms.environment()}
        with running_service(tmp_path, environment) as service, service.client() as client:
            assert client.get("/readyz").status_code == 200
            if restart == 0:
                assert client.put(CANVAS, json=BODY).status_code == 201
            assert client.get(CANVAS).json()["access_token"] == "access"
    assert set(kms.operations()) == {"GenerateDataKey", "Decrypt"}


def test_switching_kms_on_and_off_and_on_keeps_every_token_readable(kms: Kms, store: Store, tmp_path: Path) -> None:
    users = [str(uuid4()) for _ in range(6)]
    modes = ["false", "true", "false", "true"]
    for step, use_kms in enumerate(modes):
        environment = {**store.environment(), **kms.environment(), "USE_KMS": use_kms, "REWRAP_ON_READ": "false"}
        with running_service(tmp_path, environment) as service, service.client() as client:
            path = f"/v1/users/{users[step]}/tokens/canvas"
            client.put(path, json={"access_token": f"of step {step}", "refresh_token": "r"})
            for earlier in range(step + 1):
                revealed = client.get(f"/v1/users/{users[earlier]}/tokens/canvas", params={"include": "refresh_token"})
                assert revealed.json()["access_token"] == f"of step {earlier}", revealed.text
                assert revealed.json()["refresh_token"] == "r"
                assert revealed.json()["encryption_method"] == ("kms" if modes[earlier] == "true" else "aes256-gcm-v1")
            rotated = client.post(f"/v1/users/{users[0]}/tokens/canvas/rotate", json={"access_token": "of step 0"})
            assert rotated.status_code == 200
            modes[0] = use_kms


def test_in_an_outage_writes_are_refused_and_cached_users_notice_nothing(kms: Kms, tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "vault.db")
    environment = {**store.environment(), **kms.environment()}
    cold = f"/v1/users/{uuid4()}/tokens/canvas"
    with running_service(tmp_path, environment) as service, service.client() as client:
        client.put(cold, json=BODY)
    with running_service(tmp_path, environment) as service, service.client() as client:
        client.put(CANVAS, json=BODY)
        before = store.rows()
        kms.faults.down()
        fresh = f"/v1/users/{uuid4()}/tokens/canvas"
        for _ in range(8):  # the breaker opens on the way
            for answer in (client.put(fresh, json=BODY), client.get(cold)):
                problem(answer, 503, "key_unavailable")
                assert 1 <= int(answer.headers["retry-after"]) <= 5
        assert client.get(CANVAS).json()["access_token"] == "access"
        assert store.rows() == before, "nothing was written, and nothing was written locally"
        _eventually(lambda: client.get("/readyz").status_code == 503, within_seconds=15)
        assert client.get("/readyz").json()["checks"]["kms"] == "down"
        kms.faults.clear()
        _eventually(lambda: client.put(fresh, json=BODY).status_code == 201, within_seconds=30)
        _eventually(lambda: client.get(cold).status_code == 200, within_seconds=30)
        _eventually(lambda: client.get("/readyz").status_code == 200, within_seconds=30)


def test_while_kms_has_not_named_its_key_nobody_guesses_what_is_due(kms: Kms, tmp_path: Path) -> None:
    rows = SqliteRows(tmp_path / "vault.db")
    settings = {**rows.settings(), **kms.environment(), "KMS_KEY_ID": kms.alias, "TOKEN_ENCRYPTION_KEY": MASTER_KEY}
    under_kms, local = [sealed_row(encryption(settings)) for _ in range(3)], sealed_row(local_encryption(1))
    rows.insert([*under_kms, local])
    kms.faults.down()
    with running_service(tmp_path, settings | {"METRICS_CENSUS_SECONDS": "0.5"}) as service, service.client() as client:
        body = client.get("/v1/encryption").json()
        assert (body["primary_scheme"], body["due"], body["tokens"]) == (None, None, 4)
        until = time.monotonic() + 10
        while (seen := scraped(client)).value("token_vault_rows", scheme="kms") != 3:
            assert time.monotonic() < until, "nothing is counted"
            time.sleep(0.05)
        assert seen.value("token_vault_rows_due") == 0, "as it was before the count"
        with service.logged() as lines:
            assert client.get(f"/v1/users/{local['user_id']}/tokens/canvas").status_code == 200
            time.sleep(0.2)
        assert [line for line in lines if line.get("operation") == "rewrap"] == [], "it may be where it belongs"


def test_with_the_fallback_writes_are_local_and_marked(kms: Kms, tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "vault.db")
    environment = {**store.environment(), **kms.environment(), "KMS_FALLBACK_TO_LOCAL": "true"}
    with running_service(tmp_path, environment) as service, service.client() as client:
        kms.faults.down()
        with service.logged() as lines:
            assert client.put(CANVAS, json=BODY).status_code == 201
        row = store.rows()[0]
        assert row["metadata"]["encryption_fallback"] is True
        assert (row["encryption_scheme"], row["metadata"]["encryption_method"]) == ("local:v1", "aes256-gcm-v1")
        assert row["refresh_token"].startswith("v1:")
        assert any(line["event"] == "sealed_by_fallback" and line["level"] == "warning" for line in lines)
        assert client.get(CANVAS).json()["access_token"] == "access"
        _eventually(lambda: client.get("/readyz").json()["checks"]["kms"] == "degraded", within_seconds=15)
        assert client.get("/readyz").status_code == 200
        kms.faults.clear()

        def rotated_under_kms() -> bool:
            return str(client.post(f"{CANVAS}/rotate", json=BODY).json()["encryption_method"]) == "kms"

        _eventually(rotated_under_kms, within_seconds=30)
        row = store.rows()[0]
        assert "encryption_fallback" not in row["metadata"]
        assert row["refresh_token"].startswith("kms:")


def test_denied_is_no_reason_to_fall_back(kms: Kms, tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "vault.db")
    environment = {**store.environment(), **kms.environment(), "KMS_FALLBACK_TO_LOCAL": "true"}
    with running_service(tmp_path, environment) as service, service.client() as client:
        kms.faults.error("AccessDeniedException")
        problem(client.put(CANVAS, json=BODY), 500, "key_denied")
        assert store.rows() == []
        _eventually(lambda: client.get("/readyz").status_code == 503, within_seconds=20)
        assert client.get("/readyz").json()["checks"]["kms"] == "down", "no write succeeds, fallback or not"


def test_a_probe_never_waits_for_a_hung_kms_and_never_falls_back(kms: Kms, tmp_path: Path) -> None:
    environment = {**kms.environment(), "KMS_FALLBACK_TO_LOCAL": "true"}
    environment |= SqliteStore(tmp_path / "vault.db").environment()
    with running_service(tmp_path, environment) as service, service.client() as client:
        assert client.get("/readyz").json()["checks"]["kms"] == "up"
        kms.faults.delay(20)
        slowest = 0.0

        def degraded() -> bool:
            nonlocal slowest
            started = time.monotonic()
            answer = client.get("/readyz")
            slowest = max(slowest, time.monotonic() - started)
            assert answer.status_code == 200
            return bool(answer.json()["checks"]["kms"] == "degraded")

        with service.logged() as lines:
            _eventually(degraded, within_seconds=30)
        assert slowest < 1.5, "orchestrators give a probe a second"
        assert "sealed_by_fallback" not in {line["event"] for line in lines}
        kms.faults.clear()


def test_a_hung_kms_is_answered_for_within_its_deadline(kms: Kms, tmp_path: Path) -> None:
    environment = {**SqliteStore(tmp_path / "vault.db").environment(), **kms.environment()}
    with running_service(tmp_path, environment) as service, service.client() as client:
        kms.faults.delay(20)
        started = time.monotonic()
        problem(client.put(CANVAS, json=BODY), 503, "key_unavailable")
        assert time.monotonic() - started < 4
        kms.faults.clear()


async def test_a_thousand_cold_reads_of_one_user_are_one_request(kms: Kms, tmp_path: Path) -> None:
    environment = {**SqliteStore(tmp_path / "vault.db").environment(), **kms.environment()}
    with running_service(tmp_path, environment) as service, service.client() as client:
        client.put(CANVAS, json=BODY)
    with running_service(tmp_path, environment) as service, service.client() as client:
        client.get("/readyz")
        kms.forget_requests()
        kms.faults.delay(0.3, operation="Decrypt", times=1)

        async def read_ten_times() -> list[int]:
            # a client each: one for all of them would be busy with the queue for its connections
            async with httpx.AsyncClient(
                headers=client.headers, timeout=30, trust_env=False, verify=PLAIN_HTTP
            ) as reader:
                return [(await reader.get(service.url + CANVAS)).status_code for _ in range(10)]

        statuses = await asyncio.gather(*(read_ten_times() for _ in range(100)))
        assert statuses == [[200] * 10] * 100
        assert kms.operations().count("Decrypt") == 1


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
    kms: Kms, tmp_path: Path, settings: dict[str, str], named: str
) -> None:
    environment = {"TOKEN_ENCRYPTION_KEY": MASTER_KEY, **kms.environment(), **settings, "PORT": "0"}
    run = subprocess.run(
        [COMMAND, "serve"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30, check=False
    )
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


def _eventually(holds: Callable[[], bool], *, within_seconds: float) -> None:
    deadline = time.monotonic() + within_seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_an_idle_service_keeps_no_key_past_its_age(kms: Kms, tmp_path: Path) -> None:
    environment = {
        **SqliteStore(tmp_path / "vault.db").environment(),
        **kms.environment(),
        "DATA_KEY_MAX_AGE_SECONDS": "2",
    }

    def kept(client: httpx.Client) -> float:
        [number] = re.findall(r"^token_vault_data_keys ([0-9.]+)$", client.get("/metrics").text, re.MULTILINE)
        return float(number)

    with running_service(tmp_path, environment) as service, service.client() as client:
        assert client.put(CANVAS, json=BODY).status_code == 201
        until = time.monotonic() + 10
        while kept(client) == 0:
            assert time.monotonic() < until
        kms.forget_requests()
        while kept(client) > 0:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert kms.requests == []


def test_an_expired_cache_asks_again(kms: Kms, tmp_path: Path) -> None:
    environment = {
        **SqliteStore(tmp_path / "vault.db").environment(),
        **kms.environment(),
        "DATA_KEY_MAX_AGE_SECONDS": "1",
    }
    with running_service(tmp_path, environment) as service, service.client() as client:
        client.put(CANVAS, json=BODY)
        kms.forget_requests()
        time.sleep(1.1)
        assert client.get(CANVAS).status_code == 200
        assert "Decrypt" in kms.operations()
        kms.disable(kms.key_arn)
        time.sleep(1.1)
        problem(client.get(CANVAS), 500, "key_denied")
        kms.enable(kms.key_arn)
        assert client.get(CANVAS).status_code == 200
