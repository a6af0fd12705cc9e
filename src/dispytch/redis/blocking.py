"""Publishing through the blocking client, from any number of threads."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from dispytch.errors import BrokerError, UnconfirmedError
from dispytch.redis.batches import Batch
from dispytch.redis.feed import PING
from dispytch.redis.source import CONNECT_TIMEOUT, Source, connect_error, import_redis

__all__ = ["BlockingDriver", "connect_blocking", "interrupt"]

_FLUSH_TIMEOUT = 5.0
"""Seconds that a stop waits for confirmations that are under way."""
_REPLIES_PER_CHECK = 64


def interrupt(connection: Any) -> None:
    """Ends what another thread waits for on a connection."""
    sock: Any = connection._sock
    if sock is not None:
        with suppress(OSError):  # it has ended already
            # The plain method, since that of a TLS socket takes the TLS state from under the other thread.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


def connect_blocking(source: Source, timeout: float | None) -> Any:
    """A new connection.

    Raises:
        BrokerError: none could be made.
    """
    redis = import_redis()
    connection = source.blocking()
    seconds = min(source.connect_timeout, CONNECT_TIMEOUT if timeout is None else max(timeout, 0.001))
    connection.socket_connect_timeout = connection.socket_timeout = seconds
    try:
        connection.connect()
        return connection
    except (redis.RedisError, OSError, ValueError) as error:
        problem = connect_error(error, source.address)
    connection.disconnect()
    raise problem  # here, where the client's error, which may quote what was sent, is not its context


class _State:
    """The connections of one process."""

    def __init__(self, most: int | None) -> None:
        self.pid = os.getpid()
        self.slots = None if most is None else threading.Semaphore(most)
        self.condition = threading.Condition()
        self.idle: list[Any] = []
        self.under_way: set[Batch] = set()
        self.closings = 0


class BlockingDriver:
    """Sends batches, each on a connection of its own; connections are kept for the next ones.

    It survives a fork: the child starts over, and the parent's connections stay the parent's.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._state = _State(self._source.max_connections)

    def start(self) -> None:
        """Connects, unless there is a connection, and waits until the server has answered on it.

        Raises:
            BrokerError: none could be made, or the server is silent.
        """
        state = self._here()
        connection, closings = self._take(state, None)
        try:
            _greet(connection, self._source)
        except BaseException:
            connection.disconnect()
            raise
        self._give_back(state, connection, closings)

    def send(self, batch: Batch, timeout: float | None) -> None:
        """Publishes and waits for the confirmations, for ``timeout`` seconds at most; the batch has the outcomes."""
        deadline = None if timeout is None else time.monotonic() + timeout
        state = self._here()
        if state.slots is None:
            self._send(state, batch, timeout)
        elif state.slots.acquire(timeout=timeout):
            try:
                self._send(state, batch, None if deadline is None else deadline - time.monotonic())
            finally:
                state.slots.release()

    def _send(self, state: _State, batch: Batch, timeout: float | None) -> None:
        redis = import_redis()
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            connection, closings = self._take(state, timeout)
        except BrokerError as error:
            batch.fail(error)
            return
        batch.connection = connection
        with state.condition:
            state.under_way.add(batch)
        is_usable = False
        try:
            if not batch.aborted:
                _publish(connection, batch, deadline)
                is_usable = True
        except (redis.RedisError, OSError, AttributeError) as error:  # AttributeError: closed by another thread
            batch.fail(error)
        finally:
            batch.connection = None
            if is_usable:
                self._give_back(state, connection, closings)
            else:
                connection.disconnect()
            with state.condition:
                state.under_way.discard(batch)
                state.condition.notify_all()

    def stop(self) -> None:
        """Waits for what is under way, and disconnects; it may be used again.

        Raises:
            UnconfirmedError: confirmations were missing still.
        """
        state = self._here()
        with state.condition:
            state.closings += 1
            idle, state.idle = state.idle, []
            last = set(state.under_way)
            state.condition.wait_for(lambda: not last & state.under_way, _FLUSH_TIMEOUT)
            late = [batch for batch in last & state.under_way if batch.unconfirmed]
        for connection in idle:
            connection.disconnect()
        if late:
            for batch in late:
                batch.aborted = True
                if (connection := batch.connection) is not None:
                    interrupt(connection)
            count = sum(batch.unconfirmed for batch in late)
            raise UnconfirmedError(
                f"{count} events were sent to Redis at {self._source.address} and not confirmed before the close", count
            )

    def abandon(self) -> None:
        """Forgets the connections, without a word to the server."""
        self._state = _State(self._source.max_connections)

    def _here(self) -> _State:
        state = self._state
        if state.pid != os.getpid():  # forked; several threads may come here at once, and one of their states wins
            state = self._state = _State(self._source.max_connections)
        return state

    def _take(self, state: _State, timeout: float | None) -> tuple[Any, int]:
        closings = state.closings
        while True:
            try:
                connection = state.idle.pop()
            except IndexError:
                return connect_blocking(self._source, timeout), closings
            if _is_fresh(connection):
                return connection, closings
            connection.disconnect()

    def _give_back(self, state: _State, connection: Any, closings: int) -> None:
        with state.condition:
            if closings == state.closings:
                state.idle.append(connection)
                return
        connection.disconnect()


def _is_fresh(connection: Any) -> bool:
    """Whether the server has kept an idle connection open: there must be nothing to read on it, not even its end."""
    redis = import_redis()
    try:
        return not connection.can_read(timeout=0)
    except (redis.RedisError, OSError):
        return False


def _greet(connection: Any, source: Source) -> None:
    """Has the server say something: one that is stuck takes connections, and events with them.

    Raises:
        BrokerUnreachableError: it says nothing.
    """
    redis = import_redis()
    connection._sock.settimeout(source.connect_timeout)
    try:
        connection.send_packed_command([PING], check_health=False)
        with suppress(redis.ResponseError):  # what it refuses, it refuses of the events, too
            connection.read_response()
        return
    except (redis.RedisError, OSError) as error:
        problem = connect_error(error, source.address)
    raise problem


def _publish(connection: Any, batch: Batch, deadline: float | None) -> None:
    response_error = import_redis().exceptions.ResponseError
    read = connection.read_response
    for count, data in batch.chunks():
        _limit(connection, deadline)
        connection.send_packed_command([data], check_health=False)
        for number in range(count):
            if number % _REPLIES_PER_CHECK == 0:
                _limit(connection, deadline)
            try:
                reply = read()
            except response_error as error:
                batch.refuse(error)
            else:
                batch.confirm(reply)


def _limit(connection: Any, deadline: float | None) -> None:
    seconds = None if deadline is None else deadline - time.monotonic()
    if seconds is not None and seconds <= 0:
        raise TimeoutError
    connection._sock.settimeout(seconds)
