"""The KMS envelope: requests to KMS, the package, its binding, and the choice of keys."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import IntegrityError, InvalidRequest, KeyDenied, MalformedCiphertext
from app.security.aead import CommittingAead
from app.security.context import LABEL, SecretField, TokenContext, length_prefixed
from app.security.kms.package_format import Package
from app.security.schemes import scheme_of
from tests.support.security.envelopes import (
    HERE,
    MEMBERS,
    OTHER_USER,
    TOKEN,
    USER,
    Envelope,
    any_json,
    changed,
    decode,
    encode,
    envelope,
    members_of,
    package,
)
from tests.support.security.keys import service as local_service
from tests.support.sizes import size
from tests.support.stack.kms import Kms
from tests.support.stack.kms_faults import Policy

CONTEXT = {"user_id": USER, "service": "pulseplan", "data_type": "auth_token"}
REFUSED = (IntegrityError, MalformedCiphertext)
ELSEWHERE = {
    "user": TokenContext(OTHER_USER, "canvas", "default", SecretField.ACCESS_TOKEN),
    "provider": TokenContext(USER, "google", "default", SecretField.ACCESS_TOKEN),
    "service type": TokenContext(USER, "canvas", "calendar", SecretField.ACCESS_TOKEN),
    "column": TokenContext(USER, "canvas", "default", SecretField.REFRESH_TOKEN),
    "base URL": TokenContext(USER, "canvas", "default", SecretField.ACCESS_TOKEN, "https://attacker.example"),
}
every_elsewhere = pytest.mark.parametrize("there", ELSEWHERE.values(), ids=ELSEWHERE)


@pytest.fixture
def here(kms: Kms) -> Envelope:
    return envelope(kms)


@pytest.fixture(scope="module")
def shared(kms_server: Kms) -> Envelope:
    """A process under a KMS key that no test changes, for tests with many requests."""
    kms_server.renew()
    return envelope(kms_server, key_id=kms_server.create_key())


@pytest.fixture(scope="module")
def sealed(shared: Envelope) -> str:
    return shared.seal()


# Requests to KMS


def test_kms_gets_one_request_for_a_data_key_and_one_to_unwrap_it(kms: Kms) -> None:
    ciphertext = envelope(kms).seal()
    assert envelope(kms).open(ciphertext) == TOKEN
    generate, decrypt = kms.requests
    assert generate.operation == "GenerateDataKey"
    assert generate.parameters == {"KeyId": kms.key_arn, "KeySpec": "AES_256", "EncryptionContext": CONTEXT}
    assert decrypt.operation == "Decrypt"
    assert decrypt.parameters == {
        "KeyId": kms.key_arn,
        "CiphertextBlob": base64.b64encode(decode(members_of(ciphertext)["dk"])).decode(),
        "EncryptionContext": CONTEXT,
    }


@every_elsewhere
def test_the_encryption_context_has_three_pairs_for_every_secret(kms: Kms, there: TokenContext) -> None:
    ciphertext = envelope(kms).seal(there)
    assert envelope(kms).open(ciphertext, there) == TOKEN
    assert {request.operation for request in kms.requests} == {"GenerateDataKey", "Decrypt"}
    assert [request.context for request in kms.requests] == [{**CONTEXT, "user_id": there.user_id}] * 2


def test_the_least_privilege_policy_is_enough(kms: Kms) -> None:
    actions = frozenset({"kms:Decrypt", "kms:GenerateDataKey"})
    kms.faults.policy = Policy(actions, {"service": "pulseplan"})
    ciphertext = envelope(kms).seal()
    reader = envelope(kms)
    assert reader.open(ciphertext) == TOKEN
    reader.service.self_test()
    kms.faults.policy = Policy(actions, {"service": "another"})
    with pytest.raises(KeyDenied):
        envelope(kms).open(ciphertext)


def test_a_hundred_operations_of_one_user_and_provider_are_one_request(kms: Kms, here: Envelope) -> None:
    for number in range(50):
        context = TokenContext(USER, "canvas", f"s{number}", SecretField.REFRESH_TOKEN)
        assert here.open(here.seal(context), context) == TOKEN
    assert kms.operations() == ["GenerateDataKey"]
    assert here.counters.counts["kms_requests.GenerateDataKey.success"] == 1


def test_providers_and_users_share_no_data_key(here: Envelope) -> None:
    wrapped = {
        members_of(here.seal(TokenContext(user, provider)))["dk"]
        for user in (USER, OTHER_USER)
        for provider in ("canvas", "google", "")
    }
    assert len(wrapped) == 6


# The package


def test_the_package_has_exactly_its_members(kms: Kms, here: Envelope) -> None:
    sealed = here.service.seal(TOKEN, HERE)
    members = members_of(sealed.ciphertext)
    assert tuple(members) == MEMBERS
    assert sealed.ciphertext == package(members), "compact"
    assert members["fmt"] == 1
    assert members["kid"] == kms.key_arn
    assert members["id"] == sealed.key_id
    assert members["id"].startswith(f"canvas_kms_{USER}_")
    assert [len(decode(members[name])) for name in ("cm", "n", "ct")] == [32, 12, len(TOKEN) + 16]


def test_the_package_opens_by_the_documented_recipe(kms: Kms, sealed: str, shared: Envelope) -> None:
    """Written from the format's description alone, so that a reader in another language could be."""
    del shared
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415  this reading of the format stands alone
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  this reading of the format stands alone
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415  this reading of the format stands alone

    members = members_of(sealed)
    answer = kms.client().decrypt(KeyId=members["kid"], CiphertextBlob=decode(members["dk"]), EncryptionContext=CONTEXT)

    def joined(*parts: bytes) -> bytes:
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    label = b"pulseplan-token-vault"
    derived = HKDF(hashes.SHA256(), 64, salt=None, info=joined(label, b"kms/1")).derive(answer["Plaintext"])
    aad = joined(
        label,
        b"kms/1",
        members["kid"].encode(),
        members["id"].encode(),
        USER.encode(),
        b"canvas",
        b"default",
        b"access_token",
        b"",  # no base URL
    )
    assert decode(members["cm"]) == derived[32:]
    assert AESGCM(derived[:32]).decrypt(decode(members["n"]), decode(members["ct"]), aad) == TOKEN.encode()


_WRONG_VALUES: list[Any] = [
    *[None, True, False, 0, 1, 2, -1, 1.0, 1.5, [], {}, ["x"], "", " ", "1", "x", "ü", "\ud800", "\0"],
    *["AAA=", "AA==", "A", "+/+/", "AA AA", "AAAA\n"],
    *[encode(bytes(size)) for size in (1, 11, 12, 13, 16, 31, 32, 33, 96, 184)],
]
_HUGE_VALUES: list[Any] = ["A" * 3000, "A" * 10_000, "A" * 100_000, "A" * 500_000, 10**4000, [[]] * 10_000]


@pytest.mark.parametrize("member", MEMBERS)
def test_a_package_with_a_changed_member_is_refused(shared: Envelope, sealed: str, member: str) -> None:
    """With its data key cached and without."""
    original = members_of(sealed)[member]
    for value in [*_WRONG_VALUES, *_HUGE_VALUES]:
        if value == original and type(value) is type(original):
            continue
        text = changed(sealed, **{member: value})
        shared.clock.advance(300)
        shared.data_keys.drop_expired()
        with pytest.raises(REFUSED):
            shared.open(text)
        assert len(shared.data_keys) == 0
        assert shared.open(sealed) == TOKEN
        with pytest.raises(REFUSED):
            shared.open(text)


@pytest.mark.parametrize("member", MEMBERS)
def test_a_package_without_a_member_is_refused(shared: Envelope, sealed: str, member: str) -> None:
    members = members_of(sealed)
    del members[member]
    with pytest.raises(MalformedCiphertext):
        shared.open(package(members))


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("comes", ["first", "last"])
def test_a_package_with_a_doubled_member_is_refused(shared: Envelope, sealed: str, member: str, comes: str) -> None:
    """Even where both say the same: which one counts is every parser's own choice."""
    for value in (members_of(sealed)[member], "x"):
        extra = json.dumps({member: value}, separators=(",", ":"))[1:-1]
        text = f"kms:{{{extra},{sealed[5:]}" if comes == "first" else f"{sealed[:-1]},{extra}}}"
        with pytest.raises(MalformedCiphertext):
            shared.open(text)


@pytest.mark.parametrize("unknown", ["x", "aad", "fmt2", "FMT", "", "algorithm"])
def test_a_package_with_an_unknown_member_is_refused(shared: Envelope, sealed: str, unknown: str) -> None:
    with pytest.raises(MalformedCiphertext):
        shared.open(changed(sealed, **{unknown: "x"}))


@pytest.mark.parametrize(("characters", "fits"), [(2026, True), (2027, False)])
def test_a_name_that_could_not_be_read_back_is_never_written(kms: Kms, characters: int, fits: bool) -> None:
    here = TokenContext("u" * characters)  # with "_kms_", "_" and 16 hex digits around it
    process = envelope(kms)
    if fits:
        assert process.open(process.seal(here), here) == TOKEN
        return
    with pytest.raises(InvalidRequest, match="too long"):
        process.seal(here)
    assert kms.requests == []


@pytest.mark.parametrize("fmt", ["2", "0", "true", '"1"', "1.0", "1e0", "01", "+1", "null", "[1]", "-1", "1" * 5000])
def test_format_1_is_the_integer_1(shared: Envelope, sealed: str, fmt: str) -> None:
    text = sealed.replace('"fmt":1,', f'"fmt":{fmt},')
    with pytest.raises(MalformedCiphertext):
        shared.open(text)
    with pytest.raises(MalformedCiphertext):
        shared.strategy.open(text, HERE)


@pytest.mark.parametrize(
    "text",
    [
        *["kms:", "kms:1", "kms:[]", "kms:null", 'kms:"x"', 'kms:{"fmt":1}', 'kms:{"fmt":1,', 'kms:{"fmt":1,}'],
        pytest.param('kms:{"fmt":1,' + "[" * 100_000, id="100 000 brackets"),
        pytest.param('kms:{"fmt":1,"kid":' + "[" * 100_000, id="100 000 brackets in a member"),
        pytest.param('kms:{"fmt":1,"kid":"' + "x" * 500_000 + '"}', id="half a megabyte"),
    ],
)
def test_a_text_that_only_begins_like_a_package_is_malformed(shared: Envelope, text: str) -> None:
    with pytest.raises(MalformedCiphertext):
        shared.open(text)
    with pytest.raises(MalformedCiphertext):
        shared.strategy.open(text, HERE)


@given(members=st.dictionaries(st.sampled_from([*MEMBERS, "x"]), any_json))
@settings(deadline=None, max_examples=size(40, 200))
def test_any_package_is_refused_with_one_of_our_errors(shared: Envelope, sealed: str, members: dict[str, Any]) -> None:
    for text in (package(members), package(members_of(sealed) | members | {"x": 1})):
        with pytest.raises(REFUSED):
            shared.open(text)
        with pytest.raises(REFUSED):
            shared.strategy.open(text, HERE)


@given(
    edits=st.lists(
        st.tuples(st.integers(0, 700), st.integers(0, 3), st.text('"\\,:{}nct=+/-_Aé\x1f ', max_size=3)), max_size=3
    )
)
@settings(deadline=None)
def test_the_fast_reader_and_the_json_reader_agree(sealed: str, edits: list[tuple[int, int, str]]) -> None:
    """A package with a space after the bracket is read as JSON."""
    text = sealed
    for position, removed, inserted in edits:
        text = text[:position] + inserted + text[position + removed :]
    text = "kms:{" + text.removeprefix("kms:{")
    assert _read(text) == _read(text.replace("{", "{ ", 1))


def _read(text: str) -> Package | None:
    try:
        return Package.decode(text)
    except MalformedCiphertext:
        return None


def test_every_flipped_bit_of_the_decoded_members_is_rejected(shared: Envelope, sealed: str) -> None:
    assert shared.open(sealed) == TOKEN
    for member in ("cm", "n", "ct", "dk"):
        data = decode(members_of(sealed)[member])
        for position in range(len(data)):
            # each bit of a wrapped key would be a thousand requests
            for bit in range(8) if member != "dk" else [position % 8]:
                flipped = bytearray(data)
                flipped[position] ^= 1 << bit
                with pytest.raises(REFUSED):
                    shared.open(changed(sealed, **{member: encode(bytes(flipped))}))


# Binding


@every_elsewhere
@pytest.mark.parametrize("parts", [("dk",), ("dk", "cm"), ("dk", "id"), ("dk", "cm", "n", "ct"), MEMBERS], ids=" ".join)
def test_parts_swapped_between_rows_never_open(
    kms: Kms, here: Envelope, there: TokenContext, parts: tuple[str, ...]
) -> None:
    """The wrapped data key alone, with its other parts, and the whole package; with its key cached and without."""
    # a fresh process writes each, so that no two share a data key
    ours, theirs = members_of(here.seal()), members_of(envelope(kms).seal(there, "another token"))
    assert ours["dk"] != theirs["dk"]
    swapped = package(ours | {part: theirs[part] for part in parts})
    warm = envelope(kms)
    warm.open(package(ours))
    warm.open(package(theirs), there)
    for reader in (warm, envelope(kms)):
        with pytest.raises(IntegrityError):
            reader.open(swapped)


def test_a_data_key_swapped_between_any_two_contexts_never_opens(kms: Kms) -> None:
    places = [
        TokenContext(*names)
        for names in itertools.product((USER, OTHER_USER), ("canvas", "google"), ("a", "b"), SecretField)
    ]
    # a fresh process writes each, so that no two share a data key
    sealed = {place: members_of(envelope(kms).seal(place)) for place in places}
    warm = envelope(kms)
    assert [warm.open(package(sealed[place]), place) for place in places] == [TOKEN] * 16
    for here, there in list(itertools.permutations(places, 2))[:: size(7, 1)]:
        for parts in (("dk",), ("dk", "cm"), ("dk", "cm", "id")):
            with pytest.raises(IntegrityError):
                warm.open(package(sealed[here] | {part: sealed[there][part] for part in parts}), here)


@every_elsewhere
@pytest.mark.parametrize("claims_the_name", [False, True])
def test_a_package_moved_to_a_row_with_the_same_data_key_never_opens(
    kms: Kms, here: Envelope, there: TokenContext, claims_the_name: bool
) -> None:
    """A package moved to another row with its tracking id rewritten to fit there."""
    ciphertext = here.seal()
    if claims_the_name:
        tail = members_of(ciphertext)["id"].rpartition("_")[2]
        ciphertext = changed(ciphertext, id=f"{there.provider}_kms_{there.user_id}_{tail}")
    for reader in (here, envelope(kms)):
        with pytest.raises(IntegrityError):
            reader.open(ciphertext, there)


@every_elsewhere
def test_another_context_is_refused_without_asking_kms(kms: Kms, here: Envelope, there: TokenContext) -> None:
    ciphertext = here.seal()
    assert here.open(ciphertext) == TOKEN
    kms.forget_requests()
    kms.faults.down()
    with pytest.raises(IntegrityError):
        here.open(ciphertext, there)
    with pytest.raises(IntegrityError):
        here.strategy.open(ciphertext, there, wait=False)
    assert kms.requests == []


def test_a_rewritten_prefix_never_opens(here: Envelope) -> None:
    ciphertext = here.seal()
    local = local_service().seal(TOKEN, HERE).ciphertext
    assert here.open(local) == TOKEN
    body, encoded = ciphertext.removeprefix("kms:"), local.removeprefix("v1:")
    rewritten = [
        *[f"v1:{body}", body, f"v1:{encode(body.encode())}", f"v1:{members_of(ciphertext)['ct']}", f"kms:v1:{encoded}"],
        *[f"kms:{encoded}", encoded, f"kms:{local}", f"v1:{ciphertext}", f"kms:{ciphertext}"],
        *[changed(ciphertext, ct=encoded), changed(ciphertext, dk=encoded)],
        'kms:{"fmt":1,"algorithm":"KMS","ciphertext":"' + encoded + '"}',
    ]
    for text in rewritten:
        with pytest.raises(REFUSED):
            here.open(text)
        with pytest.raises((*REFUSED, KeyDenied)):
            local_service().open(text, HERE)


# Choice of keys


def test_requests_name_the_configured_keys_in_order(kms: Kms) -> None:
    newer, new = kms.create_key(), kms.create_key()
    ciphertext = envelope(kms).seal()
    kms.forget_requests()
    reader = envelope(kms, key_id=new, previous_key_ids=[newer, kms.key_arn, "alias/never-asked"])
    assert reader.open(ciphertext) == TOKEN
    assert [(request.operation, request.key_id) for request in kms.requests] == [
        ("Decrypt", new),
        ("Decrypt", newer),
        ("Decrypt", kms.key_arn),
    ]
    assert all(request.context == CONTEXT for request in kms.requests)


def test_a_known_previous_key_goes_first_for_its_packages(kms: Kms) -> None:
    """Else each row of a sweep from one KMS key to the next would cost a request more."""
    new = kms.create_key()
    old, newer = envelope(kms), envelope(kms, key_id=new)
    before = [old.seal(there) for there in (HERE, ELSEWHERE["user"], ELSEWHERE["provider"])]
    after = newer.seal()
    reader = envelope(kms, key_id=new, previous_key_ids=[kms.alias])
    assert reader.open(before[0]) == TOKEN
    kms.forget_requests()
    assert reader.open(before[1], ELSEWHERE["user"]) == TOKEN
    assert reader.open(after) == TOKEN
    assert [request.key_id for request in kms.requests] == [kms.alias, new]
    kms.move_alias(kms.alias, new)
    with pytest.raises(KeyDenied, match="KMS_PREVIOUS_KEY_IDS"):
        reader.open(before[2], ELSEWHERE["provider"])
    assert [request.key_id for request in kms.requests[2:]] == [kms.alias, new], "each was asked all the same"


def test_a_wrong_kid_changes_only_the_order_of_the_keys(kms: Kms) -> None:
    new = kms.create_key()
    ciphertext = envelope(kms).seal()
    reader = envelope(kms, key_id=new, previous_key_ids=[kms.key_arn])
    assert reader.open(reader.seal(ELSEWHERE["user"]), ELSEWHERE["user"]) == TOKEN
    assert reader.open(envelope(kms).seal(ELSEWHERE["provider"]), ELSEWHERE["provider"]) == TOKEN
    kms.forget_requests()
    for kid in (new, kms.key_arn.replace("key/", "key/0")):
        with pytest.raises(IntegrityError):
            reader.open(changed(ciphertext, kid=kid))
    with pytest.raises(IntegrityError):
        reader.open(changed(envelope(kms, key_id=new).seal(), kid=kms.key_arn))
    assert [request.key_id for request in kms.requests if request.operation == "Decrypt"] == [
        *(new, kms.key_arn),
        *(new, kms.key_arn),
        *(kms.key_arn, new),
    ]


def test_a_package_under_an_unconfigured_key_is_denied(kms: Kms) -> None:
    ciphertext = envelope(kms).seal()
    reader = envelope(kms, key_id=kms.create_key(), previous_key_ids=[kms.create_key()])
    with pytest.raises(KeyDenied, match="KMS_PREVIOUS_KEY_IDS"):
        reader.open(ciphertext)
    assert len(reader.data_keys) == 0


def test_a_kid_is_not_trusted(kms: Kms, here: Envelope) -> None:
    """Somebody who may write rows, and has a key of their own, makes a package that is sound in itself."""
    foreign = kms.create_key()
    secret, wrapped = kms.generate_data_key(foreign, CONTEXT)
    name = f"canvas_kms_{USER}_0123456789abcdef"
    info = length_prefixed(LABEL, b"kms/1")
    for kid in (foreign, kms.key_arn):
        aad = HERE.aad(b"kms/1", kid.encode(), name.encode())
        box = CommittingAead(secret, info=info).seal(b"theirs", aad)
        members = {"fmt": 1, "kid": kid, "id": name, "dk": encode(wrapped)}
        boxed = {"cm": encode(box.commitment), "n": encode(box.nonce), "ct": encode(box.ciphertext)}
        kms.forget_requests()
        with pytest.raises(KeyDenied):
            here.open(package(members | boxed))
        assert {request.key_id for request in kms.requests} == {kms.key_arn}
        assert envelope(kms, key_id=foreign).open(package(members | boxed)) == "theirs", "it is sound"


def test_a_moved_alias_encrypts_under_the_new_key_and_reads_the_old(kms: Kms) -> None:
    old, new = kms.key_arn, kms.create_key()
    writer = envelope(kms, key_id=kms.alias, previous_key_ids=[old])
    before = writer.service.seal(TOKEN, HERE)
    assert before.scheme == f"kms:{old}"
    kms.move_alias(kms.alias, new)
    writer.clock.advance(300)
    assert writer.open(before.ciphertext) == TOKEN
    after = writer.service.seal(TOKEN, HERE)
    assert after.scheme == writer.service.primary_scheme == f"kms:{new}"
    assert members_of(after.ciphertext)["kid"] == new
    assert scheme_of(before.ciphertext) != writer.service.primary_scheme
    reader = envelope(kms, key_id=kms.alias, previous_key_ids=[old])
    assert [reader.open(before.ciphertext), reader.open(after.ciphertext)] == [TOKEN, TOKEN]
    with pytest.raises(KeyDenied):
        envelope(kms, key_id=kms.alias).open(before.ciphertext)


def test_a_cached_data_key_of_the_old_key_encrypts_no_more(kms: Kms) -> None:
    """Or what it seals would be due for a rewrap at once, and again after each."""
    new = kms.create_key()
    writer = envelope(kms, key_id=kms.alias, previous_key_ids=[kms.key_arn])
    before = writer.seal()
    kms.move_alias(kms.alias, new)
    assert members_of(writer.seal())["kid"] == kms.key_arn, "KMS has not named the key yet"
    writer.seal(ELSEWHERE["user"])
    after = writer.seal()
    assert members_of(after)["kid"] == new
    assert scheme_of(after) == writer.service.primary_scheme
    assert [writer.open(before), writer.open(after)] == [TOKEN, TOKEN]


def test_a_process_that_has_only_decrypted_knows_its_scheme(kms: Kms) -> None:
    ciphertext = envelope(kms, key_id=kms.alias).seal()
    by_arn, by_alias = envelope(kms), envelope(kms, key_id=kms.alias)
    assert scheme_of(ciphertext) == by_arn.service.primary_scheme
    assert by_arn.service.primary_scheme == f"kms:{kms.key_arn}"
    by_alias.open(ciphertext)
    assert scheme_of(ciphertext) == by_alias.service.primary_scheme


def test_automatic_rotation_leaves_rows_readable_and_current(kms: Kms, here: Envelope) -> None:
    before = here.seal()
    kms.enable_rotation(kms.key_arn)
    kms.rotate_now(kms.key_arn)
    reader = envelope(kms)
    after = reader.seal()
    assert [reader.open(before), reader.open(after)] == [TOKEN, TOKEN]
    assert scheme_of(before) == reader.service.primary_scheme


@pytest.mark.parametrize("state", ["disabled", "pending deletion"])
def test_a_disabled_key_is_denied_and_works_again_when_enabled(kms: Kms, here: Envelope, state: str) -> None:
    ciphertext = here.seal()
    cold = envelope(kms)
    if state == "disabled":
        kms.disable(kms.key_arn)
    else:
        kms.schedule_deletion(kms.key_arn)
    calls: list[Callable[[], object]] = [lambda: cold.open(ciphertext), cold.seal]
    for call in calls:
        with pytest.raises(KeyDenied):
            call()
    assert here.open(ciphertext) == TOKEN, "a cached data key works until it expires"
    here.clock.advance(300)
    with pytest.raises(KeyDenied):
        here.open(ciphertext)
    with pytest.raises(KeyDenied):
        here.seal()
    if state == "pending deletion":
        kms.cancel_deletion(kms.key_arn)
    kms.enable(kms.key_arn)
    assert [cold.open(ciphertext), here.open(ciphertext)] == [TOKEN] * 2
    assert cold.open(cold.seal()) == TOKEN


@pytest.mark.parametrize("size", [1, 16, 31, 33, 64])
def test_a_data_key_of_another_size_is_refused(kms: Kms, here: Envelope, size: int) -> None:
    ciphertext = here.seal()
    reader = envelope(kms)
    plaintext = base64.b64encode(bytes(size)).decode()
    kms.faults.succeed_with(
        {"KeyId": kms.key_arn, "Plaintext": plaintext, "CiphertextBlob": base64.b64encode(b"wrapped").decode()}
    )
    with pytest.raises(IntegrityError, match="32 bytes"):
        reader.open(ciphertext)
    with pytest.raises(IntegrityError, match="32 bytes"):
        reader.seal()
    assert len(reader.data_keys) == 0


def test_another_data_key_than_the_wrapped_one_is_rejected(kms: Kms, here: Envelope) -> None:
    """KMS, or an impostor, returns another 32-byte key: the commitment reveals it."""
    ciphertext = here.seal()
    reader = envelope(kms)
    kms.faults.succeed_with({"KeyId": kms.key_arn, "Plaintext": base64.b64encode(bytes(32)).decode()})
    with pytest.raises(IntegrityError, match="not made with this key"):
        reader.open(ciphertext)
    assert len(reader.data_keys) == 0
