"""The parts of uvicorn that `app.server` builds on and that uvicorn does not promise to keep."""

from __future__ import annotations

import asyncio
import inspect

import pytest
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import Server, ServerState
from uvicorn.supervisors import Multiprocess

from app.server.http_limits import LimitedHttp

# overridden: uvicorn, its parser or the event loop calls these
OVERRIDDEN = {
    "connection_lost",
    "connection_made",
    "data_received",
    "on_header",
    "on_headers_complete",
    "on_message_begin",
    "on_message_complete",
    "on_response_complete",
    "pause_writing",
    "resume_writing",
    "send_400_response",
}
# read or called in `app.server`
USED = {
    HttpToolsProtocol: ["_start_asgi_task", "_unset_keepalive_if_required", "on_body", "shutdown"],
    RequestResponseCycle: ["run_asgi", "receive", "send"],
    FlowControl: ["pause_reading", "resume_reading"],
    uvicorn.Config: ["bind_socket", "load"],
    Multiprocess: ["run"],
}
ATTRIBUTES = [
    *("app_state", "connections", "cycle", "expect_100_continue", "flow", "headers", "loop", "parser", "pipeline"),
    *("server_state", "transport"),
]
OF_AN_ANSWER = [
    *("chunked_encoding", "default_headers", "disconnected", "expected_content_length", "flow", "keep_alive"),
    *("response_complete", "response_started", "transport", "waiting_for_100_continue"),
]


def test_every_overridden_method_is_one_of_uvicorns() -> None:
    assert OVERRIDDEN - vars(HttpToolsProtocol).keys() == set(), "gone from HttpToolsProtocol"
    own = {name for name, value in vars(LimitedHttp).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert own - {"abort"} == OVERRIDDEN, "OVERRIDDEN lists every method that app.server overrides"


@pytest.mark.parametrize("owner", USED, ids=lambda owner: owner.__name__)
def test_uvicorn_has_each_method_in_use(owner: type) -> None:
    assert [name for name in USED[owner] if not hasattr(owner, name)] == [], f"gone from {owner.__name__}"


async def test_uvicorn_has_each_attribute_in_use() -> None:
    async def application(scope: object, receive: object, send: object) -> None: ...

    protocol = HttpToolsProtocol(uvicorn.Config(application, log_config=None), ServerState(), {})
    assert [name for name in ATTRIBUTES if not hasattr(protocol, name)] == [], "gone from HttpToolsProtocol"
    protocol.on_message_begin()
    assert (protocol.url, protocol.headers) == (b"", []), "on_message_begin no longer starts a request"
    assert FlowControl(asyncio.Transport()).write_paused is False
    started = inspect.getsource(RequestResponseCycle.__init__)
    assert [name for name in OF_AN_ANSWER if f"self.{name}" not in started] == [], "gone from RequestResponseCycle"


def test_the_server_passes_what_the_protocol_takes() -> None:
    startup = inspect.getsource(Server.startup)
    for argument in ("config=config", "server_state=self.server_state", "app_state=self.lifespan.state"):
        assert argument in startup, f"Server.startup no longer passes {argument}"


def test_the_configuration_takes_a_tls_context_factory() -> None:
    assert "ssl_context_factory" in inspect.signature(uvicorn.Config).parameters
