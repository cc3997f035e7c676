"""Setup of AWS KMS: the key, its alias, rotation and the role's grant.

For `token-vault kms setup`, with an administrator's credentials. The service calls none of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from app.errors import KeyDenied
from app.security.kms.errors import AWS_ERRORS, error_name
from app.security.kms.key_access import (
    ENCRYPTION_CONTEXT_SERVICE,
    OPERATIONS,
    VAULT_CONTEXT,
    KeyAccess,
    access_by_grants,
    access_by_policy,
)

GRANT_NAME: Final = "pulseplan-token-vault"
ROTATION_DAYS: Final = 365
# the alias that a key is meant for; set by CreateKey, so a key is found again if the run ends before CreateAlias
ALIAS_TAG: Final = "token-vault-alias"
_CONSTRAINTS: Final = {"EncryptionContextSubset": VAULT_CONTEXT}
_TAG_ATTEMPTS: Final = 6
_TAG_PAUSE_SECONDS: Final = 0.25
_WHY: Final = {
    "AccessDeniedException": "these credentials may not do that",
    "ConnectTimeoutError": "KMS cannot be reached",
    "EndpointConnectionError": "KMS cannot be reached",
    "ExpiredTokenException": "these credentials have expired",
    "InvalidArnException": "KMS finds nothing of that name; check --role-arn and KMS_KEY_ID",
    "NoCredentialsError": "no AWS credentials were found in the usual places",
    "UnrecognizedClientException": "AWS does not know these credentials",
}


class StepState(StrEnum):
    """Outcome of a step; `look` marks something that a person has to change."""

    DONE = "done"
    KEPT = "kept"
    LOOK = "look"


@dataclass(frozen=True, slots=True)
class Step:
    """One part of the setup and its outcome; in a dry run the outcome that it would have."""

    state: StepState
    what: str


class KmsSetup:
    """Creates the key, its alias, its rotation and the application role's grant, each only if it is missing.

    Without `key_id` the key is the one that `alias` names, or a new one. An existing key is adopted only if it is
    enabled, symmetric, managed by the customer, made of KMS's own material, and neither its policy nor a grant lets
    another account use it.
    `client` is boto3's KMS client with an administrator's credentials and without retries, because a repeated CreateKey
    makes a second key. The next run continues one that was interrupted. `dry_run` changes nothing. Methods raise
    `KeyDenied` with the name of the call and of the AWS error.
    """

    def __init__(
        self,
        *,
        client: Any,  # noqa: ANN401  boto3's clients have no static type
        alias: str,
        key_id: str | None = None,
        role_arn: str | None = None,
        dry_run: bool = False,
    ) -> None:
        self._client = client
        self._alias = alias
        self._key_id = key_id
        self._role_arn = role_arn
        self._dry_run = dry_run
        self.key_arn: str | None = None  # known after the first step, unless a dry run found none

    def steps(self) -> Iterator[Step]:
        """Yield each step as soon as it is done."""
        yield from self._key()
        yield self._rotation()
        if self._role_arn is not None:
            yield from self._grant(self._role_arn)

    def _key(self) -> Iterator[Step]:
        key = self._named()
        if key is not None:
            self.key_arn = key["Arn"]
            name = self._alias if self._key_id is None else "KMS_KEY_ID"
            yield Step(StepState.KEPT, f"{name} names the key {key['Arn']}")
            yield from self._others_with_access(key)
            return
        for candidate in self._left_behind():
            if self._is_untouched(candidate):
                key = candidate
                break
            yield Step(
                StepState.LOOK,
                f"the key {candidate['Arn']} has the tag of this alias, but others may use it, its material is "
                "imported, or it may have copies in other Regions: it is not taken. Delete it if it is yours",
            )
        if key is not None:
            yield Step(StepState.KEPT, f"the key {key['Arn']}, which an earlier run left without its alias")
        elif self._dry_run:
            yield Step(StepState.DONE, f"create a symmetric key in {self._client.meta.region_name}")
        else:
            with _named("CreateKey"):
                key = self._client.create_key(
                    Description="PulsePlan token vault: wraps the data keys of users' tokens",
                    Tags=[
                        {"TagKey": "service", "TagValue": ENCRYPTION_CONTEXT_SERVICE},
                        {"TagKey": ALIAS_TAG, "TagValue": self._alias},
                    ],
                )["KeyMetadata"]
            yield Step(StepState.DONE, f"create the symmetric key {key['Arn']}")
        if key is not None:
            self.key_arn = key["Arn"]
        if key is not None and not self._dry_run:
            with _named("CreateAlias"):
                self._client.create_alias(AliasName=self._alias, TargetKeyId=key["KeyId"])
        yield Step(StepState.DONE, f"give it the alias {self._alias}")

    def _named(self) -> dict[str, Any] | None:
        """Return the metadata of the key that has the name, or `None` if the alias does not exist yet."""
        name = self._key_id or self._alias
        with _named("DescribeKey"):
            try:
                key: dict[str, Any] = self._client.describe_key(KeyId=name)["KeyMetadata"]
            except self._client.exceptions.NotFoundException:
                if self._key_id is None:
                    return None
                raise KeyDenied(
                    "KMS_KEY_ID names no key here; check it and the Region, or give --alias. Nothing was changed"
                ) from None
        wrong, remedy = None, "Choose another alias or KMS_KEY_ID"
        if key["KeyState"] != "Enabled":
            wrong = state_in_words(key["KeyState"])
            remedy = f"{remedy_for(key['KeyState'], key['Arn'])}, or choose another alias or KMS_KEY_ID"
        elif not wraps_data_keys(key):
            wrong = "no symmetric encryption key of your own"
        elif not _has_material_of_kms(key):
            wrong = f"of the origin {key.get('Origin')}: its material exists outside AWS KMS"
        elif strangers := self._access_by_policy(key).foreign:
            wrong = f"open to others: its policy lets {', '.join(strangers)} use it"
            remedy = "Narrow its policy with aws kms put-key-policy, or choose another alias or KMS_KEY_ID"
        elif strangers := self._access_by_grants(key).foreign:
            wrong = f"open to others: its grants let {', '.join(strangers)} use it"
            remedy = "Revoke them with aws kms revoke-grant, or choose another alias or KMS_KEY_ID"
        if wrong is not None:
            raise KeyDenied(f"{name} names the key {key['Arn']}, which is {wrong}. {remedy}. Nothing was changed")
        return key

    def _access_by_policy(self, key: dict[str, Any]) -> KeyAccess:
        with _named("GetKeyPolicy"):
            policy = self._client.get_key_policy(KeyId=key["Arn"], PolicyName="default")["Policy"]
        try:
            return access_by_policy(policy, account=key["AWSAccountId"], role_arn=self._role_arn)
        except (ValueError, TypeError, AttributeError):
            raise KeyDenied(f"the policy of the key {key['Arn']} cannot be parsed. Nothing was changed") from None

    def _access_by_grants(self, key: dict[str, Any]) -> KeyAccess:
        with _named("ListGrants"):
            grants = self._listed("list_grants", "Grants", KeyId=key["Arn"])
        return access_by_grants(grants, account=key["AWSAccountId"], role_arn=self._role_arn)

    def _others_with_access(self, key: dict[str, Any]) -> Iterator[Step]:
        for kind, access in (("policy lets", self._access_by_policy(key)), ("grants let", self._access_by_grants(key))):
            if access.local:
                yield Step(StepState.LOOK, f"the key's {kind} others use it: {', '.join(access.local)}")
        if key.get("MultiRegion"):
            yield Step(StepState.LOOK, "the key has copies in other Regions, or may have: each has a policy of its own")

    def _is_untouched(self, key: dict[str, Any]) -> bool:
        """Whether nobody else may use the key, and its material is of KMS and in one Region; a tag proves nothing."""
        if not _has_material_of_kms(key) or key.get("MultiRegion"):
            return False
        return self._access_by_policy(key) == self._access_by_grants(key) == KeyAccess(foreign=(), local=())

    def _left_behind(self) -> Iterator[dict[str, Any]]:
        """Yield the metadata of keys that a run may have left because it ended before CreateAlias."""
        with _named("ListAliases"):
            aliased = {alias.get("TargetKeyId") for alias in self._listed("list_aliases", "Aliases")}
        with _named("ListKeys"):
            ids = [key["KeyId"] for key in self._listed("list_keys", "Keys") if key["KeyId"] not in aliased]
        for key_id in ids:
            if self._is_meant_for_alias(key_id):
                with _named("DescribeKey"):
                    key: dict[str, Any] = self._client.describe_key(KeyId=key_id)["KeyMetadata"]
                if key["KeyState"] == "Enabled" and wraps_data_keys(key):
                    yield key

    def _is_meant_for_alias(self, key_id: str) -> bool:
        for attempt in range(_TAG_ATTEMPTS):
            with _named("ListResourceTags"):
                try:
                    tags = self._client.list_resource_tags(KeyId=key_id)["Tags"]
                except self._client.exceptions.ClientError as error:
                    name = error_name(error)
                    if name == "AccessDeniedException":
                        return False  # setup made no key whose policy denies this
                    if name != "ThrottlingException" or attempt == _TAG_ATTEMPTS - 1:
                        raise
                    time.sleep(_TAG_PAUSE_SECONDS * 2**attempt)  # the account has ten of these a second
                    continue
                return {"TagKey": ALIAS_TAG, "TagValue": self._alias} in tags
        raise AssertionError

    def _rotation(self) -> Step:
        """Switch on yearly rotation. KMS keeps old key material, so nothing has to be wrapped again."""
        if self.key_arn is not None:
            with _named("GetKeyRotationStatus"):
                status = self._client.get_key_rotation_status(KeyId=self.key_arn)
            if status["KeyRotationEnabled"]:
                days = status.get("RotationPeriodInDays", ROTATION_DAYS)
                return Step(StepState.KEPT, f"rotation is on, every {days} days")
            if not self._dry_run:
                with _named("EnableKeyRotation"):
                    self._client.enable_key_rotation(KeyId=self.key_arn, RotationPeriodInDays=ROTATION_DAYS)
        return Step(StepState.DONE, f"switch rotation on, every {ROTATION_DAYS} days")

    def _grant(self, role_arn: str) -> Iterator[Step]:
        """Grant the role the two operations, for the vault's encryption context only."""
        condition = f"where the encryption context has service = {ENCRYPTION_CONTEXT_SERVICE}"
        words = f"grant {', '.join(OPERATIONS)} to {role_arn}, {condition}"
        grants = [] if self.key_arn is None else self._grants_of(role_arn, self.key_arn)
        fitting = [grant for grant in grants if _is_exact(grant)]
        if fitting:
            yield Step(StepState.KEPT, words)
        else:
            if self.key_arn is not None and not self._dry_run:
                with _named("CreateGrant"):
                    self._client.create_grant(
                        KeyId=self.key_arn,
                        GranteePrincipal=role_arn,
                        Name=GRANT_NAME,
                        Operations=list(OPERATIONS),
                        Constraints=_CONSTRAINTS,
                    )
            yield Step(StepState.DONE, words)
        for grant in grants:
            if not _is_limited(grant):
                remedy = f"aws kms revoke-grant --key-id {self.key_arn} --grant-id {grant['GrantId']}"
                yield Step(StepState.LOOK, f"the role has a wider grant too: {remedy}")

    def _grants_of(self, role_arn: str, key_arn: str) -> list[dict[str, Any]]:
        with _named("ListGrants"):
            grants = self._listed("list_grants", "Grants", KeyId=key_arn)
            return [grant for grant in grants if grant["GranteePrincipal"] == role_arn]

    def _listed(self, operation: str, member: str, **parameters: str) -> list[dict[str, Any]]:
        pages = self._client.get_paginator(operation).paginate(**parameters)
        return [item for page in pages for item in page[member]]


def wraps_data_keys(key: dict[str, Any]) -> bool:
    """Whether the metadata is that of a symmetric encryption key that the customer manages."""
    spec = key.get("KeySpec") or key.get("CustomerMasterKeySpec")
    return spec == "SYMMETRIC_DEFAULT" and key.get("KeyManager") == "CUSTOMER"


def _has_material_of_kms(key: dict[str, Any]) -> bool:
    """Whether KMS made the key's material; copies of imported material exist elsewhere."""
    return key.get("Origin") == "AWS_KMS"


def state_in_words(state: str) -> str:
    """Describe a `KeyState` other than `Enabled`."""
    return {"Disabled": "disabled", "PendingDeletion": "scheduled for deletion"}.get(state, f"in the state {state}")


def remedy_for(state: str, key_id: str) -> str:
    """Return the command that makes a key in this `KeyState` usable again."""
    enable = f"aws kms enable-key --key-id {key_id}"
    return {
        "Disabled": f"Enable it with {enable}",
        "PendingDeletion": f"Keep it with aws kms cancel-key-deletion --key-id {key_id}, then {enable}",
    }.get(state, "See the key in the AWS console")


def _is_exact(grant: dict[str, Any]) -> bool:
    return (
        grant.get("Name") == GRANT_NAME
        and set(grant["Operations"]) == set(OPERATIONS)
        and grant.get("Constraints") == _CONSTRAINTS
    )


def _is_limited(grant: dict[str, Any]) -> bool:
    pairs = [pair for pairs in grant.get("Constraints", {}).values() for pair in pairs.items()]
    return ("service", ENCRYPTION_CONTEXT_SERVICE) in pairs and set(grant["Operations"]) <= set(OPERATIONS)


@contextmanager
def _named(call: str) -> Iterator[None]:
    try:
        yield
    except AWS_ERRORS as error:
        name = error_name(error)
        why = f": {_WHY[name]}" if name in _WHY else ""
        raise KeyDenied(f"AWS KMS {call}: {name}{why}") from None
