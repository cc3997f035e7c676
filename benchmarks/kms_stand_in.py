"""A KMS that answers as late as KMS does within a Region, and costs next to no processor time.

moto takes several milliseconds of a core for each request, so that it, and not what asks it, would be measured. The
wrapped data key is the key itself behind the number of the KMS key: this is about time and nothing else.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from typing import Any

import uvloop

from benchmarks.load import LOOPBACK

ARNS = tuple(f"arn:aws:kms:eu-west-1:000000000000:key/0000000{number}-0000-4000-8000-000000000000" for number in (1, 2))
# AWS gives no figure for KMS; a few milliseconds are what a client in the same Region sees
LATENCY_SECONDS = 0.005


def _answer(operation: str, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    if operation == "GenerateDataKey":
        key = os.urandom(32)
        wrapped = bytes([ARNS.index(asked["KeyId"])]) + key
        return 200, {"KeyId": asked["KeyId"], "Plaintext": _text(key), "CiphertextBlob": _text(wrapped)}
    wrapped = base64.b64decode(asked["CiphertextBlob"])
    if ARNS[wrapped[0]] != asked["KeyId"]:
        return 400, {"__type": "IncorrectKeyException"}
    return 200, {"KeyId": asked["KeyId"], "Plaintext": _text(wrapped[1:])}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def _serve_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode().lower().splitlines()
            headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            if lines[0].startswith("get "):  # whether it is up
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                continue
            operation = "GenerateDataKey" if headers["x-amz-target"].endswith("generatedatakey") else "Decrypt"
            await asyncio.sleep(LATENCY_SECONDS)
            status, members = _answer(operation, json.loads(body))
            content = json.dumps(members).encode()
            writer.write(
                b"HTTP/1.1 %d OK\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: %d\r\n\r\n%b"
                % (status, len(content), content)
            )
    except (asyncio.IncompleteReadError, OSError):
        pass  # the client left
    finally:
        writer.close()


async def _serve(port: int) -> None:
    server = await asyncio.start_server(_serve_client, LOOPBACK, port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1])))
