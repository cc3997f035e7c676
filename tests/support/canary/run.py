"""One run of the service in which marked secrets meet every route, every bad input and every failure."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from app.audit.signing_key import AuditKey, decode_audit_key
from app.audit.verify import VerificationReport
from tests.support.api.service import running_service
from tests.support.audit.trails import files, members, verified
from tests.support.canary.collector import collecting
from tests.support.canary.faults import failing_kms, failing_store
from tests.support.canary.full_disk import full_audit_disk
from tests.support.canary.providers import every_provider_call, prepare_provider
from tests.support.canary.rows import corrupt_rows, legacy_rows
from tests.support.canary.search import Place, Secret
from tests.support.canary.secret_files import in_files, with_wrong_files
from tests.support.canary.secrets import Marked, data_keys
from tests.support.canary.traffic import BOUND_SECONDS, Traffic
from tests.support.oauth.stand_in import oauth_stand_in
from tests.support.paths import ROOT
from tests.support.process.home import run, token_vault
from tests.support.stack.kms import Kms
from tests.support.stores.stores import Store

# commands that depend on the store, and commands that do not; GET /v1/encryption covers `encryption status`
SCRIPT: Final = "migrate_to_kms.py"
DOCTOR: Final = ("doctor",)
OF_EACH_STORE: Final = (DOCTOR, ("rewrap",), (SCRIPT,), ("health",))
OF_ANY_STORE: Final = (
    ("keys", "retire", "1"),
    ("service-key", "list"),
    ("providers", "list"),
    ("providers", "check"),
    ("audit", "verify"),
    ("audit", "show", "--json"),
)
# not searched: it holds the tokens, encrypted
DATABASE: Final = "vault.db"
Command = tuple[str, ...]
_SCRIPTS: Final = ROOT / "scripts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that the service answered, wrote and printed, and the secrets to search for."""

    traffic: Traffic
    marked: Marked
    others: list[Secret]
    files: list[Place]
    commands: list[Place]
    events: list[dict[str, Any]]
    trail: VerificationReport
    spans: set[str]
    batches: list[Place]
    exit_code: int

    @property
    def everything(self) -> list[Secret]:
        return [*self.others, *self.marked.tokens(), Secret.of("metadata", self.marked.metadata)]


def canary_run(
    folder: Path,
    store: Store,
    kms: Kms,
    *,
    supabase_key: str | None,
    workers: int,
    commands: Sequence[Command],
    secrets: Path | None = None,
) -> Run:
    """Serve in this folder from the start to SIGTERM, and run the commands afterwards.

    With a folder for them, the settings that are secret come from files.
    """
    marked = Marked()
    audit = folder / "audit"
    temporary = folder / "tmp"
    temporary.mkdir()
    settings = {
        **store.environment(),
        **kms.environment(),
        **marked.settings(),
        "AUDIT_LOG": str(audit / "audit.jsonl"),
        "TMPDIR": str(temporary),
        "REWRAP_LEGACY": "true",
        "REFRESH_SPOOL_DIR": str(folder / "spool"),
    }
    with collecting() as collector, oauth_stand_in() as provider:
        settings |= prepare_provider(provider, marked)
        if secrets is not None:
            settings = in_files(settings, secrets)
        settings |= collector.environment(marked.collector_key)
        with running_service(folder, settings, "--workers", str(workers)) as service, service.client() as client:
            traffic = Traffic(service, client, marked)
            full_audit_disk(traffic, audit)
            traffic.every_route(str(uuid4()))
            traffic.every_user_jwt()
            every_provider_call(traffic, provider)
            traffic.every_bad_input()
            traffic.send("GET", "/v1/encryption", headers={"Authorization": f"Bearer {service.keys['expired']}"})
            traffic.send("GET", "/v1/encryption", headers={"Authorization": f"Bearer {service.keys['read']}"})
            legacy_rows(traffic, store)
            others = [*marked.others(service.keys, supabase_key), *data_keys(store, kms)]
            corrupt_rows(traffic, store)
            failing_store(traffic, store)
            failing_kms(traffic, kms)
            for key in service.keys.values():  # in the wrong place
                traffic.send("GET", f"/v1/users/{key}/tokens/{key}", params={"service_type": key})
            passing = _kept(temporary)  # the workers' metrics, removed at the end
            service.process.terminate()
            exit_code = service.process.wait(BOUND_SECONDS)
        settings["SERVICE_KEYS_FILE"] = str(folder / "service-keys.json")
        printed = list(_printed(folder, settings, commands))
        if supabase_key is not None:
            broken = {"SUPABASE_SERVICE_KEY": "x", "TOKEN_ENCRYPTION_PREVIOUS_KEYS": "{}"}
            broken["AUDIT_PREVIOUS_KEYS"] = marked.audit_key
            printed += _printed(folder, settings | broken, OF_EACH_STORE[:1])
        if secrets is not None:
            for wrong in with_wrong_files(settings, secrets):
                printed += [Place(f"wrong file, {one.name}", one.content) for one in _printed(folder, wrong, [DOCTOR])]
    trail = files(audit)
    return Run(
        traffic=traffic,
        marked=marked,
        others=others,
        files=[*_kept(folder), *passing],
        commands=printed,
        events=members(trail),
        trail=verified(trail, keys=[AuditKey.derive(decode_audit_key(marked.audit_key))]),
        spans=collector.span_names(),
        batches=[Place(f"batch {number} of spans", body) for number, body in enumerate(collector.bodies)],
        exit_code=exit_code,
    )


def _kept(folder: Path) -> list[Place]:
    """Return every file that the service and its commands have written but the database."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    kept = [path for path in found if path.name != ".env" and not path.name.startswith(DATABASE)]
    return [Place(str(path.relative_to(folder)), path.read_bytes()) for path in kept]


def _printed(folder: Path, settings: dict[str, str], commands: Sequence[Command]) -> Iterator[Place]:
    for command in commands:
        if command[0] == SCRIPT:
            done = run(sys.executable, str(_SCRIPTS / SCRIPT), *command[1:], folder=folder, settings=settings)
        else:
            done = token_vault(*command, folder=folder, settings=settings)
        yield Place(f"{' '.join(command)}: {done.returncode}", (done.stdout + done.stderr).encode())
