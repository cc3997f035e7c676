"""Schemas of known documents. Their validators are imported when they are needed: compiling a grammar takes seconds."""

from __future__ import annotations

import json
from importlib.resources import files


def validate_as(name: str, document: object) -> None:
    """Validate against a schema that check-jsonschema brings along; raises `jsonschema.ValidationError`."""
    import jsonschema  # noqa: PLC0415  see above

    schema = files("check_jsonschema") / "builtin_schemas" / "vendor" / f"{name}.json"
    jsonschema.validate(document, json.loads(schema.read_text()))


def manifest_problem(manifest: dict[str, object], *, version: str) -> str | None:
    """Return what is wrong with a manifest for a version of Kubernetes, or `None`."""
    import kubernetes_validate  # noqa: PLC0415  see above

    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error)
    return None
