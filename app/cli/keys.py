"""`token-vault keys`: master keys."""

from __future__ import annotations

import base64
import secrets

import click

from app.security.keyring import RECOMMENDED_KEY_BYTES


@click.group()
def keys() -> None:
    """Master keys for local encryption."""


@keys.command()
def generate() -> None:
    """Print a fresh 32-byte master key in base64, ready for TOKEN_ENCRYPTION_KEY."""
    click.echo(new_master_key())


def new_master_key() -> str:
    return base64.b64encode(secrets.token_bytes(RECOMMENDED_KEY_BYTES)).decode()
