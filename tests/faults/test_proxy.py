"""The proxy passes on what it gets, and fails as it is told."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.faults.proxy import Proxy, proxy_to

_SILENCE = 0.2


@pytest.fixture
def heard() -> list[bytes]:
    """What has reached the server."""
    return []


@pytest.fixture
def proxy(heard: list[bytes]) -> Iterator[Proxy]:
    """A proxy to a server that answers everything by itself."""

    def echo(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(100):
                heard.append(data)
                connection.sendall(data)

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=echo, args=[listener.accept()[0]], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        with proxy_to(f"redis://127.0.0.1:{listener.getsockname()[1]}/0") as proxy:
            yield proxy
        listener.shutdown(socket.SHUT_RDWR)


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def ask(client: socket.socket, text: bytes) -> bytes:
    client.sendall(text)
    return client.recv(100)


def is_silent(client: socket.socket) -> bool:
    client.settimeout(_SILENCE)
    try:
        client.recv(100)
    except TimeoutError:
        return True
    finally:
        client.settimeout(10)
    return False


def test_it_passes_on_what_it_gets(proxy: Proxy) -> None:
    assert proxy.url == f"redis://127.0.0.1:{proxy.port}/0"
    with connect(proxy) as client:
        assert [ask(client, b"one"), ask(client, b"two")] == [b"one", b"two"]
    assert proxy.accepted == 1


def test_what_is_cut_ends_and_new_connections_work(proxy: Proxy) -> None:
    with connect(proxy) as client, connect(proxy) as other:
        assert ask(client, b"one") == ask(other, b"one")
        proxy.cut()
        assert (client.recv(100), other.recv(100)) == (b"", b"")
    with connect(proxy) as again:
        assert ask(again, b"two") == b"two"


def test_what_is_frozen_is_kept(proxy: Proxy, heard: list[bytes]) -> None:
    with connect(proxy) as client:
        proxy.frozen = True
        client.sendall(b"one")
        assert is_silent(client)
        assert heard == []
        proxy.frozen = False
        assert client.recv(100) == b"one"


def test_what_is_swallowed_hears_nothing_more_and_new_connections_work(proxy: Proxy, heard: list[bytes]) -> None:
    with connect(proxy) as client:
        assert ask(client, b"one") == b"one"
        proxy.swallow()
        client.sendall(b"two")
        assert is_silent(client)
        with connect(proxy) as other:
            assert ask(other, b"three") == b"three"
        assert heard == [b"one", b"three"]


def test_replies_are_dropped(proxy: Proxy, heard: list[bytes]) -> None:
    with connect(proxy) as client:
        proxy.drops_replies = True
        client.sendall(b"one")
        assert is_silent(client)
        assert heard == [b"one"]


def test_connections_are_refused(proxy: Proxy) -> None:
    proxy.refuses = True
    with connect(proxy) as client:
        assert client.recv(100) == b""
    proxy.refuses = False
    with connect(proxy) as client:
        assert ask(client, b"one") == b"one"
