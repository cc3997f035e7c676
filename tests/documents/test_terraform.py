"""deploy/aws makes what `token-vault kms setup` makes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import boto3
import pytest

from app.cli.kms import _DEFAULT_ALIAS
from app.security.kms.key_access import least_privilege_policy, restrictive_key_policy
from app.security.kms.setup import ROTATION_DAYS, KmsSetup
from tests.support.paths import ROOT
from tests.support.stack.kms import REGION, Kms
from tests.support.stack.kms_gate import ADMINISTRATOR

FOLDER = ROOT / "deploy" / "aws"
ACCOUNT = "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/token-vault"
KEY = f"arn:aws:kms:eu-west-1:{ACCOUNT}:key/11111111-2222-4333-8444-555555555555"
CONFIGURATION: dict[str, Any] = json.loads((FOLDER / "main.tf.json").read_text())
VALUES = {
    "aws_iam_role.vault.arn": ROLE,
    "aws_kms_key.tokens.arn": KEY,
    "data.aws_caller_identity.this.account_id": ACCOUNT,
    "data.aws_partition.this.partition": "aws",
    "var.alias": CONFIGURATION["variable"]["alias"]["default"],
}


def _local(name: str) -> Any:
    """Return a local value as `jsonencode(local.name)` gives it."""
    text = json.dumps(CONFIGURATION["locals"][name])
    return json.loads(re.sub(r"\$\{([^}]+)\}", lambda found: VALUES[found[1]], text))


def _resource(kind: str) -> dict[str, Any]:
    (resource,) = CONFIGURATION["resource"][kind].values()
    found: dict[str, Any] = resource
    return found


def test_the_policies_are_those_that_setup_prints() -> None:
    assert _resource("aws_iam_role_policy")["policy"] == "${jsonencode(local.role_policy)}"
    assert _resource("aws_kms_key")["policy"] == "${jsonencode(local.key_policy)}"
    assert _local("role_policy") == least_privilege_policy(KEY)
    assert _local("key_policy") == restrictive_key_policy(account=ACCOUNT, partition="aws", role_arn=ROLE)


def test_the_key_its_alias_and_rotation_are_those_of_setup(kms: Kms) -> None:
    kms.empty()
    client: Any = boto3.client(
        "kms",
        region_name=REGION,
        endpoint_url=kms.url,
        aws_access_key_id=ADMINISTRATOR,
        aws_secret_access_key="none",
    )
    work = KmsSetup(client=client, alias=_DEFAULT_ALIAS)
    assert len(list(work.steps())) == 3
    made = client.describe_key(KeyId=_DEFAULT_ALIAS)["KeyMetadata"]
    key = _resource("aws_kms_key")
    assert {
        "description": made["Description"],
        "customer_master_key_spec": made["KeySpec"],
        "multi_region": made.get("MultiRegion", False),
        "enable_key_rotation": client.get_key_rotation_status(KeyId=made["KeyId"])["KeyRotationEnabled"],
        "rotation_period_in_days": ROTATION_DAYS,
    }.items() <= key.items()
    tags = client.list_resource_tags(KeyId=made["KeyId"])["Tags"]
    declared = {
        name: re.sub(r"\$\{(.+)\}", lambda found: VALUES[found[1]], value) for name, value in key["tags"].items()
    }
    assert declared == {tag["TagKey"]: tag["TagValue"] for tag in tags}
    assert _resource("aws_kms_alias") == {"name": "${var.alias}", "target_key_id": "${aws_kms_key.tokens.key_id}"}
    assert VALUES["var.alias"] == _DEFAULT_ALIAS


def test_nothing_refers_to_what_is_not_declared() -> None:
    text = json.dumps(CONFIGURATION)
    for kind, name in re.findall(r"\b(?:var|local)\.([a-z_]+)()", text):
        assert kind in CONFIGURATION["variable"] or kind in CONFIGURATION["locals"], name
    for kind, name in re.findall(r"\b(aws_[a-z_]+)\.([a-z]+)\.", text):
        assert name in CONFIGURATION["resource"].get(kind, {}) or name in CONFIGURATION["data"].get(kind, {})
    assert _resource("aws_kms_key")["lifecycle"] == {"prevent_destroy": True}, "its loss is the loss of every token"


@pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")
def test_only_the_pods_of_the_service_account_take_the_role(tmp_path: Path) -> None:
    """Terraform itself evaluates the trust policy; without resources it needs no provider."""
    parts = {name: CONFIGURATION[name] for name in ("variable", "locals")}
    parts["locals"] = {name: parts["locals"][name] for name in ("issuer", "trust_policy")}
    parts["output"] = {"policy": {"value": "${local.trust_policy}"}}
    (tmp_path / "main.tf.json").write_text(json.dumps(parts))
    issuer = "oidc.eks.eu-west-1.amazonaws.com/id/EXAMPLE"
    terraform = ["terraform", f"-chdir={tmp_path}"]
    provider = f"oidc_provider_arn=arn:aws:iam::{ACCOUNT}:oidc-provider/{issuer}"
    for words in (["apply", "-auto-approve", "-input=false", f"-var={provider}"], ["output", "-json", "policy"]):
        done = subprocess.run([*terraform, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    (statement,) = json.loads(done.stdout)["Statement"]
    assert statement["Condition"]["StringEquals"] == {
        f"{issuer}:aud": "sts.amazonaws.com",
        f"{issuer}:sub": "system:serviceaccount:token-vault:token-vault",
    }
