"""A connection of pika, served by a thread of its own: heartbeats and confirmations need somebody who is there."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from dispytch.errors import BrokerError, BrokerUnreachableError
from dispytch.rabbitmq.frames import connection_type
from dispytch.rabbitmq.source import Source, closed_error, connect_error, import_pika
from dispytch.rabbitmq.topology import Refused, Request, Steps

__all__ = ["Wire", "carry_out"]

logger: logging.Logger = logging.getLogger("dispytch")

_CLOSE_TIMEOUT = 2.0
"""Seconds for the broker to answer a close."""
_TICK = 0.5
"""Seconds between signs of life of the thread."""
_LOOKS = 4
"""The broker sends a heartbeat in half of the time agreed on; so many times in a row nothing came, it is gone."""


class Wire:
    """One connection from its opening to its end, and its thread. Used once.

    Args:
        name: The thread's name, after ``dispytch``.
        on_open: Called in the thread when the connection is open; ``connection`` can be used then, in the thread only.
        on_end: Called in the thread, once, when it is all over, with the reason; ``None`` after `close`.
        delay: Seconds to wait before connecting.
    """

    def __init__(
        self,
        source: Source,
        name: str,
        on_open: Callable[[], None],
        on_end: Callable[[BrokerError | None], None],
        delay: float = 0.0,
    ) -> None:
        import_pika()
        from pika.adapters.select_connection import IOLoop

        self.source: Source = source
        self.connection: Any = None
        self.closing: bool = False
        self.ran_at: float = time.monotonic()
        """When the thread last ran."""
        self._on_open = on_open
        self._on_end = on_end
        self._delay = delay
        self._error: BrokerError | None = None
        self._was_open = False
        self._loop: Any = IOLoop()
        self._calls: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._scheduled = False
        self._ended = False
        self._thread = threading.Thread(target=self._run, name=f"dispytch {name}", daemon=True)

    def start(self) -> None:
        """Connects; once whoever made it has it at hand, since the thread calls back."""
        self._thread.start()

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def is_alive(self) -> bool:
        """Whether its thread has not returned."""
        return self._thread.is_alive()

    def post(self, call: Callable[[], None]) -> bool:
        """Has the thread make a call soon, after those posted before; False if it has ended. From any thread."""
        with self._lock:
            if self._ended:
                return False
            self._calls.append(call)
            if self._scheduled:
                return True
            self._scheduled = True
            self._loop.add_callback_threadsafe(self._make_calls)
        return True

    def close(self) -> None:
        """Has the connection closed, after the calls posted before. From any thread, idempotent."""
        self.post(self._close)

    def join(self, timeout: float) -> None:
        """Waits for the thread's end. From any other thread."""
        self._thread.join(timeout)

    def fail(self, error: BrokerError) -> None:
        """Ends it because of an error. In the thread."""
        if self._error is None:
            self._error = error
        self._close()

    # --- in the thread

    def _run(self) -> None:
        loop = self._loop
        try:
            loop.call_later(self._delay, self._connect)
            loop.start()
        except Exception as problem:  # what pika raises at a malformed frame, for instance
            if self._error is None and not self.closing:
                self._error = self._problem(problem)
            self._give_up()
            loop.start()
        finally:
            with self._lock:
                self._ended = True
            try:
                self._make_calls()  # they find that it is over, and nobody waits in vain
            finally:
                error = self._error
                if error is None and not self.closing:
                    error = BrokerUnreachableError(f"the connection to RabbitMQ at {self.source.address} ended")
                try:
                    self._on_end(error)
                finally:
                    loop.close()

    def _connect(self) -> None:
        if self.closing:
            self._loop.stop()
            return
        self.connection = connection_type()(
            self.source.pika_parameters("dispytch"),
            on_open_callback=self._opened,
            on_open_error_callback=self._closed,
            on_close_callback=self._closed,
            custom_ioloop=self._loop,
        )

    def _opened(self, connection: Any) -> None:
        self._was_open = True
        if self.closing:
            self._close()
            return
        if heartbeat := connection.params.heartbeat:
            self._loop.call_later(heartbeat / 2, partial(self._watch, heartbeat, connection.bytes_received, 0))
        self._tick()
        self._on_open()

    def _tick(self) -> None:
        self.ran_at = time.monotonic()
        if not self.closing:
            self._loop.call_later(_TICK, self._tick)

    def _watch(self, heartbeat: float, seen: int, silent: int) -> None:
        """Notices a half-open connection after two heartbeats; pika's own watch takes twice as long, and 10 s more.

        It counts looks, not seconds, since the process may have been asleep.
        """
        connection = self.connection
        if connection is None or self.closing:
            return
        received = connection.bytes_received
        silent = silent + 1 if received == seen else 0
        if silent < _LOOKS:
            self._loop.call_later(heartbeat / 2, partial(self._watch, heartbeat, received, silent))
            return
        self._error = BrokerUnreachableError(
            f"the connection to RabbitMQ at {self.source.address} broke off: nothing came for {2 * heartbeat:g} s, "
            "not even a heartbeat"
        )
        self.closing = True
        self._give_up()

    def _closed(self, connection: Any, reason: BaseException) -> None:
        if self._error is None and not self.closing:
            self._error = self._problem(reason)
        self._loop.stop()

    def _problem(self, reason: BaseException) -> BrokerError:
        return (closed_error if self._was_open else connect_error)(reason, self.source)

    def _make_calls(self) -> None:
        self._scheduled = False
        calls = self._calls
        while calls:
            calls.popleft()()

    def _close(self) -> None:
        if self.closing:
            return
        self.closing = True
        connection = self.connection
        if connection is None or connection.is_closed:
            self._loop.stop()
        elif connection.is_open:
            self._loop.call_later(_CLOSE_TIMEOUT, self._give_up)
            connection.close()
        else:
            self._give_up()

    def _give_up(self) -> None:
        """Lets go of the socket without a word, and then of the loop, which the closing of a socket needs."""
        connection, self.connection = self.connection, None
        transport = getattr(connection, "_transport", None)
        workflow = getattr(connection, "_connection_workflow", None)
        try:
            if transport is not None:
                connection._terminate_stream(import_pika().exceptions.StreamLostError("given up"))
            elif workflow is not None:
                workflow.abort()
        except Exception as error:  # it is being thrown away
            logger.debug("A broken connection to RabbitMQ at %s was not closed: %r", self.source.address, error)
        self._loop.add_callback_threadsafe(self._loop.stop)


def carry_out(wire: Wire, steps: Steps, done: Callable[[BrokerError | None], None]) -> None:
    """Carries out requests one after the other, on a channel of their own. In the wire's thread.

    Args:
        done: Called when they are all carried out, or with the error that ended them; not if the connection ends.
    """
    _Errand(wire, steps, done).advance(None)


class _Errand:
    def __init__(self, wire: Wire, steps: Steps, done: Callable[[BrokerError | None], None]) -> None:
        self._wire = wire
        self._steps = steps
        self._done = done
        self._channel: Any = None
        self._request: Request

    def advance(self, refused: Refused | None) -> None:
        try:
            self._request = next(self._steps) if refused is None else self._steps.throw(refused)
        except StopIteration:
            self._finish(None)
        except BrokerError as error:
            self._finish(error)
        except Refused as unexpected:
            self._finish(BrokerError(f"RabbitMQ at {self._wire.source.address} refused: {unexpected.text}"))
        else:
            if self._channel is None:
                self._wire.connection.channel(on_open_callback=self._opened)
            else:
                self._ask()

    def _opened(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._closed)
        self._ask()

    def _ask(self) -> None:
        getattr(self._channel, self._request.method)(**self._request.arguments, callback=lambda _: self.advance(None))

    def _closed(self, channel: Any, reason: BaseException) -> None:
        if channel is not self._channel:
            return
        self._channel = None
        code = getattr(reason, "reply_code", None)
        if self._wire.connection is not None and self._wire.connection.is_open and code is not None:
            self.advance(Refused(code, getattr(reason, "reply_text", "")))

    def _finish(self, error: BrokerError | None) -> None:
        channel, self._channel = self._channel, None
        if channel is not None and channel.is_open:
            channel.close()
        self._done(error)
