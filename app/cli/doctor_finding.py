"""A finding of `token-vault doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """As printed in front of a finding; only `FAILURE` changes the exit code."""

    OK = "ok"
    WARNING = "warn"
    FAILURE = "FAIL"


@dataclass(frozen=True, slots=True)
class DoctorFinding:
    """One line of the report. `text` of a warning or failure says what to do; it holds no secret."""

    severity: Severity
    subject: str
    text: str

    @classmethod
    def ok(cls, subject: str, text: str) -> DoctorFinding:
        return cls(Severity.OK, subject, text)

    @classmethod
    def warning(cls, subject: str, text: str) -> DoctorFinding:
        return cls(Severity.WARNING, subject, text)

    @classmethod
    def failure(cls, subject: str, text: str) -> DoctorFinding:
        return cls(Severity.FAILURE, subject, text)
