"""PgBouncer from Debian's archive, unpacked into .stack/ without root, in transaction mode."""

from __future__ import annotations

import os
import re
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
from tests.support.stack.postgres import server_user
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


class PgBouncer:
    """A running pooler in transaction mode."""

    def __init__(self, *, port: int, configuration: Path, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self._configuration = configuration
        self._process = process

    def lead_to(self, server: str) -> None:
        """Run transactions on another server from now on; clients stay connected."""
        text = self._configuration.read_text()
        self._configuration.write_text(_SERVER.sub(f"* = {server} ", text, count=1))
        self._process.send_signal(signal.SIGHUP)


_SERVER = re.compile(r"\* = .* (?=user=)")


@contextmanager
def running_pgbouncer(
    *, server: str, user: str, sessions: int, reaper: Reaper, certificate: tuple[Path, Path] | None = None
) -> Iterator[PgBouncer]:
    """Run PgBouncer in front of a server with so many sessions, each as `user`.

    `server` is the server's place, such as `host=127.0.0.1 port=5432`. With the files of a certificate and its key the
    pooler requires TLS.
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
        configuration.write_text(f"[databases]\n* = {server} user={user}\n[pgbouncer]\n{text}")
        owner = server_user()  # PgBouncer refuses to run as root
        if owner is not None:
            for file in (folder, *folder.iterdir()):
                shutil.chown(file, owner)
        process = subprocess.Popen(
            [str(PGBOUNCER), "--quiet", str(configuration)],
            env=os.environ | {"LD_LIBRARY_PATH": ":".join(map(str, _FOLDER.glob("usr/lib/*-linux-gnu")))},
            stderr=subprocess.DEVNULL,
            user=owner,
        )
        reaper.watch(process.pid, signal.SIGTERM)
        try:
            eventually(lambda: process.poll() is not None or _answers(port))
            yield PgBouncer(port=port, configuration=configuration, process=process)
        finally:
            process.kill()
            process.wait()
            reaper.forget(process.pid)


def _answers(port: int) -> bool:
    try:
        psycopg.connect(host="127.0.0.1", port=port, dbname="postgres", user="any", connect_timeout=2).close()
    except psycopg.OperationalError as error:
        return "TLS" in str(error) or "SSL" in str(error)
    return True
