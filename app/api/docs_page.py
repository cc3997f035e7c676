"""The page of the API, `GET /docs`: HTML from the OpenAPI document, without a script.

The browser loads one file besides, the style sheet. docs/decisions/docs-page.md says why it is no Swagger UI.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any, Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from app.api.direct_route import DirectRoute
from app.api.openapi import document
from app.server.security_headers import DOCS_PATH

STYLE_PATH: Final = f"{DOCS_PATH}/style.css"
_REF: Final = "#/components/schemas/"
_CODE: Final = re.compile(r"`([^`]+)`")


def docs_routes(app: FastAPI) -> list[DirectRoute]:
    """Return the routes of the page and its style sheet. They need no key, so both are made once."""
    page = cache(lambda: render(document(app)).encode())
    style = cache(lambda: files("app.api").joinpath("docs_page.css").read_bytes())

    async def docs(_: Request) -> Response:
        return Response(page(), media_type="text/html")

    async def docs_style(_: Request) -> Response:
        return Response(style(), media_type="text/css")

    return [
        DirectRoute(DOCS_PATH, docs, include_in_schema=False),
        DirectRoute(STYLE_PATH, docs_style, include_in_schema=False),
    ]


def render(openapi: dict[str, Any]) -> str:
    """Return the page of an OpenAPI document. Every text of the document is escaped."""
    info, schemas = openapi["info"], openapi["components"]["schemas"]
    by_tag: dict[str, list[tuple[str, str, dict[str, Any]]]] = defaultdict(list)
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            by_tag[operation["tags"][0]].append((method, path, operation))
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(info["title"])}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<link rel="stylesheet" href="{STYLE_PATH}"></head><body><main>',
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>",
        _paragraphs(info["description"]),
        '<p>The same as <a href="/openapi.json">OpenAPI</a>, for generators.</p><nav>',
        *(f'<a href="#{escape(tag)}">{escape(tag)}</a> ' for tag in (*by_tag, "schemas")),
        "</nav>",
    ]
    for tag, operations in by_tag.items():
        parts.append(f'<h2 id="{escape(tag)}">{escape(tag)}</h2>')
        parts += (part for one in operations for part in _operation(*one, schemas))
    parts.append('<h2 id="schemas">schemas</h2>')
    parts += (part for name, schema in sorted(schemas.items()) for part in _schema(name, schema))
    return "\n".join([*parts, "</main></body></html>", ""])


def _operation(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    name = escape(operation["operationId"])
    yield f'<details id="{name}"><summary><b class="{method}">{method.upper()}</b> <code>{escape(path)}</code>'
    yield f"<span>{escape(operation['summary'])}</span></summary>"
    yield _paragraphs(operation.get("description", ""))
    if parameters := operation.get("parameters"):
        yield "<h4>Parameters</h4><table>"
        for one in parameters:
            required = ", required" if one.get("required") else ""
            yield _row(
                f"<code>{escape(one['name'])}</code>",
                f"{escape(one['in'])}{required}",
                f"{_type(one['schema'])} {_text(one.get('description', ''))}",
            )
        yield "</table>"
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<h4>Body <small>{escape(media_type)}</small></h4><p>{_type(content['schema'])}</p>"
        yield from map(_example, schemas[content["schema"]["$ref"].removeprefix(_REF)].get("examples", ()))
    yield "<h4>Answers</h4><table>"
    for status, answer in operation["responses"].items():
        types = {_type(content["schema"]) for content in answer.get("content", {}).values() if "schema" in content}
        yield _row(f"<b>{escape(status)}</b>", _text(answer["description"]), " ".join(sorted(types)))
    yield "</table></details>"


def _schema(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f'<details id="schema-{escape(name)}"><summary><code>{escape(name)}</code></summary>'
    yield _paragraphs(schema.get("description", ""))
    if "enum" in schema:
        yield f"<p>{_type(schema)}</p>"
    if properties := schema.get("properties"):
        yield "<table>"
        for field, described in properties.items():
            required = "required" if field in schema.get("required", ()) else ""
            description = _text(described.get("description", ""))
            yield _row(f"<code>{escape(field)}</code>", required, f"{_type(described)} {description}")
        yield "</table>"
    yield from map(_example, schema.get("examples", ()))
    yield "</details>"


def _type(schema: dict[str, Any]) -> str:
    """Return a type in words, with links to schemas."""
    if "$ref" in schema:
        name = escape(schema["$ref"].removeprefix(_REF))
        return f'<a href="#schema-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(f"<code>{escape(str(one))}</code>" for one in schema["enum"])
    if "const" in schema:
        return f"<code>{escape(str(schema['const']))}</code>"
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    words = [schema.get("format") or schema.get("type", "any")]
    words += (
        f"{bound} {schema[name]}"
        for name, bound in (("minimum", "≥"), ("maximum", "≤"), ("minLength", "length ≥"), ("maxLength", "length ≤"))
        if name in schema
    )
    return f"<i>{escape(', '.join(words))}</i>"


def _example(example: object) -> str:
    return f"<pre>{escape(json.dumps(example, indent=2, ensure_ascii=False))}</pre>"


def _row(*cells: str) -> str:
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_text(one)}</p>" for one in text.strip().split("\n\n") if one)


def _text(text: str) -> str:
    """Return the text as HTML; the only markup of the document's texts is code in backticks."""
    return _CODE.sub(r"<code>\1</code>", escape(text))
