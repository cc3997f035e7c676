"""`token-vault kms setup` against KMS over HTTP: complete, repeated, killed and refused runs."""

from __future__ import annotations

import json
import subprocess
import uuid
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.support.process.home import COMMAND, environment, require_refusal, token_vault
from tests.support.process.prepared import PreparedCommand
from tests.support.stack.kms import REGION, Kms
from tests.support.stack.kms_faults import Cut, KmsFault
from tests.support.stack.kms_gate import ADMINISTRATOR
from tests.support.stack.loopback import LOOPBACK, free_port
from tests.support.waiting import eventually

ROLE = "arn:aws:iam::123456789012:role/token-vault"
OPERATIONS = ["Decrypt", "GenerateDataKey"]
CHANGES = {"CreateKey", "CreateAlias", "EnableKeyRotation", "CreateGrant"}
ACCOUNT = "arn:aws:iam::123456789012:root"
STRANGER = "arn:aws:iam::210987654321:root"


class Account:
    """KMS as the operator sees it, and an unused alias."""

    def __init__(self, kms: Kms, folder: Path) -> None:
        self.kms = kms
        self.folder = folder
        self.alias = f"alias/{uuid.uuid4()}"
        self.arguments: tuple[str, ...] = ("kms", "setup", "--alias", self.alias, "--role-arn", ROLE)
        self.settings = {
            "AWS_ENDPOINT_URL_KMS": kms.url,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "operator",
            "AWS_SECRET_ACCESS_KEY": "CANARY",
        }
        self.client: Any = boto3.client(
            "kms",
            region_name=REGION,
            endpoint_url=kms.url,
            aws_access_key_id=ADMINISTRATOR,
            aws_secret_access_key="none",
        )

    def new_key(self, **parameters: Any) -> dict[str, Any]:
        key: dict[str, Any] = self.client.create_key(**parameters)["KeyMetadata"]
        return key

    def key_with_alias(self, **parameters: Any) -> dict[str, Any]:
        key = self.new_key(**parameters)
        self.client.create_alias(AliasName=self.alias, TargetKeyId=key["KeyId"])
        return key

    def run(self, *more: str, **settings: str) -> subprocess.CompletedProcess[str]:
        done = token_vault(*self.arguments, *more, folder=self.folder, settings={**self.settings, **settings})
        assert "CANARY" not in done.stdout + done.stderr
        return done

    def key(self) -> dict[str, Any]:
        key: dict[str, Any] = self.client.describe_key(KeyId=self.alias)["KeyMetadata"]
        return key

    def keys(self) -> set[str]:
        pages = self.client.get_paginator("list_keys").paginate()
        return {key["KeyId"] for page in pages for key in page["Keys"]}

    def grants(self) -> list[dict[str, Any]]:
        grants: list[dict[str, Any]] = self.client.list_grants(KeyId=self.key()["KeyId"])["Grants"]
        return grants

    def require_complete(self) -> None:
        status = self.client.get_key_rotation_status(KeyId=self.key()["KeyId"])
        assert status["KeyRotationEnabled"] is True
        (grant,) = self.grants()
        assert (grant["GranteePrincipal"], grant["Operations"]) == (ROLE, OPERATIONS)
        assert grant["Constraints"] == {"EncryptionContextSubset": {"service": "pulseplan"}}


@pytest.fixture
def account(kms: Kms, tmp_path: Path) -> Account:
    kms.empty()  # a run looks at every key
    return Account(kms, tmp_path)


def _states(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.split()[0] for line in done.stdout.partition("\n\n")[0].splitlines()]


def test_a_run_creates_everything_and_a_second_changes_nothing(account: Account) -> None:
    before = account.keys()
    done = account.run()
    assert (done.returncode, done.stderr, _states(done)) == (0, "", ["done"] * 4)
    assert len(account.keys() - before) == 1
    account.require_complete()
    (rotation,) = [each for each in account.kms.requests if each.operation == "EnableKeyRotation"]
    assert rotation.parameters["RotationPeriodInDays"] == 365
    account.kms.forget_requests()
    again = account.run()
    assert (again.returncode, again.stderr, _states(again)) == (0, "", ["kept"] * 3)
    assert CHANGES.isdisjoint(account.kms.operations())
    assert len(account.keys() - before) == 1
    assert done.stdout.partition("\n\n")[2] == again.stdout.partition("\n\n")[2]


def test_the_policy_and_the_settings_are_printed_with_the_key_arn(account: Account) -> None:
    printed = account.run().stdout
    policy, _ = json.JSONDecoder().raw_decode(printed[printed.index("{") :])
    arn = account.key()["Arn"]
    assert policy == {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "TokenVault",
                "Effect": "Allow",
                "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
                "Resource": arn,
                "Condition": {"StringEquals": {"kms:EncryptionContext:service": "pulseplan"}},
            }
        ],
    }
    assert printed.splitlines()[-3:] == ["USE_KMS=true", f"KMS_KEY_ID={arn}", f"AWS_REGION={REGION}"]


def test_a_dry_run_prints_every_step_and_changes_nothing(account: Account) -> None:
    before = account.keys()
    done = account.run("--dry-run")
    assert (done.returncode, done.stderr, _states(done)) == (0, "", ["would"] * 4)
    assert CHANGES.isdisjoint(account.kms.operations())
    assert account.keys() == before
    account.client.create_alias(
        AliasName=account.alias, TargetKeyId=account.client.create_key()["KeyMetadata"]["KeyId"]
    )
    assert _states(account.run("--dry-run")) == ["kept", "would", "would"]
    assert CHANGES.isdisjoint(account.kms.operations())


@pytest.mark.parametrize(
    ("call", "arrives"),
    [
        ("CreateKey", True),
        ("CreateKey", False),
        ("CreateAlias", True),
        ("CreateAlias", False),
        ("CreateGrant", True),
    ],
)
def test_a_run_continues_after_a_killed_one(account: Account, call: str, arrives: bool) -> None:
    before = account.keys()
    # the process is killed while it waits for an answer, and its request arrives or is lost
    fault = KmsFault(delay_seconds=30, cut=None if arrives else Cut.BEFORE_THE_ANSWER)
    account.kms.faults.inject(fault, operation=call)
    process = PreparedCommand(
        COMMAND, account.arguments, folder=account.folder, environment=environment(account.settings)
    )
    eventually(lambda: call in account.kms.operations(), within_seconds=120)
    process.kill()
    account.kms.faults.clear()  # ends the delay
    if arrives:
        eventually(lambda: _is_done(account, call, before), within_seconds=120)
    done = account.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert len(account.keys() - before) == 1, "a second key would be paid for"
    account.require_complete()


def _is_done(account: Account, call: str, keys_before: set[str]) -> bool:
    if call == "CreateKey":
        return account.keys() > keys_before
    if call == "CreateAlias":
        return account.alias in {one["AliasName"] for one in account.client.list_aliases()["Aliases"]}
    return len(account.grants()) == 1


@pytest.mark.parametrize("when", Cut)
def test_create_key_is_not_repeated_after_a_lost_answer(account: Account, when: Cut) -> None:
    before = account.keys()
    account.kms.faults.cut(when, operation="CreateKey")
    done = account.run()
    assert done.returncode == 1
    assert "CreateKey" in done.stderr
    assert account.kms.operations().count("CreateKey") == 1
    account.kms.faults.clear()
    assert account.run().returncode == 0
    assert len(account.keys() - before) == 1
    account.require_complete()


def test_a_throttled_request_for_tags_is_repeated(account: Account) -> None:
    account.client.create_key()  # without an alias
    account.kms.faults.error("ThrottlingException", operation="ListResourceTags", times=2)
    done = account.run()
    assert (done.returncode, done.stderr) == (0, "")
    account.require_complete()


@pytest.mark.parametrize(
    ("change", "words"),
    [("disable_key", ("disabled", "enable-key")), ("schedule_key_deletion", ("deletion", "cancel-key-deletion"))],
)
def test_an_alias_of_an_unusable_key_is_refused(account: Account, change: str, words: tuple[str, ...]) -> None:
    account.run()
    before = account.keys()
    getattr(account.client, change)(KeyId=account.key()["KeyId"])
    account.kms.forget_requests()
    require_refusal(account.run(), 1, account.alias, *words)
    assert CHANGES.isdisjoint(account.kms.operations())
    assert account.keys() == before


def test_an_alias_of_an_asymmetric_key_is_refused(account: Account) -> None:
    key = account.client.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]
    account.client.create_alias(AliasName=account.alias, TargetKeyId=key["KeyId"])
    require_refusal(account.run(), 1, account.alias, "symmetric")


def _policy(*statements: dict[str, Any]) -> str:
    root = {"Effect": "Allow", "Principal": {"AWS": ACCOUNT}, "Action": "kms:*", "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": [root, *statements]})


def _allow(principal: Any, action: Any = "kms:Decrypt") -> dict[str, Any]:
    return {"Effect": "Allow", "Principal": principal, "Action": action, "Resource": "*"}


FOREIGN_STATEMENTS = {
    "everybody": _allow("*"),
    "everybody, as a map": _allow({"AWS": "*"}),
    "another account": _allow({"AWS": [ROLE, STRANGER]}, ["kms:CreateGrant"]),
    "another account's number": _allow({"AWS": "210987654321"}, "kms:GenerateData*"),
    "a service": _allow({"Service": "logs.amazonaws.com"}),
    "all but one": {"Effect": "Allow", "NotPrincipal": {"AWS": ROLE}, "Action": "kms:Decrypt", "Resource": "*"},
    "all but looking": {"Effect": "Allow", "Principal": {"AWS": STRANGER}, "NotAction": "kms:Get*", "Resource": "*"},
}


@pytest.mark.parametrize("name", ["alias", "KMS_KEY_ID"])
@pytest.mark.parametrize("statement", FOREIGN_STATEMENTS.values(), ids=FOREIGN_STATEMENTS)
def test_a_key_whose_policy_lets_strangers_in_is_refused(
    account: Account, statement: dict[str, Any], name: str
) -> None:
    key = account.key_with_alias(Policy=_policy(statement))
    settings = {}
    if name == "KMS_KEY_ID":
        account.arguments = ("kms", "setup", "--role-arn", ROLE)
        settings = {"KMS_KEY_ID": key["Arn"]}
    require_refusal(account.run(**settings), 1, key["Arn"], "open to others", "Nothing was changed")
    assert CHANGES.isdisjoint(account.kms.operations())


def test_harmless_statements_are_no_reason_to_refuse(account: Account) -> None:
    look = _allow({"AWS": STRANGER}, ["kms:DescribeKey", "kms:Get*"])
    deny = {"Effect": "Deny", "Principal": "*", "Action": "kms:ReplicateKey", "Resource": "*"}
    account.key_with_alias(Policy=_policy(look, deny, _allow({"AWS": ROLE})))
    assert _states(account.run()) == ["kept", "done", "done"]


def test_others_of_the_account_are_pointed_out(account: Account) -> None:
    other = "arn:aws:iam::123456789012:role/backup"
    key = account.key_with_alias(Policy=_policy(_allow({"AWS": other})))
    account.client.create_grant(KeyId=key["KeyId"], GranteePrincipal=other + "-2", Operations=["Decrypt"])
    done = account.run()
    assert (done.returncode, _states(done)) == (0, ["kept", "look", "look", "done", "done"])
    assert f"policy lets others use it: {other}\n" in done.stdout
    assert f"grants let others use it: {other}-2\n" in done.stdout


@pytest.mark.parametrize(
    "grantee", ["arn:aws:iam::210987654321:role/reader", "210987654321", "logs.amazonaws.com", "AROAEXAMPLE"]
)
def test_a_key_whose_grants_let_strangers_in_is_refused(account: Account, grantee: str) -> None:
    key = account.key_with_alias()
    account.client.create_grant(
        KeyId=key["KeyId"], GranteePrincipal=grantee, Operations=["DescribeKey", *OPERATIONS, "CreateGrant"]
    )
    require_refusal(account.run(), 1, key["Arn"], "open to others", grantee, "revoke-grant", "Nothing was changed")
    assert [grant["GranteePrincipal"] for grant in account.grants()] == [grantee]
    assert account.client.get_key_rotation_status(KeyId=key["KeyId"])["KeyRotationEnabled"] is False


def test_a_grant_to_look_at_the_key_is_no_reason_to_refuse(account: Account) -> None:
    key = account.key_with_alias()
    account.client.create_grant(KeyId=key["KeyId"], GranteePrincipal=STRANGER, Operations=["DescribeKey"])
    assert _states(account.run()) == ["kept", "done", "done"]


def test_imported_key_material_is_refused(account: Account) -> None:
    account.key_with_alias(Origin="EXTERNAL")
    require_refusal(account.run(), 1, account.alias, "EXTERNAL")
    assert CHANGES.isdisjoint(account.kms.operations())


def test_a_policy_that_cannot_be_read_is_a_refusal(account: Account) -> None:
    account.key_with_alias()
    account.kms.faults.error("AccessDeniedException", operation="GetKeyPolicy")
    require_refusal(account.run(), 1, "GetKeyPolicy")
    assert CHANGES.isdisjoint(account.kms.operations())


@pytest.mark.parametrize("how", ["policy", "grant", "origin", "Regions"])
def test_a_planted_key_with_the_tag_is_not_adopted(account: Account, how: str) -> None:
    other = "arn:aws:iam::123456789012:role/attacker"
    tags = [{"TagKey": "token-vault-alias", "TagValue": account.alias}]
    policy = _policy(_allow({"AWS": other})) if how == "policy" else _policy()
    more: dict[str, dict[str, Any]] = {"origin": {"Origin": "EXTERNAL"}, "Regions": {"MultiRegion": True}}
    planted = account.new_key(Tags=tags, Policy=policy, **more.get(how, {}))
    if how == "grant":
        account.client.create_grant(KeyId=planted["KeyId"], GranteePrincipal=other, Operations=["Decrypt"])
    done = account.run()
    assert (done.returncode, _states(done)) == (0, ["look", "done", "done", "done", "done"])
    assert planted["Arn"] in done.stdout
    assert account.key()["Arn"] != planted["Arn"]
    account.require_complete()


def test_the_key_of_kms_key_id_is_set_up_and_no_other_made(account: Account) -> None:
    key = account.new_key()
    before = account.keys()
    account.arguments = ("kms", "setup", "--role-arn", ROLE)
    done = account.run(KMS_KEY_ID=key["Arn"])
    assert (done.returncode, done.stderr, _states(done)) == (0, "", ["kept", "done", "done"])
    assert f"KMS_KEY_ID names the key {key['Arn']}" in done.stdout
    assert account.keys() == before
    assert account.client.get_key_rotation_status(KeyId=key["KeyId"])["KeyRotationEnabled"] is True
    assert f"KMS_KEY_ID={key['Arn']}" in done.stdout.splitlines()


def test_kms_key_id_may_name_a_new_alias_and_alias_wins(account: Account) -> None:
    key = account.new_key()
    assert account.run(KMS_KEY_ID=key["Arn"]).returncode == 0
    assert account.key()["Arn"] != key["Arn"], "--alias names another key"
    alias = f"alias/{uuid.uuid4()}"
    account.arguments = ("kms", "setup")
    assert account.run(KMS_KEY_ID=alias).returncode == 0
    assert account.client.describe_key(KeyId=alias)["KeyMetadata"]["KeyState"] == "Enabled"


@pytest.mark.parametrize("alias", ["alias/foo bar!", "alias/aws/foo", "alias/"])
def test_a_wrong_alias_in_kms_key_id_makes_no_key(account: Account, alias: str) -> None:
    before = account.keys()
    account.arguments = ("kms", "setup")
    require_refusal(account.run(KMS_KEY_ID=alias), 2, "KMS_KEY_ID", "alias/aws/")
    assert account.keys() == before


def test_a_kms_key_id_of_no_key_is_refused(account: Account) -> None:
    account.arguments = ("kms", "setup")
    missing = f"arn:aws:kms:{REGION}:123456789012:key/{uuid.uuid4()}"
    require_refusal(account.run(KMS_KEY_ID=missing), 1, "KMS_KEY_ID names no key")
    assert CHANGES.isdisjoint(account.kms.operations())


def test_the_printed_key_policy_lets_the_role_alone_use_it(account: Account) -> None:
    printed = account.run().stdout
    arn = account.key()["Arn"]
    assert f"aws kms put-key-policy --key-id {arn} --policy-name default --policy file://key-policy.json" in printed
    beginning = printed.index("{", printed.index("put-key-policy"))
    policy, _ = json.JSONDecoder().raw_decode(printed[beginning:])
    administration, use = policy["Statement"]
    assert administration["Principal"] == {"AWS": ACCOUNT}
    assert "kms:PutKeyPolicy" in administration["Action"], "without it nobody could change the policy again"
    forbidden = ("Decrypt", "Encrypt", "GenerateDataKey", "ReEncrypt", "CreateGrant", "Replicate", "*")
    assert [action for action in administration["Action"] if any(one in action for one in forbidden)] == []
    assert (use["Principal"], use["Action"]) == ({"AWS": ROLE}, ["kms:Decrypt", "kms:GenerateDataKey"])
    assert use["Condition"] == {"StringEquals": {"kms:EncryptionContext:service": "pulseplan"}}
    account.client.put_key_policy(KeyId=arn, PolicyName="default", Policy=json.dumps(policy))
    assert _states(account.run()) == ["kept"] * 3


def test_a_grant_of_encrypt_is_pointed_out(account: Account) -> None:
    account.run()
    account.client.create_grant(
        KeyId=account.key()["KeyId"],
        GranteePrincipal=ROLE,
        Operations=["Encrypt", *OPERATIONS],
        Constraints={"EncryptionContextSubset": {"service": "pulseplan"}},
    )
    assert _states(account.run()) == ["kept", "kept", "kept", "look"]


def test_a_grant_without_the_condition_is_not_enough(account: Account) -> None:
    account.run()
    (right,) = account.grants()
    account.client.revoke_grant(KeyId=account.key()["KeyId"], GrantId=right["GrantId"])
    account.client.create_grant(
        KeyId=account.key()["KeyId"], GranteePrincipal=ROLE, Name="pulseplan-token-vault", Operations=OPERATIONS
    )
    (wide,) = account.grants()
    done = account.run()
    assert (done.returncode, _states(done)) == (0, ["kept", "kept", "done", "look"])
    assert f"aws kms revoke-grant --key-id {account.key()['Arn']} --grant-id {wide['GrantId']}" in done.stdout
    account.client.revoke_grant(KeyId=account.key()["KeyId"], GrantId=wide["GrantId"])
    account.require_complete()


def test_without_a_role_there_is_no_grant(account: Account) -> None:
    account.arguments = ("kms", "setup", "--alias", account.alias)
    assert _states(account.run()) == ["done", "done", "done"]
    assert account.grants() == []


@pytest.mark.parametrize("call", ["DescribeKey", "CreateKey", "CreateGrant"])
def test_a_denied_call_is_named_in_one_line(account: Account, call: str) -> None:
    account.kms.faults.error("AccessDeniedException", operation=call)
    done = account.run()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: AWS KMS {call}: AccessDeniedException")
    assert "made up" not in done.stdout + done.stderr, "a text of KMS"
    assert ("create the symmetric key" in done.stdout) == (call not in {"DescribeKey", "CreateKey"}), (
        "a completed step is printed"
    )


def test_a_missing_region_is_one_line(account: Account) -> None:
    require_refusal(account.run(AWS_REGION=""), 2, "--region", "AWS_REGION")
    assert account.kms.operations() == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--alias", "alias/aws/pulseplan"),
        ("--role-arn", "arn:aws:sts::123456789012:assumed-role/token-vault/session"),
    ],
)
def test_a_wrong_name_is_refused_before_any_request(account: Account, arguments: tuple[str, str]) -> None:
    require_refusal(account.run(*arguments), 2, arguments[0])
    assert account.kms.operations() == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"AWS_ENDPOINT_URL_KMS": f"http://{LOOPBACK}:{free_port()}"}, ("DescribeKey", "cannot be reached")),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_EC2_METADATA_DISABLED": "true"}, ("DescribeKey", "credentials")),
    ],
)
def test_unreachable_kms_and_missing_credentials_are_one_line(
    account: Account, settings: dict[str, str], words: tuple[str, ...]
) -> None:
    if "AWS_ACCESS_KEY_ID" in settings:
        del account.settings["AWS_ACCESS_KEY_ID"], account.settings["AWS_SECRET_ACCESS_KEY"]
        settings = {name: value for name, value in settings.items() if value}
    require_refusal(account.run(**settings), 1, *words)


def test_the_env_file_gives_the_endpoint_and_no_credentials(account: Account) -> None:
    """The credentials of the service must not be used for an administrator's calls."""
    place = {name: account.settings.pop(name) for name in ("AWS_ENDPOINT_URL_KMS", "AWS_REGION")}
    lines = [f"{name}={value}\n" for name, value in place.items()]
    (account.folder / ".env").write_text("".join(lines))
    assert account.run("--dry-run").returncode == 0
    assert "DescribeKey" in account.kms.operations()
    del account.settings["AWS_ACCESS_KEY_ID"], account.settings["AWS_SECRET_ACCESS_KEY"]
    (account.folder / ".env").write_text("".join([*lines, "AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=CANARY\n"]))
    require_refusal(account.run("--dry-run", AWS_EC2_METADATA_DISABLED="true"), 1, "credentials")
