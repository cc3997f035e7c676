"""docs/kms.md and the KMS part of docs/ciphertext-formats.md say what the code does."""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag

from app.config.settings import Settings
from app.security.kms import client as kms_client
from app.security.kms import errors as kms_errors
from app.security.kms.key_access import least_privilege_policy
from tests.support.paths import ROOT
from tests.support.process.home import run, token_vault
from tests.support.stack.kms import REGION, Kms
from tests.support.stack.kms_gate import ADMINISTRATOR

KMS = (ROOT / "docs" / "kms.md").read_text()
FORMATS = (ROOT / "docs" / "ciphertext-formats.md").read_text()
NAMES = ("use_kms", "kms_", "aws_", "data_key_")
SNIPPET = (
    "from app.security.encryption import get_encryption_service; service = get_encryption_service(); "
    'e = service.encrypt_token("test-canvas-token-123", "user-id-123"); '
    'assert service.decrypt_token(e, "user-id-123") == "test-canvas-token-123"; print(e)'
)
USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
PLACE = 'provider="canvas", service_type="default"'


def _blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)\n```$", document, re.DOTALL | re.MULTILINE)


def _run(kms: Kms, folder: Path, program: str) -> str:
    done = run(sys.executable, "-c", program, folder=folder, settings=kms.environment())
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.removesuffix("\n")


def test_every_setting_of_kms_is_named_with_its_default() -> None:
    table = KMS.partition("| name | default | meaning |\n")[2].partition("\n\n")[0].splitlines()[1:]
    documented = {row.split("|")[1].strip(" `"): row.split("|")[2].strip(" `") for row in table}
    fields = {name: field for name, field in Settings.model_fields.items() if name.startswith(NAMES)}
    defaults = {name.upper(): "" if field.default is None else field.default for name, field in fields.items()}
    assert documented == {
        name: "[]" if value == () else str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in defaults.items()
    }


def test_every_error_is_explained() -> None:
    """Each text with which a request to KMS can end stands in the tables."""
    trees = [ast.parse(Path(str(module.__file__)).read_text()) for module in (kms_client, kms_errors)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    documented = set(re.findall(r"^\| `([^`]+)` \|", KMS, re.MULTILINE))
    explained = {text for text in texts if re.match(r"(KMS|the|no|a) \w+ \w+|KMS ", text) and not text.endswith(".")}
    elsewhere = {
        "KMS does not authenticate the wrapped key in this context",  # integrity, which is explained as a whole
        "KMS returned a data key that is not 32 bytes",
    }
    assert explained - elsewhere - documented == set()
    assert len(explained) >= 12


def test_the_policy_is_the_one_that_setup_prints() -> None:
    [policy] = _blocks(KMS, "json")
    read = json.loads(policy)
    assert read == least_privilege_policy(read["Statement"][0]["Resource"])


def test_the_verify_snippet_prints_a_kms_ciphertext(kms: Kms, tmp_path: Path) -> None:
    [snippet] = _blocks(KMS, "python")
    assert snippet == SNIPPET
    assert _run(kms, tmp_path, snippet).startswith('kms:{"fmt":1,')


def _decoder() -> Callable[..., str]:
    [code] = _blocks(FORMATS, "python")
    names: dict[str, Any] = {}
    exec(compile(code, "ciphertext-formats.md", "exec"), names)  # noqa: S102  what the page shows is what is tested
    opened: Callable[..., str] = names["open_kms"]
    return opened


def test_the_documented_decoder_opens_what_the_vault_writes(kms: Kms, tmp_path: Path) -> None:
    def unwrap(wrapped: bytes, context: dict[str, str]) -> bytes:
        answer = kms.client().decrypt(KeyId=kms.key_arn, CiphertextBlob=wrapped, EncryptionContext=context)
        return bytes(answer["Plaintext"])

    program = (
        "from app.security.context import SecretField\n"
        "from app.security.encryption import get_encryption_service\n"
        f"seal = get_encryption_service().encrypt_token\nprint(seal('bare', 'a user'))\n"
        f"print(seal('1234~ü', '{USER}', {PLACE}, field=SecretField.ACCESS_TOKEN))\n"
    )
    bare, bound = _run(kms, tmp_path, program).splitlines()
    decode = _decoder()
    assert decode(bare, unwrap, "a user") == "bare"
    assert decode(bound, unwrap, USER, "canvas", "default", "access_token") == "1234~ü"
    with pytest.raises(InvalidTag):
        decode(bound, unwrap, USER, "canvas", "default", "refresh_token")
    members = json.loads(bound.removeprefix("kms:"))
    [shown] = re.findall(r'^kms:({"fmt":1,.*})$', FORMATS, re.MULTILINE)
    assert list(members) == list(json.loads(shown))
    assert members["kid"] == kms.key_arn
    assert re.fullmatch(rf"canvas_kms_{USER}_[0-9a-f]{{16}}", members["id"])


def test_the_commands_of_the_page_set_a_key_up(kms: Kms, tmp_path: Path) -> None:
    kms.empty()
    settings = {"AWS_ENDPOINT_URL_KMS": kms.url, "AWS_ACCESS_KEY_ID": ADMINISTRATOR, "AWS_SECRET_ACCESS_KEY": "none"}
    [block] = [one for one in _blocks(KMS, "sh") if one.startswith("token-vault kms setup")]
    counts = [_count_keys(kms)]
    for line in block.replace("eu-west-1", REGION).splitlines():
        done = token_vault(*shlex.split(line)[1:], folder=tmp_path, settings=settings)
        assert done.returncode == 0, done.stderr
        counts.append(_count_keys(kms))
    assert counts == [counts[0], counts[0], counts[0] + 1], "the first one plans, the second one acts"


def _count_keys(kms: Kms) -> int:
    return len(kms.client().list_keys()["Keys"])
