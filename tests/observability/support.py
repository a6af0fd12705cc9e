"""A client for the health server, as raw as the tests need it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.support import PATIENCE


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def read_reply(stream: BufferedByteReceiveStream, *, is_head: bool = False) -> Reply:
    """One response from a connection that may go on."""
    head = await stream.receive_until(b"\r\n\r\n", 100_000)
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = b"" if is_head else await stream.receive_exactly(int(headers["content-length"]))
    return Reply(int(first.split()[1]), headers, body)


def request(path: str, method: str = "GET", *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: here", *headers, "", ""]).encode()


async def get(port: int, path: str, method: str = "GET", host: str = "127.0.0.1") -> Reply:
    with anyio.fail_after(PATIENCE):
        async with await anyio.connect_tcp(host, port) as stream:
            await stream.send(request(path, method))
            return await read_reply(BufferedByteReceiveStream(stream), is_head=method == "HEAD")
