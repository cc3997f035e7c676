"""PgBouncer from Debian's archive, unpacked into .stack/ without root, in transaction mode."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.support.paths import STACK
from tests.support.stack.loopback import free_port
from tests.support.stack.postgres import Postgres
from tests.support.stack.reaper import Reaper
from tests.support.waiting import eventually

_FOLDER = STACK / "pgbouncer"
PGBOUNCER = _FOLDER / "usr" / "sbin" / "pgbouncer"
_LIBRARIES = ("libevent-2", "libc-ares", "libcares")


def install() -> bool:
    """Unpack PgBouncer and the libraries that a minimal system lacks; return whether that was possible."""
    if PGBOUNCER.exists():
        return True
    if not (shutil.which("apt-get") and shutil.which("apt-cache") and shutil.which("dpkg")):
        return False
    STACK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STACK) as name:
        folder = Path(name)
        try:
            depends = _run("apt-cache", "depends", "pgbouncer", folder=folder).split()
            libraries = [each for each in depends if each.startswith(_LIBRARIES)]
            _run("apt-get", "download", "pgbouncer", *libraries, folder=folder)
            for package in folder.glob("*.deb"):
                _run("dpkg", "-x", str(package), str(folder / "unpacked"), folder=folder)
        except subprocess.SubprocessError:
            return False
        shutil.rmtree(_FOLDER, ignore_errors=True)
        (folder / "unpacked").rename(_FOLDER)
    return PGBOUNCER.exists()


def _run(*command: str, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, check=True, timeout=120, stdout=subprocess.PIPE, stderr=sys.stderr)
    return done.stdout.decode()


@contextmanager
def running_pgbouncer(
    *,
    postgres: Postgres,
    user: str,
    sessions: int,
    reaper: Reaper,
    certificate: tuple[Path, Path] | None = None,
) -> Iterator[int]:
    """Run PgBouncer in front of the server with so many sessions, each as `user`; yield its port.

    With the files of a certificate and its key it requires TLS.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="vault-pgb-") as name:
        folder = Path(name)
        lines = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(port),
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": "transaction",
            "default_pool_size": str(sessions),
            "logfile": str(folder / "log"),
        }
        if certificate is not None:
            copies = [shutil.copy(file, folder / file.name) for file in certificate]
            lines |= {"client_tls_sslmode": "require"}
            lines |= dict(zip(("client_tls_cert_file", "client_tls_key_file"), map(str, copies), strict=True))
        text = "".join(f"{key} = {value}\n" for key, value in lines.items())
        configuration = folder / "pgbouncer.ini"
        configuration.write_text(f"[databases]\n* = host={postgres.socket.parent} user={user}\n[pgbouncer]\n{text}")
        process = subprocess.Popen(
            [str(PGBOUNCER), "--quiet", str(configuration)],
            env=os.environ | {"LD_LIBRARY_PATH": ":".join(map(str, _FOLDER.glob("usr/lib/*-linux-gnu")))},
            stderr=subprocess.DEVNULL,
            user=_user_of(postgres, folder),
        )
        reaper.watch(process.pid, signal.SIGTERM)
        try:
            eventually(lambda: process.poll() is not None or _answers(port))
            yield port
        finally:
            process.kill()
            process.wait()
            reaper.forget(process.pid)


def _user_of(postgres: Postgres, folder: Path) -> int | None:
    """Return the server's user if this process is root, which PgBouncer refuses, and give it the folder."""
    if os.getuid() != 0:
        return None
    owner = postgres.socket.parent.stat().st_uid
    shutil.chown(folder, pwd.getpwuid(owner).pw_name)
    for file in folder.iterdir():
        shutil.chown(file, pwd.getpwuid(owner).pw_name)
    return owner


def _answers(port: int) -> bool:
    try:
        psycopg.connect(host="127.0.0.1", port=port, dbname="postgres", user="any", connect_timeout=2).close()
    except psycopg.OperationalError as error:
        return "TLS" in str(error) or "SSL" in str(error)
    return True
