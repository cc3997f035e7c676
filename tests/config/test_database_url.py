"""DATABASE_URL: what is accepted, and that an error never shows it."""

from __future__ import annotations

import ssl

import pytest

from app.config.database_url import DatabaseUrlError, parse_database_url

_GOOD = "postgresql://vault:s3cr3t@db.example.org/postgres"


def test_tls_is_verified_unless_the_url_says_otherwise() -> None:
    context = parse_database_url(_GOOD).tls()
    assert isinstance(context, ssl.SSLContext)
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    weaker = parse_database_url(f"{_GOOD}?sslmode=require")
    assert (weaker.tls(), weaker.verifies_server) == ("require", False)


@pytest.mark.parametrize(
    ("netloc", "hosts"),
    [
        ("u:p@h", [("h", 5432)]),
        ("u:p@h1:1,h2", [("h1", 1), ("h2", 5432)]),
        ("u@[::1]:6543", [("::1", 6543)]),
    ],
)
def test_hosts_and_ports_are_parsed(netloc: str, hosts: list[tuple[str, int]]) -> None:
    assert list(parse_database_url(f"postgres://{netloc}/d").hosts) == hosts


@pytest.mark.parametrize(
    "url",
    [
        "mysql://vault:s3cr3t@h/d",
        "vault:s3cr3t@h",
        "postgresql://vault:s3cr3t@h:port/d",
        "postgresql:///d",
        f"{_GOOD}?pgbouncer=true",
        f"{_GOOD}?s3cr3t",
        f"{_GOOD}?sslmode=s3cr3t",
        f"{_GOOD}?sslmode=require&sslmode=disable",
        f"{_GOOD}?target_session_attrs=any",
        f"{_GOOD} ",
        "postgresql://vault:s3cr3t@" + ",".join("abcdefghi") + "/d",
    ],
)
def test_a_wrong_url_is_refused_without_its_value(url: str) -> None:
    with pytest.raises(DatabaseUrlError) as caught:
        parse_database_url(url)
    assert "s3cr3t" not in str(caught.value)
    assert "s3cr3t" not in repr(parse_database_url(_GOOD))


def test_a_file_that_cannot_be_used_is_reported() -> None:
    with pytest.raises(DatabaseUrlError, match="sslrootcert"):
        parse_database_url(f"{_GOOD}?sslrootcert=/does/not/exist.pem").tls()
