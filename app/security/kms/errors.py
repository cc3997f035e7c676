"""Meaning of a failed request to AWS KMS."""

from __future__ import annotations

import re
from typing import Any, Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    TokenRetrievalError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from botocore.exceptions import (
    HTTPClientError as BotoHttpClientError,
)
from botocore.parsers import ResponseParserError

from app.errors import CredentialsDenied, IntegrityError, KeyDenied, KeyUnavailable
from app.security.kms.package import MAXIMUM_NAME_CHARACTERS, MAXIMUM_WRAPPED_BYTES

# --- What a failed call to AWS is called, for people at a terminal.

# the later ones are what botocore's parser lets through where something else than AWS answers
AWS_ERRORS: Final = (
    ClientError,
    BotoCoreError,
    ResponseParserError,
    OSError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
NOT_AWS: Final = "an answer that is not AWS's"
EXPIRED_AT_ONCE: Final = "CredentialsExpiredAtOnce"
_CODE: Final = re.compile(r"[A-Za-z]{3,64}")


def error_name(error: Exception) -> str:
    """Return AWS's error code, or the exception's class; never a text, for those quote requests, users and keys."""
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        return code if _CODE.fullmatch(code) else NOT_AWS
    if type(error) is RuntimeError:  # botocore's, for credentials that have expired as soon as they are renewed
        return EXPIRED_AT_ONCE
    return type(error).__name__ if isinstance(error, BotoCoreError | OSError) else NOT_AWS


# --- What a request to KMS that failed means for a token.

# KMS throttles with HTTP 400, and botocore's own retries know some of these and not others, so ours decide.
_UNAVAILABLE: Final = frozenset(
    {
        "DependencyTimeoutException",
        "IDPCommunicationError",
        "KMSInternalException",
        "KeyUnavailableException",
        "LimitExceededException",
        "RequestLimitExceeded",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailableException",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_TOO_MANY_REQUESTS: Final = 429
_SERVER_ERROR: Final = 500
_CREDENTIALS: Final = (
    CredentialRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    TokenRetrievalError,
)
UNREACHABLE: Final = "KMS cannot be reached, or something answers in its place"
_UNKNOWN_CREDENTIALS: Final = "KMS does not know the AWS credentials"
_WRONG_SIGNATURE: Final = "KMS refuses the signature: the AWS secret access key or this machine's clock is wrong"
WHY_DENIED: Final = {
    "AccessDeniedException": "KMS denies this: check the role's policy, the key policy and the grants",
    "DisabledException": "the KMS key is disabled",
    "ExpiredToken": "the AWS credentials have expired",
    "ExpiredTokenException": "the AWS credentials have expired",
    "IncorrectKeyException": "no configured KMS key wrapped this data key; KMS_PREVIOUS_KEY_IDS may lack one",
    "InvalidClientTokenId": _UNKNOWN_CREDENTIALS,
    "InvalidGrantTokenException": "a grant token is not valid",
    "InvalidSignatureException": _WRONG_SIGNATURE,
    "KMSInvalidStateException": "the KMS key's state forbids this; it may be scheduled for deletion",
    "NotFoundException": "KMS finds no such key; check KMS_KEY_ID and AWS_REGION",
    "SignatureDoesNotMatch": _WRONG_SIGNATURE,
    "UnrecognizedClientException": _UNKNOWN_CREDENTIALS,
}


_OF_CREDENTIALS: Final = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)


class IncorrectKeyError(Exception):
    """KMS says that another key made this; the next configured one may be it."""


def meaning_of(error: Exception) -> Exception:
    """Return what the caller gets for what boto3 raised."""
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        return _meaning_of_code(code, error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if concerns_credentials(error):
        message = "no usable AWS credentials were found"
        return CredentialsDenied(message)
    if isinstance(error, BotoCoreError) and not isinstance(
        error, BotoConnectionError | BotoHttpClientError | ResponseParserError
    ):
        message = "the AWS settings do not make a valid request"
        return KeyDenied(message)
    return KeyUnavailable(UNREACHABLE)


def concerns_credentials(error: Exception) -> bool:
    """Whether it is not KMS that failed, but what was to say who is asking. That may come later."""
    if isinstance(error, OSError) and not isinstance(error, BotoCoreError):
        return error.filename is not None  # the file of a web identity's token, say; sockets have none
    return isinstance(error, _CREDENTIALS) or error_name(error) == EXPIRED_AT_ONCE


def _meaning_of_code(code: str, status: int) -> Exception:
    if code == "IncorrectKeyException":
        return IncorrectKeyError()
    if code == "InvalidCiphertextException":
        message = "KMS does not authenticate the wrapped key in this context"
        return IntegrityError(message)
    if code in _UNAVAILABLE or status == _TOO_MANY_REQUESTS or status >= _SERVER_ERROR:
        message = "KMS throttles requests or is down"
        return KeyUnavailable(message)
    if not code or code.isdigit():  # botocore puts the status where an answer has no code, and KMS's always have one
        return KeyUnavailable(UNREACHABLE)
    reason = WHY_DENIED.get(code, "KMS refuses the request; kms_request_failed in the log has its error code")
    return CredentialsDenied(reason) if code in _OF_CREDENTIALS else KeyDenied(reason)


def whole(operation: str, answer: dict[str, Any]) -> dict[str, Any]:
    """Return the answer, or raise `ValueError`: botocore takes a body that is no JSON, or cut, for an empty one."""
    needed: dict[str, tuple[type, int]] = {
        "KeyId": (str, MAXIMUM_NAME_CHARACTERS),
        "Plaintext": (bytes, MAXIMUM_WRAPPED_BYTES),
    }
    if operation == "GenerateDataKey":
        needed["CiphertextBlob"] = (bytes, MAXIMUM_WRAPPED_BYTES)
    for name, (kind, longest) in needed.items():
        if not isinstance(answer.get(name), kind) or not 1 <= len(answer[name]) <= longest:
            raise ValueError
    return answer
