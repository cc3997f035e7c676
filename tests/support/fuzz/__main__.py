"""`python -m tests.support.fuzz`: a long run over both stores with the audit trail and a new seed."""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Final

from tests.support.api.service import running_service
from tests.support.audit.trails import KEY_TEXT, files, verified
from tests.support.fuzz.run import fuzz
from tests.support.stack.install import install
from tests.support.stack.postgres import running_postgres
from tests.support.stack.reaper import Reaper
from tests.support.stack.supabase import running_supabase
from tests.support.stores.stores import SqliteStore, Store, SupabaseStore

_SECONDS: Final = 3_600


def main() -> None:
    """Run schemathesis on each store, print its output, and exit with 1 if it has found something."""
    arguments = argparse.ArgumentParser(prog="python -m tests.support.fuzz", description=__doc__)
    arguments.add_argument("--examples", type=int, default=500, help="requests for each operation in each phase")
    arguments.add_argument("--seed", type=int, help="repeat the run that printed this seed")
    options = arguments.parse_args()
    install()
    with (
        tempfile.TemporaryDirectory(prefix="vault-fuzz-") as folder,
        closing(Reaper()) as reaper,
        running_postgres(reaper=reaper) as postgres,
        running_supabase(postgres=postgres, reaper=reaper) as supabase,
    ):
        stores: list[Store] = [SqliteStore(Path(folder, "vault.db")), SupabaseStore(supabase)]
        found = [_fuzz(store, Path(folder), options.examples, options.seed) for store in stores]
    sys.exit(int(any(found)))


def _fuzz(store: Store, folder: Path, examples: int, seed: int | None) -> bool:
    name = store.environment()["TOKEN_STORE"]
    trail = folder / f"audit-{name}"
    settings = {
        "AUDIT_LOG": str(trail / "audit.jsonl"),
        "AUDIT_KEY": KEY_TEXT,
        "RATE_LIMIT_PER_SECOND": "100000",  # counts each request and refuses none
        **store.environment(),
    }
    with running_service(folder, settings) as service:
        run = fuzz(service, examples=examples, seconds=_SECONDS, seed=seed)
    report = verified(files(trail))
    recorded = f"{report.events} audit events, {len(report.findings)} findings"
    sys.stdout.write(f"{name}\n{run.stdout}{run.stderr}\n{recorded}\n")
    return run.returncode != 0 or not report.is_intact or not report.events


if __name__ == "__main__":
    main()
