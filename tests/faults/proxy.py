"""A TCP proxy between a client and a broker, whose connections fail on demand."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

_LOOPBACK = "127.0.0.1"
_CHUNK = 65536


class Proxy:
    """Passes everything on between its clients and a broker on loopback, until it is told otherwise.

    It knows no protocol. A client that is sent elsewhere by the broker, as Kafka's are, needs a broker that advertises
    the proxy: see `tests.brokers.Kafka`. While the broker does not listen, clients are accepted and cut off at once.

    Args:
        url: The address of the broker. Its host must be this machine.
        port: Where to listen; a free port by default.
    """

    def __init__(self, url: str, port: int = 0) -> None:
        self._target = (_LOOPBACK, port_of(url))
        self._listener = socket.create_server((_LOOPBACK, port))
        self.port: int = self._listener.getsockname()[1]
        self.url = re.sub(rf":{port_of(url)}(?=[/?#]|$)", f":{self.port}", url, count=1)
        """The address of the broker by way of the proxy."""
        self.accepted = 0
        """How many connections clients have opened."""
        self._changed = threading.Condition()
        self._frozen = self._drops_replies = self._refuses = self._ended = False
        self._pairs: set[_Pair] = set()
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    @property
    def frozen(self) -> bool:
        """Whether nothing passes, in either direction; it is kept, and goes on its way once this is false again.

        New connections are accepted, and are as silent.
        """
        return self._frozen

    @frozen.setter
    def frozen(self, value: bool) -> None:
        with self._changed:
            self._frozen = value
            self._changed.notify_all()

    @property
    def drops_replies(self) -> bool:
        """Whether what the broker says is thrown away, while what clients say still reaches it.

        A connection of which something was thrown away is of no use afterwards: cut it.
        """
        return self._drops_replies

    @drops_replies.setter
    def drops_replies(self, value: bool) -> None:
        with self._changed:
            self._drops_replies = value

    @property
    def refuses(self) -> bool:
        """Whether new connections are closed at once."""
        return self._refuses

    @refuses.setter
    def refuses(self, value: bool) -> None:
        with self._changed:
            self._refuses = value

    def cut(self) -> None:
        """Closes all connections; new ones work."""
        with self._changed:
            for pair in self._pairs:
                pair.close()
            self._pairs.clear()
            self._changed.notify_all()

    def swallow(self) -> None:
        """Has the connections that there are hear and say nothing any more, not even their end; new ones work."""
        with self._changed:
            for pair in self._pairs:
                pair.swallowed = True

    def close(self) -> None:
        """Closes all connections and the proxy's port."""
        with self._changed:
            self._ended = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()

    def _start(self, function: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments, name="test proxy", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            self.accepted += 1
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            pair = _Pair(client, server)
            with self._changed:
                if self._refuses or self._ended:
                    pair.free()
                    continue
                self._pairs.add(pair)
            self._start(self._pass_on, pair, client, server)
            self._start(self._pass_on, pair, server, client)

    def _pass_on(self, pair: _Pair, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):  # closed, by either side or by us
            while data := source.recv(_CHUNK):
                if not self._may_pass(pair):
                    break
                if source is pair.client or not self._drops_replies:
                    target.sendall(data)
        ended_by_itself = self._may_pass(pair)
        with self._changed:
            if ended_by_itself:
                self._pairs.discard(pair)
                pair.close()
            pair.readers -= 1
            if not pair.readers:
                pair.free()

    def _may_pass(self, pair: _Pair) -> bool:
        """Waits as long as nothing may pass; false once the connection is cut."""
        with self._changed:
            self._changed.wait_for(lambda: pair.closed or not (self._frozen or pair.swallowed))
            return not pair.closed


class _Pair:
    """The two ends of a connection."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.swallowed = False
        self.closed = False
        self.readers = 2
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        """Ends both, and wakes the threads that read them."""
        self.closed = True
        for one in (self.client, self.server):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def free(self) -> None:
        """Gives the descriptors back, once no thread reads from them: another connection may have them at once."""
        self.client.close()
        self.server.close()


@contextmanager
def proxy_to(url: str, port: int = 0) -> Iterator[Proxy]:
    """A proxy for as long as the block runs."""
    proxy = Proxy(url, port)
    try:
        yield proxy
    finally:
        proxy.close()


def port_of(url: str) -> int:
    """The port that an address names."""
    port = urlsplit(url).port
    assert port is not None, "the address names no port"
    return port
