"""Who may use a KMS key: the policies that the vault needs, and a look at the policy and the grants of an existing key.

A key policy is a JSON document of IAM's policy language:
<https://docs.aws.amazon.com/kms/latest/developerguide/key-policies.html>.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

ENCRYPTION_CONTEXT_SERVICE: Final = "pulseplan"
VAULT_CONTEXT: Final = {"service": ENCRYPTION_CONTEXT_SERVICE}
OPERATIONS: Final = ("Decrypt", "GenerateDataKey")
# operations of an administrator that neither use the key nor let anybody else use it, except by a new policy
_ADMINISTRATION: Final = (
    *("CancelKeyDeletion", "CreateAlias", "DeleteAlias", "DescribeKey", "DisableKey", "EnableKey", "EnableKeyRotation"),
    *("GetKeyPolicy", "GetKeyRotationStatus", "ListGrants", "ListKeyPolicies", "ListResourceTags", "PutKeyPolicy"),
    *("RevokeGrant", "ScheduleKeyDeletion", "TagResource", "UntagResource", "UpdateAlias", "UpdateKeyDescription"),
)
_HARMLESS: Final = ("kms:Describe*", "kms:Get*", "kms:List*")
_CONDITION: Final = {"StringEquals": {"kms:EncryptionContext:service": ENCRYPTION_CONTEXT_SERVICE}}


@dataclass(frozen=True, slots=True)
class KeyAccess:
    """Principals, other than the account itself and the vault's role, that may use a key or change who may.

    `foreign` are other accounts, AWS services and everybody; `local` are principals of the key's own account.
    """

    foreign: tuple[str, ...]
    local: tuple[str, ...]


def least_privilege_policy(key_arn: str) -> dict[str, Any]:
    """Return the IAM policy that the service needs."""
    return {"Version": "2012-10-17", "Statement": [{**_use_of_key(), "Resource": key_arn}]}


def restrictive_key_policy(*, account: str, partition: str, role_arn: str) -> dict[str, Any]:
    """Return a key policy that lets the role alone use the key, and the account's administrators manage it.

    The account itself may not use the key, so no IAM policy can let another principal use it.
    """
    administration = {
        "Sid": "Administration",
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:{partition}:iam::{account}:root"},
        "Action": [f"kms:{operation}" for operation in _ADMINISTRATION],
        "Resource": "*",
    }
    return {
        "Version": "2012-10-17",
        "Statement": [administration, {**_use_of_key(), "Principal": {"AWS": role_arn}, "Resource": "*"}],
    }


def access_by_policy(policy: str, *, account: str, role_arn: str | None) -> KeyAccess:
    """Judge a key policy; raises `ValueError` if it is not one."""
    document = json.loads(policy)
    if not isinstance(document, dict):
        raise TypeError("a key policy is an object")
    allowed = {principal for statement in _list(document.get("Statement")) for principal in _principals(statement)}
    others = allowed - {role_arn, account} - {one for one in allowed if _is_root_of(one, account)}
    return _by_account(others, account)


def access_by_grants(grants: Iterable[dict[str, Any]], *, account: str, role_arn: str | None) -> KeyAccess:
    """Judge the grants of a key."""
    others = {
        str(grant.get("GranteePrincipal"))
        for grant in grants
        if not _is_harmless(f"kms:{operation}" for operation in grant.get("Operations", ["*"]))
    } - {role_arn}
    return _by_account(others, account)


def _use_of_key() -> dict[str, Any]:
    return {
        "Sid": "TokenVault",
        "Effect": "Allow",
        "Action": [f"kms:{operation}" for operation in OPERATIONS],
        "Condition": _CONDITION,
    }


def _principals(statement: dict[str, Any]) -> Iterator[str]:
    """Yield each principal that a statement lets do more than look at the key; `*` is everybody."""
    if statement.get("Effect") != "Allow":
        return
    actions = ["*"] if "NotAction" in statement else _list(statement.get("Action"))
    if _is_harmless(actions):
        return
    if "NotPrincipal" in statement:
        yield "*"
        return
    principal = statement.get("Principal", {})
    for kind, names in (principal if isinstance(principal, dict) else {"AWS": principal}).items():
        yield from (name if kind == "AWS" else f"{kind} {name}" for name in _list(names))


def _is_harmless(actions: Iterable[str]) -> bool:
    return all(any(fnmatchcase(action.lower(), look.lower()) for look in _HARMLESS) for action in actions)


def _by_account(principals: Collection[str], account: str) -> KeyAccess:
    local = tuple(sorted(one for one in principals if _account_of(one) == account))
    return KeyAccess(foreign=tuple(sorted(set(principals) - set(local))), local=local)


def _is_root_of(principal: str, account: str) -> bool:
    return _account_of(principal) == account and principal.endswith(":root")


def _account_of(principal: str) -> str | None:
    """Return the account in `arn:aws:iam::ACCOUNT:role/NAME`."""
    parts = principal.split(":")
    return parts[4] if parts[0] == "arn" and len(parts) > 5 else None  # noqa: PLR2004  the parts of an ARN


def _list(value: Any) -> list[Any]:  # noqa: ANN401  one value or a list, as the policy language permits
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
