"""`token-vault kms`: set up the key in AWS KMS and estimate its cost."""

from __future__ import annotations

import json
import re
from decimal import Decimal

import click

from app.cli.errors import UsageError
from app.config.settings import Settings, SettingsError, load_admin_connection
from app.errors import KeyDenied
from app.observability.readiness import PROBE_SECONDS
from app.security.kms.connection import ConnectionSettingsError
from app.security.kms.cost import (
    DOLLARS_PER_10_000_REQUESTS,
    DOLLARS_PER_KEY,
    FREE_REQUESTS,
    Usage,
    monthly_bill,
    price_of,
    requests_of_checks,
)
from app.security.kms.key_access import least_privilege_policy, restrictive_key_policy
from app.security.kms.setup import Step

_ALIAS = re.compile(r"alias/(?!aws/)[A-Za-z0-9/_-]{1,250}")
_DEFAULT_ALIAS = "alias/pulseplan-token-vault"
_PRINCIPAL = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:(role|user)/[A-Za-z0-9+=,.@_/-]{1,576}")
_ASSUMED = """\
Prices: ${key} for the key, ${request} per 10,000 requests after {free:,} free ones in the account (US East,
N. Virginia; other Regions may differ). Each of the first two yearly rotations of a key adds $1.00 a month.
Visits: a user's operations come {visit:,} at a time within {age:,} seconds. The first one at each replica sends a
request to KMS; a visit that reads an older token and stores one sends a second request. Far apart: for each user every
{age:,} seconds, each replica sends one request to read and one to store. Not counted: reads of tokens that another
replica has just stored, retries, and keys in KMS_PREVIOUS_KEY_IDS. A month has 30 days, and DATA_KEY_CACHE_SIZE is
large enough for all users active within {age:,} seconds."""
_MAX_AGE_SECONDS: int = Settings.model_fields["data_key_max_age_seconds"].default


@click.group()
def kms() -> None:
    """Set up the key in AWS KMS, and estimate its cost."""


@kms.command(short_help="Create the KMS key and whatever else is missing.")
@click.option(
    "--alias",
    metavar="ALIAS",
    help=f"Alias of the key.  [default: the key that KMS_KEY_ID names, else {_DEFAULT_ALIAS}]",
)
@click.option("--role-arn", metavar="ARN", help="IAM role of the vault. Without it no grant is created.")
@click.option("--region", metavar="REGION", help="AWS Region.  [default: AWS_REGION, or the profile's]")
@click.option("--dry-run", is_flag=True, help="Print the steps and change nothing.")
def setup(alias: str | None, role_arn: str | None, region: str | None, dry_run: bool) -> None:  # noqa: FBT001  click's way
    """Create the key, its alias, yearly rotation and a grant for the vault's role, each only if it is missing.

    An existing key is used only if it is enabled and symmetric, KMS made its material, and neither its policy nor a
    grant lets another account use it.

    Prints each step, marked done, kept (already there), would (dry run: it would be done) or look (you must change
    something yourself); then the IAM policy for the role, a key policy that lets the role alone use the key, and the
    settings for .env. Safe to run again.

    Needs an administrator's AWS credentials in a place where boto3 finds them. Credentials in .env belong to the vault
    and are ignored. KMS_KEY_ID, AWS_REGION and AWS_ENDPOINT_URL_KMS are read from the environment or .env.

    Exit codes: 0 no step failed; those marked look still need you, 1 KMS refused a step, 2 an option or a setting is
    wrong.
    """
    from app.security.kms.boto_clients import open_kms_admin_client  # noqa: PLC0415  imports boto3, which is slow
    from app.security.kms.setup import KmsSetup  # noqa: PLC0415  imports boto3, which is slow

    if alias is not None:
        _require_alias(alias, "--alias")
    if role_arn is not None and not _PRINCIPAL.fullmatch(role_arn):
        raise UsageError(
            "--role-arn must be the ARN of a role or a user, like arn:aws:iam::123456789012:role/token-vault"
        )
    try:
        connection = load_admin_connection(region=region)
        client = open_kms_admin_client(connection)
    except (SettingsError, ConnectionSettingsError) as error:
        raise UsageError(str(error)) from None
    key_id = connection.key_id if alias is None else None
    if key_id is not None and key_id.startswith("alias/"):
        _require_alias(key_id, "KMS_KEY_ID")
        alias, key_id = key_id, None
    work = KmsSetup(client=client, alias=alias or _DEFAULT_ALIAS, key_id=key_id, role_arn=role_arn, dry_run=dry_run)
    try:
        for step in work.steps():
            _print_step(step, dry_run=dry_run)
    except KeyDenied as error:
        raise click.ClickException(error.detail) from None
    key_arn = work.key_arn or f"arn:aws:kms:{client.meta.region_name}:ACCOUNT:key/ID"
    _print_policies(key_arn, role_arn)
    click.echo(f"\nFor .env:\n\nUSE_KMS=true\nKMS_KEY_ID={key_arn}\nAWS_REGION={client.meta.region_name}")


def _print_policies(key_arn: str, role_arn: str | None) -> None:
    _, partition, _, _, account, _ = key_arn.split(":")
    role_arn = role_arn or f"arn:{partition}:iam::{account}:role/ROLE"
    click.echo("\nThe complete IAM policy for the vault's role:\n")
    click.echo(json.dumps(least_privilege_policy(key_arn), indent=2))
    click.echo(
        "\nA key policy that lets this role alone use the key; under the default one, IAM policies decide who may.\n"
        "Save it as key-policy.json, and set it with\n"
        f"aws kms put-key-policy --key-id {key_arn} --policy-name default --policy file://key-policy.json\n"
    )
    key_policy = restrictive_key_policy(account=account, partition=partition, role_arn=role_arn)
    click.echo(json.dumps(key_policy, indent=2))


def _require_alias(alias: str, setting: str) -> None:
    if not _ALIAS.fullmatch(alias):
        raise UsageError(
            f"the alias in {setting} must be alias/ and a name of letters, digits, /, _ and -, and not start with "
            "alias/aws/"
        )


def _print_step(step: Step, *, dry_run: bool) -> None:
    state = "would" if dry_run and step.state == "done" else step.state.value
    click.echo(f"{state.ljust(5)}  {step.what}")


@kms.command(short_help="Estimate the monthly bill.")
@click.option("--users", type=click.IntRange(1), metavar="N", required=True, help="Users with tokens.")
@click.option(
    "--operations-per-user",
    type=click.IntRange(1),
    metavar="N",
    required=True,
    help="Stores and reveals of one user in a month.",
)
@click.option(
    "--operations-per-visit",
    type=click.IntRange(1),
    metavar="N",
    default=20,
    show_default=True,
    help="Operations of one user within --max-age seconds.",
)
@click.option(
    "--replicas", type=click.IntRange(1, 1000), metavar="N", default=1, show_default=True, help="Serving processes."
)
@click.option(
    "--max-age",
    "max_age_seconds",
    type=click.IntRange(1, 86_400),
    metavar="SECONDS",
    default=_MAX_AGE_SECONDS,
    show_default=True,
    help="Value of DATA_KEY_MAX_AGE_SECONDS.",
)
def cost(users: int, operations_per_user: int, operations_per_visit: int, replicas: int, max_age_seconds: int) -> None:
    """Estimate the monthly bill of AWS KMS, with and without the data-key cache. Sends no request.

    Exit codes: 0 printed, 2 an option is wrong.
    """
    usage = Usage(users, operations_per_user, max_age_seconds, replicas)
    click.echo(
        f"{users:,} users with one token and {operations_per_user:,} operations each a month; replicas: {replicas}\n"
    )
    _print_bill("one request per operation", usage.operations)
    _print_bill(f"cache, visits of {operations_per_visit:,}", usage.requests_in_visits(operations_per_visit))
    _print_bill("cache, operations far apart", usage.requests_far_apart())
    checks = requests_of_checks(replicas=replicas, probe_seconds=int(PROBE_SECONDS), max_age_seconds=max_age_seconds)
    _print_line("added by /readyz checks", checks, price_of(checks))
    click.echo("")
    click.echo(
        _ASSUMED.format(
            key=DOLLARS_PER_KEY,
            request=DOLLARS_PER_10_000_REQUESTS,
            free=FREE_REQUESTS,
            visit=operations_per_visit,
            age=max_age_seconds,
        )
    )


def _print_bill(name: str, requests: int) -> None:
    bill = monthly_bill(requests)
    _print_line(name, bill.requests, bill.dollars)


def _print_line(name: str, requests: int, dollars: Decimal) -> None:
    click.echo(f"  {name:<30}  {requests:>17,} requests  ${dollars:>14,.2f}")
