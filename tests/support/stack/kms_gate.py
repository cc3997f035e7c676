"""A WSGI application in front of moto's KMS: adds what moto lacks, and applies faults.

moto decrypts with keys that are disabled or about to be deleted, knows no caller and no policy, answers a wrong `KeyId`
with `AccessDeniedException` where KMS says `IncorrectKeyException`, and joins an encryption context without
separators, so that two contexts can be one to it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.core.request import Request
from moto.kms.models import kms_backends
from moto.kms.responses import KmsResponse

from tests.support.stack.kms_faults import Cut, KmsFault, KmsFaults, KmsRequest, Policy, Reply

if TYPE_CHECKING:  # the module exists only for type checkers
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


# the access key id that faults, policy and the list of requests ignore
ADMINISTRATOR: Final = "administrator"
_TARGET: Final = "TrentService."
_CRYPTOGRAPHIC: Final = frozenset({"GenerateDataKey", "Encrypt", "Decrypt"})
_KEPT_REQUESTS: Final = 20_000
_WRONG_STATE: Final = {"Disabled": "DisabledException", "PendingDeletion": "KMSInvalidStateException"}


@dataclass(frozen=True, slots=True)
class _Origin:
    """The key and the context of a ciphertext blob."""

    key_id: str
    context: dict[str, str]


class KmsGate:
    """Record each request, apply its fault, refuse what KMS refuses, and pass the rest on to moto."""

    def __init__(self, *, moto: WSGIApplication, faults: KmsFaults) -> None:
        self._moto = moto
        self._faults = faults
        self._origins: dict[bytes, _Origin] = {}
        self.requests: deque[KmsRequest] = deque(maxlen=_KEPT_REQUESTS)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Handle one request."""
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        if not target.startswith(_TARGET):
            return self._moto(environ, start_response)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        session_token = environ.get("HTTP_X_AMZ_SECURITY_TOKEN")
        request = KmsRequest(target.removeprefix(_TARGET), json.loads(body or b"{}"), session_token)
        caller, region = _credential(environ)
        fault, policy = KmsFault(), None
        if caller != ADMINISTRATOR:
            self.requests.append(request)
            fault, policy = self._faults.take(request) or fault, self._faults.policy
        if fault.delay_seconds:
            self._faults.pause(fault.delay_seconds)
        if fault.cut is Cut.BEFORE_THE_ANSWER:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError
        reply = fault.reply or self._refusal(request, policy, region) or self._pass_on(request, environ, region)
        start_response(f"{reply.status} {_phrase(reply.status)}", reply.headers())
        return self._body(reply, fault)

    def _refusal(self, request: KmsRequest, policy: Policy | None, region: str) -> Reply | None:
        if policy is not None and not policy.allows(request):
            return Reply.of_error("AccessDeniedException")
        if request.operation not in _CRYPTOGRAPHIC:
            return None
        origin = self._origin(request)
        key_id = _key_id(request.key_id, region) if request.key_id else origin and origin.key_id
        key = kms_backends[DEFAULT_ACCOUNT_ID][region].keys.get(key_id or "")
        code: str | None = None
        if key is not None:
            code = _WRONG_STATE.get(key.key_state)
            if code is None and request.operation == "Decrypt":
                if origin is None:
                    code = "InvalidCiphertextException"
                elif origin.key_id != key_id:
                    code = "IncorrectKeyException"
                elif origin.context != request.context:
                    code = "InvalidCiphertextException"
        # moto reports a key that does not exist
        return Reply.of_error(code) if code else None

    def _origin(self, request: KmsRequest) -> _Origin | None:
        return self._origins.get(_digest(request.parameters.get("CiphertextBlob", "")))

    def _pass_on(self, request: KmsRequest, environ: WSGIEnvironment, region: str) -> Reply:
        received = Request(environ)
        # moto's server would look for the service in a table of all of AWS, and pass through Flask: twice the time
        status, headers, body = KmsResponse.dispatch(received, received.raw_url, dict(received.headers))
        body = body.encode() if isinstance(body, str) else body
        reply = Reply(int(status), body, headers.get("Content-Type", ""))
        if reply.status == HTTPStatus.OK and request.operation in {"GenerateDataKey", "Encrypt"}:
            answer: dict[str, Any] = json.loads(body)
            key_id = _key_id(answer["KeyId"], region)
            self._origins[_digest(answer["CiphertextBlob"])] = _Origin(key_id, request.context)
        return reply

    def _body(self, reply: Reply, fault: KmsFault) -> Iterator[bytes]:
        if fault.drip_seconds:
            for byte in reply.body:
                self._faults.pause(fault.drip_seconds)
                yield bytes([byte])
        elif fault.cut is Cut.WITHIN_THE_ANSWER:
            # shorter than its Content-Length, and the server closes after each answer
            yield reply.body[: len(reply.body) // 2]
        else:
            yield reply.body


def _credential(environ: WSGIEnvironment) -> tuple[str, str]:
    """Return access key id and Region: `AWS4-HMAC-SHA256 Credential=ID/DATE/REGION/kms/aws4_request, …`."""
    scope = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].split(",")[0].split("/")
    return (scope[0], scope[2]) if len(scope) > 2 else ("", "")


def _key_id(name: str, region: str) -> str:
    """Return the id behind an id, an ARN or an alias; an alias that does not exist is returned as it is."""
    backend = kms_backends[DEFAULT_ACCOUNT_ID][region]
    alias = backend.get_alias_name(name)
    return backend.get_key_id(backend.get_key_id_from_alias(alias) or name)


def _digest(blob: str) -> bytes:
    return hashlib.sha256(base64.b64decode(blob)).digest()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
