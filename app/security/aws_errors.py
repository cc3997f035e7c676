"""What a failed call to AWS is called, for people at a terminal."""

from __future__ import annotations

import re
from typing import Final

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

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
