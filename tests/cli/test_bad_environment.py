"""Commands in a broken environment: one line of error, and no internal error."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.support.process.home import COMMAND, COMMAND_SECONDS, environment, new_home, token_vault

OPEN_THE_STORE: Final = (
    ("serve",),
    ("serve", "--workers", "2"),
    ("encryption", "status", "--json"),
    ("rewrap",),
    ("keys", "retire", "1"),
)
FULL_DEVICE: Final = "/dev/full"


def _supabase(folder: Path, authorities: Path) -> dict[str, str]:
    return {
        **new_home(folder).settings,
        "TOKEN_STORE": "supabase",
        "SUPABASE_URL": "https://127.0.0.1:1",
        "SUPABASE_SERVICE_KEY": "key",
        "SSL_CERT_FILE": str(authorities),
    }


@pytest.mark.parametrize("command", OPEN_THE_STORE, ids=" ".join)
def test_unreadable_authorities_are_named_by_their_setting(tmp_path: Path, command: tuple[str, ...]) -> None:
    missing, text = tmp_path / "missing.pem", tmp_path / "text.pem"
    text.write_text("no certificate")
    for file, reason in ((missing, "cannot be read: No such file or directory"), (text, "holds no certificate in PEM")):
        done = token_vault(*command, folder=tmp_path, settings=_supabase(tmp_path, file))
        message = f"Error: SSL_CERT_FILE: the file that it names {reason}\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_doctor_reports_unreadable_authorities_and_checks_the_rest(tmp_path: Path) -> None:
    done = token_vault("doctor", folder=tmp_path, settings=_supabase(tmp_path, tmp_path / "missing.pem"))
    message = "store         SSL_CERT_FILE: the file that it names cannot be read: No such file or directory"
    assert (done.returncode, done.stderr) == (1, "")
    assert [line for line in done.stdout.splitlines() if line.startswith("FAIL")] == [f"FAIL  {message}"]


@pytest.mark.parametrize(
    ("command", "unbuffered"),
    [
        (("keys", "generate"), ""),
        (("keys", "generate"), "1"),
        (("kms", "cost", "--users", "1", "--operations-per-user", "1"), ""),
        (("--help",), ""),
    ],
)
def test_a_full_standard_output_is_reported_on_standard_error(
    tmp_path: Path, command: tuple[str, ...], unbuffered: str
) -> None:
    done = _run_with_full_output(tmp_path, command, unbuffered, stderr=subprocess.PIPE)
    message = "Error: the output cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, message)


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_the_exit_code_is_2_even_if_both_outputs_are_full(tmp_path: Path, unbuffered: str) -> None:
    with open(FULL_DEVICE, "wb") as full:  # noqa: PTH123  a device
        done = _run_with_full_output(tmp_path, ("keys", "generate"), unbuffered, stderr=full.fileno())
    assert done.returncode == 2


def _run_with_full_output(
    folder: Path, command: tuple[str, ...], unbuffered: str, *, stderr: int
) -> subprocess.CompletedProcess[str]:
    with open(FULL_DEVICE, "wb") as full:  # noqa: PTH123  a device
        return subprocess.run(
            [COMMAND, *command],
            cwd=folder,
            env=environment({"PYTHONUNBUFFERED": unbuffered}),
            stdout=full,
            stderr=stderr,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
