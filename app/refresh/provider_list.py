"""The JSON object that `OAUTH_PROVIDERS_FILE` and `OAUTH_PROVIDERS` hold: parsing, and the files it depends on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from app.private_file import UnsafeFileError, read_private_file
from app.refresh.client_authentication import SigningKeyError, signing_algorithm
from app.refresh.endpoints import EndpointError, parse_endpoint, parse_host
from app.refresh.presets import PRESETS
from app.refresh.providers import (
    DEFAULT_LEASE_SECONDS,
    SINGLE_USE_LEASE_SECONDS,
    ClientAuthentication,
    OAuthProvider,
    Revocation,
    Rotation,
)
from app.strict_json import unique_members
from app.tokens.models import SLUG_PATTERN

MAXIMUM_FILE_BYTES: Final = 1024 * 1024
_MAXIMUM_SECRET_BYTES: Final = 64 * 1024
_SLUG: Final = re.compile(SLUG_PATTERN)
_FORMS: Final = ("", "_file", "_env")

ReadVariable = Callable[[str], str | None]
_Text = Annotated[str, Field(min_length=1, max_length=2048, pattern=r"^[!-~]+$")]
_Path = Annotated[str, Field(min_length=1, max_length=4096)]
_ErrorCode = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class ProviderListError(Exception):
    """An invalid list of providers. The text names entry and member, and quotes no value.

    `files` are those whose content made it invalid; with `may_pass` the system failed to read one of them, and may do
    better without a change.
    """

    def __init__(self, text: str, *, may_pass: bool = False) -> None:
        super().__init__(text)
        self.files: frozenset[Path] = frozenset()
        self.may_pass = may_pass


class ProviderEntry(BaseModel):
    """One entry, completed by its preset."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, strict=True)

    preset: Literal["google", "microsoft", "canvas", "notion", "apple"] | None = None
    client_id: _Text
    client_secret: SecretStr | None = None
    client_secret_file: _Path | None = None
    client_secret_env: _Text | None = None
    previous_client_secret: SecretStr | None = None
    previous_client_secret_file: _Path | None = None
    previous_client_secret_env: _Text | None = None
    client_auth: Literal["basic", "post", "private_key_jwt", "apple"]
    signing_key_id: _Text | None = None
    team_id: _Text | None = None
    audience: _Text | None = None
    tenant: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]{1,128}$")] | None = None
    token_url: str | None = None
    revoke_url: str | None = None
    discovery_url: str | None = None
    allowed_hosts: Annotated[list[str], Field(max_length=10_000)] = []
    allow_insecure: bool = False
    body: Literal["form", "json"] = "form"
    send_scope: bool = False
    rotation: Literal["none", "reusable", "single_use"]
    invalidates_old_access_token: bool = False
    default_lifetime_seconds: Annotated[int, Field(ge=60, le=366 * 86_400)] = 3600
    refresh_margin_seconds: Annotated[int, Field(ge=0, le=86_400)] = 300
    lease_seconds: Annotated[int, Field(ge=30, le=3600)] | None = None
    minimum_interval_seconds: Annotated[int, Field(ge=0, le=31 * 86_400)] = 0
    requests_per_second: Annotated[float, Field(gt=0, le=10_000)] | None = None
    idle_days: Annotated[int, Field(ge=1, le=3660)] | None = None
    reauth_errors: Annotated[list[_ErrorCode], Field(max_length=100)] = []

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problem = next(self._problems(), None)
        if problem is not None:
            raise PydanticCustomError("inconsistent", "{problem}", {"problem": problem})
        return self

    def _problems(self) -> Iterator[str]:
        yield from self._wrong_urls()
        yield from self._wrong_hosts()
        yield from self._wrong_client()
        if self.tenant is not None and self.preset != "microsoft":
            yield "tenant: is a member of the preset microsoft alone"

    def _wrong_urls(self) -> Iterator[str]:
        for name in ("token_url", "revoke_url", "discovery_url"):
            url = getattr(self, name)
            try:
                if url is not None:
                    parse_endpoint(url, allow_insecure=self.allow_insecure)
            except EndpointError as error:
                yield f"{name}: {error}"

    def _wrong_hosts(self) -> Iterator[str]:
        by_base_url = self.preset == "canvas" and self.token_url is None
        if self.token_url is None and not by_base_url:
            yield "token_url: is required, because the entry has no preset that knows it"
        if by_base_url and not self.allowed_hosts:
            yield "allowed_hosts: is required, because the host comes from each token's base_url"
        if self.allowed_hosts and not by_base_url:
            yield "allowed_hosts: has no effect with a token_url"
        for host in self.allowed_hosts:
            try:
                if parse_host(host, allow_insecure=self.allow_insecure) != host:
                    yield "allowed_hosts: has a host that is not in its plain form, like school.instructure.com"
            except EndpointError as error:
                yield f"allowed_hosts: has a host that {error}"

    def _wrong_client(self) -> Iterator[str]:
        for name in ("team_id", "signing_key_id"):
            if self.client_auth == "apple" and getattr(self, name) is None:
                yield f"{name}: is required with client_auth apple"
        for kind in ("client_secret", "previous_client_secret"):
            given = [form for form in _FORMS if getattr(self, kind + form) is not None]
            if len(given) > 1:
                yield f"{kind}{given[1]}: excludes {kind}{given[0]}; give one of them"
            elif not given and kind == "client_secret":
                yield "client_secret: is required, or client_secret_file, or client_secret_env"


@dataclass(frozen=True, slots=True)
class LoadedProviders:
    """The providers, and every file whose content they depend on."""

    providers: tuple[OAuthProvider, ...]
    files: frozenset[Path]


class ProviderSource:
    """Where the list comes from: a file that is read anew at each load, or the text of a setting."""

    def __init__(
        self, *, file: Path | None = None, text: SecretStr | None = None, read_variable: ReadVariable = lambda _: None
    ) -> None:
        self._file = file
        self._text = text
        self._read_variable = read_variable

    @property
    def file(self) -> Path | None:
        return self._file

    def load(self) -> LoadedProviders:
        """Read the list and the files that its entries name; raises `ProviderListError`."""
        files = set() if self._file is None else {self._file}
        try:
            if self._file is None:
                text: str | bytes = "{}" if self._text is None else self._text.get_secret_value()
            else:
                text = _read(self._file, MAXIMUM_FILE_BYTES, "the file")
            providers = tuple(self._provider(name, entry, files) for name, entry in _entries(text))
        except ProviderListError as error:
            error.files = frozenset(files)
            raise
        return LoadedProviders(providers, frozenset(files))

    def _provider(self, name: str, members: Any, files: set[Path]) -> OAuthProvider:  # noqa: ANN401  any JSON
        entry = _validated(name, members)
        secrets = []
        for kind in ("client_secret", "previous_client_secret"):
            form = next((form for form in _FORMS if getattr(entry, kind + form) is not None), None)
            if form is not None:
                secrets.append(self._secret(f"{name}.{kind}{form}", form, getattr(entry, kind + form), files))
        authentication = ClientAuthentication(entry.client_auth)
        algorithm = None
        if authentication.signs:
            try:
                algorithm, *_ = [signing_algorithm(authentication, secret) for secret in secrets]
            except SigningKeyError as error:
                raise ProviderListError(f"{name}.client_secret: {error}") from None
        rotation = Rotation(entry.rotation)
        single_use = rotation is Rotation.SINGLE_USE
        fixed = {} if entry.preset is None else dict(PRESETS[entry.preset].fixed)
        revocation = fixed.pop("revocation", None if entry.revoke_url is None else "rfc7009")
        values: dict[str, Any] = {
            "name": name,
            "client_secrets": tuple(secrets),
            "client_auth": authentication,
            "signing_algorithm": algorithm,
            "rotation": rotation,
            "lease_seconds": entry.lease_seconds or (SINGLE_USE_LEASE_SECONDS if single_use else DEFAULT_LEASE_SECONDS),
            "allowed_hosts": frozenset(entry.allowed_hosts),
            "reauth_errors": frozenset({"invalid_grant", *entry.reauth_errors}),
            "revocation": Revocation(revocation or "none"),
        }
        same = {
            member: getattr(entry, member)
            for member in OAuthProvider.__dataclass_fields__
            if member in ProviderEntry.model_fields and member not in values
        }
        return OAuthProvider(**same, **values, **fixed)

    def _secret(self, place: str, form: str, value: SecretStr | str, files: set[Path]) -> SecretStr:
        if isinstance(value, SecretStr):
            text = value.get_secret_value()
        elif form == "_env":
            text = self._read_variable(value) or ""
            if not text:
                raise ProviderListError(f"{place}: the environment variable that it names is not set")
        else:
            path = Path(value)
            if self._file is not None:
                path = self._file.parent / path
            files.add(path)
            try:
                text = _read(path, _MAXIMUM_SECRET_BYTES, "the file that it names").decode("utf-8-sig").rstrip("\r\n")
            except ProviderListError as error:
                raise ProviderListError(f"{place}: {error}", may_pass=error.may_pass) from None
            except UnicodeDecodeError:
                raise ProviderListError(f"{place}: the file that it names is not UTF-8 text") from None
        if not text.strip() or "\0" in text:
            raise ProviderListError(f"{place}: is empty, or no text")
        return SecretStr(text)


def _entries(text: str | bytes) -> Iterator[tuple[str, Any]]:
    try:
        entries = json.loads(text, object_pairs_hook=unique_members)
    except (ValueError, RecursionError):
        raise ProviderListError("the list of providers is not valid JSON, or has a member twice") from None
    if not isinstance(entries, dict):
        raise ProviderListError('the list of providers is not an object, like {"google": {"preset": "google", …}}')
    for number, (name, entry) in enumerate(entries.items(), 1):
        if not _SLUG.fullmatch(name):
            raise ProviderListError(f"entry {number}: its name must match {SLUG_PATTERN}")
        yield name, entry


def _validated(name: str, members: Any) -> ProviderEntry:  # noqa: ANN401  any JSON
    if not isinstance(members, dict):
        raise ProviderListError(f"{name}: is not an object")
    for member in members:
        if member not in ProviderEntry.model_fields:
            nearest = get_close_matches(member, ProviderEntry.model_fields, n=1)
            meant = f"; did you mean {nearest[0]}?" if nearest else ""
            raise ProviderListError(f"{name}: has an unknown member{meant}")
    preset = members.get("preset")
    known = PRESETS.get(preset) if isinstance(preset, str) else None
    complete = ({} if known is None else dict(known.members)) | members
    if preset == "microsoft" and isinstance(complete.get("tenant", "common"), str):
        tenant = complete.get("tenant", "common")
        for url in ("token_url", "discovery_url"):
            if url not in members:
                complete[url] = complete[url].replace("{tenant}", tenant)
    try:
        return ProviderEntry.model_validate(complete)
    except ValidationError as error:
        raise ProviderListError(f"{name}{_describe(error)}") from None


def _describe(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    rule = first["msg"].partition(",")[0] if first["type"] != "inconsistent" else first["msg"]
    if not first["loc"]:
        return f".{rule}"
    if first["type"] == "missing":
        return f".{first['loc'][0]}: is required, because the entry has no preset that knows it"
    return f".{first['loc'][0]}: {rule[:1].lower()}{rule[1:]}"


def _read(path: Path, maximum_bytes: int, what: str) -> bytes:
    try:
        return read_private_file(path, maximum_bytes=maximum_bytes)
    except UnsafeFileError as error:
        raise ProviderListError(f"{what} cannot be used: {error}") from None
    except OSError as error:
        seen_in_status = isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError)
        raise ProviderListError(f"{what} cannot be read: {error.strerror}", may_pass=not seen_in_status) from None
    except ValueError:
        raise ProviderListError(f"{what} is not a path") from None
