"""`python -m tests.support.stack`: run a Supabase project until SIGTERM or SIGINT.

Once it is up, one line of JSON on standard output holds the settings to reach it.
"""

import argparse
import json
import signal
import sys
import threading
from contextlib import closing

from tests.support.stack.install import install
from tests.support.stack.postgres import running_postgres
from tests.support.stack.reaper import Reaper
from tests.support.stack.supabase import running_supabase


def main() -> None:
    arguments = argparse.ArgumentParser(prog="python -m tests.support.stack", description=__doc__)
    arguments.add_argument("--durable", action="store_true", help="fsync as in production, for benchmarks")
    arguments.add_argument("--pool-size", type=int, default=10, help="PostgREST's database connections")
    options = arguments.parse_args()

    # an event, because an exception raised during the start would leave it half stopped
    stopped = threading.Event()
    for stop_signal in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop_signal, lambda *_: stopped.set())
    install()
    with (
        closing(Reaper()) as reaper,
        running_postgres(reaper=reaper, durable=options.durable) as postgres,
        running_supabase(postgres=postgres, reaper=reaper, pool_size=options.pool_size) as supabase,
    ):
        project = {
            "SUPABASE_URL": supabase.url,
            "SUPABASE_SERVICE_KEY": supabase.service_key,
            "POSTGRES_URI": postgres.uri(supabase.database.name),
            "DATABASE_URL": supabase.login_url,
            "POSTGREST_PORT": supabase.postgrest.port,
            "POSTGRES_PID": postgres.pid,
            "POSTGREST_PID": supabase.postgrest.pid,
        }
        sys.stdout.write(f"{json.dumps(project)}\n")
        sys.stdout.flush()
        stopped.wait()


if __name__ == "__main__":
    main()
