"""What surrounds a command is wrong: it says so in one line, and calls nothing a defect of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.support.process.home import COMMAND, COMMAND_SECONDS, environment, new_home, token_vault

USES_THE_STORE: Final = (
    ("serve",),
    ("serve", "--workers", "2"),
    ("encryption", "status", "--json"),
    ("rewrap",),
    ("keys", "retire", "1"),
)
PRINTS: Final = (("keys", "generate"), ("kms", "cost", "--users", "1", "--operations-per-user", "1"), ("--help",))
FULL: Final = "/dev/full"


def _supabase(folder: Path, authorities: Path) -> dict[str, str]:
    return {
        **new_home(folder).settings,
        "TOKEN_STORE": "supabase",
        "SUPABASE_URL": "https://127.0.0.1:1",
        "SUPABASE_SERVICE_KEY": "key",
        "SSL_CERT_FILE": str(authorities),
    }


@pytest.mark.parametrize("command", USES_THE_STORE, ids=" ".join)
def test_authorities_that_cannot_be_read_are_named_by_their_setting(tmp_path: Path, command: tuple[str, ...]) -> None:
    missing, text = tmp_path / "missing.pem", tmp_path / "text.pem"
    text.write_text("no certificate")
    for file, reason in ((missing, "cannot be read: No such file or directory"), (text, "holds no certificate in PEM")):
        done = token_vault(*command, folder=tmp_path, settings=_supabase(tmp_path, file))
        message = f"Error: SSL_CERT_FILE: the file that it names {reason}\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_doctor_names_authorities_that_cannot_be_read_and_checks_the_rest(tmp_path: Path) -> None:
    done = token_vault("doctor", folder=tmp_path, settings=_supabase(tmp_path, tmp_path / "missing.pem"))
    message = "store         SSL_CERT_FILE: the file that it names cannot be read: No such file or directory"
    assert (done.returncode, done.stderr) == (1, "")
    assert [line for line in done.stdout.splitlines() if line.startswith("FAIL")] == [f"FAIL  {message}"]


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("command", PRINTS, ids=" ".join)
def test_an_output_that_takes_nothing_is_told_on_the_other_one(
    tmp_path: Path, command: tuple[str, ...], unbuffered: str
) -> None:
    settings = environment({"PYTHONUNBUFFERED": unbuffered})
    with open(FULL, "wb") as full:  # noqa: PTH123  a device, which nothing is made or locked beside
        for errors in (subprocess.PIPE, full):
            done = subprocess.run(
                [COMMAND, *command],
                cwd=tmp_path,
                env=settings,
                stdout=full,
                stderr=errors,
                text=True,
                timeout=COMMAND_SECONDS,
                check=False,
            )
            assert done.returncode == 2
            if errors == subprocess.PIPE:
                message = "Error: what there is to say cannot be printed: No space left on device\n"
                assert done.stderr == message
