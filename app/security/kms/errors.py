"""Errors of requests to AWS KMS: their names for logs and terminals, and the vault's errors for them."""

from __future__ import annotations

import re
from typing import Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError

from app.errors import CredentialsDenied, IntegrityError, KeyDenied, KeyUnavailable

# the last ones come out of botocore's parser when something other than AWS answers
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
_ABOUT_CREDENTIALS: Final = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
# KMS throttles with HTTP 400, and botocore's own retries know some of these and not others
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
_CREDENTIALS_ERRORS: Final = (
    CredentialRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    TokenRetrievalError,
)
_TOO_MANY_REQUESTS: Final = 429
_SERVER_ERROR: Final = 500
_CODE: Final = re.compile(r"[A-Za-z]{3,64}")


class IncorrectKeyError(Exception):
    """Another key wrapped this data key; the next configured one may be the right one."""


def error_name(error: Exception) -> str:
    """Return AWS's error code or the exception's class, never a text: that may quote requests, users and keys."""
    if isinstance(error, ClientError):
        code = _code_of(error)
        return code if _CODE.fullmatch(code) else NOT_AWS
    if type(error) is RuntimeError:  # botocore's, for credentials that have expired when they are renewed
        return EXPIRED_AT_ONCE
    return type(error).__name__ if isinstance(error, BotoCoreError | OSError) else NOT_AWS


def concerns_credentials(error: Exception) -> bool:
    """Whether credentials could not be found or renewed, so KMS was not asked. They may come later."""
    if isinstance(error, OSError) and not isinstance(error, BotoCoreError):
        return error.filename is not None  # such as the file of a web identity's token; an error of a socket has none
    return isinstance(error, _CREDENTIALS_ERRORS) or error_name(error) == EXPIRED_AT_ONCE


def vault_error_of(error: Exception) -> Exception:
    """Return the error to raise for one of `AWS_ERRORS`: an `EncryptionError`, or `IncorrectKeyError`."""
    if isinstance(error, ClientError):
        return _error_of_code(_code_of(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if concerns_credentials(error):
        return CredentialsDenied("no usable AWS credentials were found")
    if isinstance(error, BotoCoreError) and not isinstance(
        error, BotoConnectionError | HTTPClientError | ResponseParserError
    ):
        return KeyDenied("the AWS settings do not make a valid request")
    return KeyUnavailable(UNREACHABLE)


def _code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _error_of_code(code: str, status: int) -> Exception:
    if code == "IncorrectKeyException":
        return IncorrectKeyError()
    if code == "InvalidCiphertextException":
        return IntegrityError("KMS does not authenticate the wrapped key in this context")
    if code in _UNAVAILABLE or status == _TOO_MANY_REQUESTS or status >= _SERVER_ERROR:
        return KeyUnavailable("KMS throttles requests or is down")
    if not code or code.isdigit():  # botocore's replacement for a missing code is the status; KMS always sends a code
        return KeyUnavailable(UNREACHABLE)
    reason = WHY_DENIED.get(code, "KMS refuses the request; kms_request_failed in the log has its error code")
    return CredentialsDenied(reason) if code in _ABOUT_CREDENTIALS else KeyDenied(reason)
