"""`GET /docs`: the whole API as a page that loads one style sheet and runs nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from app.api.docs_page import STYLE_PATH, render
from scripts.write_openapi import OPENAPI_FILE
from tests.support.api.service import Service
from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.stores.stores import SqliteStore

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class _Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture
def page(sqlite_service: tuple[Service, SqliteStore]) -> httpx.Response:
    return httpx.get(f"{sqlite_service[0].url}/docs", trust_env=False, verify=PLAIN_HTTP)


def test_the_page_shows_every_operation_and_schema(page: httpx.Response) -> None:
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    document = json.loads(OPENAPI_FILE.read_text())
    ids = {attributes.get("id") for _, attributes in _Tags(page.text).tags}
    operations = {one["operationId"] for methods in document["paths"].values() for one in methods.values()}
    assert operations | {f"schema-{name}" for name in document["components"]["schemas"]} <= ids
    links = {attributes["href"] for tag, attributes in _Tags(page.text).tags if tag == "a"}
    assert {link for link in links if link} - {f"#{one}" for one in ids} == {"/openapi.json"}


def test_the_page_may_load_its_style_sheet_and_nothing_else(
    page: httpx.Response, sqlite_service: tuple[Service, SqliteStore]
) -> None:
    policy = dict(one.split(" ", 1) for one in page.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "style-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    tags = _Tags(page.text).tags
    assert not {tag for tag, _ in tags} & {"script", "style", "img", "iframe", "form", "input", "base", "object"}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on") or name == "style"]
    assert [attributes["href"] for tag, attributes in tags if tag == "link"] == [STYLE_PATH]
    style = httpx.get(f"{sqlite_service[0].url}{STYLE_PATH}", trust_env=False, verify=PLAIN_HTTP)
    assert (style.status_code, style.headers["content-type"]) == (200, "text/css; charset=utf-8")
    assert not re.search(r"url\(|@import", style.text)


def test_every_text_of_the_document_is_escaped() -> None:
    evil = "<script>alert(1)</script>`<b onclick=x>`"
    document = json.loads(OPENAPI_FILE.read_text())

    def replaced(node: object) -> object:
        if isinstance(node, dict):
            return {
                name: evil if name in {"description", "summary", "title"} else replaced(value)
                for name, value in node.items()
            }
        return [replaced(one) for one in node] if isinstance(node, list) else node

    for texts in (replaced(document["paths"]), replaced(document["info"])):
        where = "paths" if "/healthz" in str(texts) else "info"
        page = render({**document, where: texts})
        assert "<script" not in page
        assert "<b onclick" not in page


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_the_page_and_blocks_nothing(
    sqlite_service: tuple[Service, SqliteStore], tmp_path: Path
) -> None:
    shown = subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"),
            *(f"--user-data-dir={tmp_path}", "--window-size=1000,900", f"--screenshot={tmp_path / 'page.png'}"),
            f"{sqlite_service[0].url}/docs",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert (tmp_path / "page.png").stat().st_size > 10_000
    assert "Content Security Policy" not in shown.stderr
