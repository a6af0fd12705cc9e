"""The producers of RabbitMQ."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import anyio
import anyio.lowlevel
import anyio.to_thread

from dispytch._bridge import Loop, running_backend
from dispytch.abc import BlockingProducer, EventConfig, EventRoute, Features, Message, Producer, ProducerBase, Receipt
from dispytch.errors import BrokerError, ConfigurationError, DispytchError
from dispytch.rabbitmq.aio import AioPikaOutlet, exchanges_of
from dispytch.rabbitmq.batches import Batch
from dispytch.rabbitmq.bindings import check_name
from dispytch.rabbitmq.properties import check_message, check_route
from dispytch.rabbitmq.publisher import Outlet
from dispytch.rabbitmq.routes import RabbitMQEventConfig, RabbitMQEventRoute
from dispytch.rabbitmq.source import Source

__all__ = ["DEFAULT_EXCHANGE", "FEATURES", "BlockingRabbitMQProducer", "Driver", "RabbitMQProducer", "check_driver"]

DEFAULT_EXCHANGE = "dispytch"
FEATURES = Features(header_prefix="ce-", old_messages=False)
Driver = Literal["pika", "aio-pika"]

_LOOP: anyio.lowlevel.RunVar[object] = anyio.lowlevel.RunVar("dispytch_rabbitmq_loop")
_RETURNS: anyio.lowlevel.RunVar[_Returns] = anyio.lowlevel.RunVar("dispytch_rabbitmq_returns")


def current_loop() -> object:
    """Something that stands for the running loop."""
    try:
        return _LOOP.get()
    except LookupError:
        _LOOP.set(loop := object())
        return loop


def check_driver(driver: str | None) -> None:
    if driver not in (None, "pika", "aio-pika"):
        raise ConfigurationError(f"driver={driver!r}: choose 'pika' or 'aio-pika', or leave it out")


def refuse_trio(what: str) -> None:
    if running_backend() == "trio":
        raise ConfigurationError(f"{what} works under asyncio only, and this is trio; give a URL and driver='pika'")


class _Returns:
    """Tells waiting tasks of one loop that their batches are done; what comes together is told with one post."""

    def __init__(self) -> None:
        self._loop = Loop()
        self._done: deque[anyio.Event] = deque()
        self._posted = False

    @classmethod
    def here(cls) -> _Returns:
        try:
            return _RETURNS.get()
        except LookupError:
            _RETURNS.set(returns := cls())
            return returns

    def tell(self, event: anyio.Event) -> None:
        """From any thread."""
        self._done.append(event)
        if not self._posted:
            self._posted = True
            self._loop.post(self._deliver)

    def _deliver(self) -> None:
        self._posted = False
        while self._done:
            self._done.popleft().set()


class _Sender(ProducerBase):
    transport: ClassVar[str] = "rabbitmq"
    features: Features = FEATURES
    route_type: ClassVar[type[EventRoute]] = RabbitMQEventRoute
    config_type: ClassVar[type[EventConfig]] = RabbitMQEventConfig

    def __init__(self, source: Source | None, exchange: str, mandatory: bool) -> None:
        check_name(exchange, "exchange's name")
        self.exchange: str = exchange
        self.mandatory: bool = mandatory
        self._source = source
        self._outlet: Outlet | None = None
        self._sound: EventRoute | None = None
        """The last route that was looked at; those of a class are one."""

    def __repr__(self) -> str:
        where = f"for {self._source.address}" if self._source is not None else f"with exchange {self.exchange!r}"
        return f"<{type(self).__name__} {where}>"

    def destination(self, route: EventRoute) -> str:
        exchange = route.exchange if isinstance(route, RabbitMQEventRoute) else None
        return f"{self.exchange if exchange is None else exchange}:{route.address}"

    def route_for(self, topic: str) -> EventRoute:
        return RabbitMQEventRoute(topic)

    def route_back(self, source: str, scope: str | None) -> EventRoute:
        return RabbitMQEventRoute(source, scope)

    def check(self, message: Message) -> None:
        if message.route is not self._sound:
            check_route(message, self.exchange)
            self._sound = message.route
        check_message(message)

    def _batch(self, messages: Sequence[Message], timeout: float | None, notify: Callable[[], object]) -> Batch:
        address = self._source.address if self._source is not None else "its connection"
        return Batch(messages, self.exchange, address, timeout, notify)

    def _pika(self, source: Source) -> Outlet:
        """What publishes in this process."""
        outlet = self._outlet
        if outlet is None or outlet.pid != os.getpid():
            with _making:  # several threads may come here at once
                outlet = self._outlet
                if outlet is None or outlet.pid != os.getpid():
                    outlet = self._outlet = Outlet(source, self.mandatory)
        return outlet


_making = threading.Lock()


def _renew_lock() -> None:
    global _making
    _making = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


class RabbitMQProducer(_Sender, Producer):
    """Publishes to exchanges of RabbitMQ, from an event loop, or by `blocking` from blocking code.

    Every message is persistent, unless its event class says otherwise, and confirmed by the broker. The exchanges
    are declared as durable topic exchanges unless they exist; what exists is left as it is.

    Args:
        connection: ``amqp://user:password@host:5672/vhost``, or ``amqps://`` for TLS with verification. Options are
            ``cafile``, ``certfile``, ``keyfile``, ``no_verify_ssl=1``, ``heartbeat`` and ``connection_timeout`` (both
            in seconds). Or ready-made exchanges of aio-pika (on asyncio only), one or a list, on which nothing is
            declared and which are not closed.
        exchange: Where events go whose routes name none; with ready-made exchanges, the first of them.
        mandatory: Whether an event that no queue takes is an error; otherwise it is confirmed, and gone.
        driver: ``"pika"`` for pika in a thread of its own, ``"aio-pika"`` on asyncio; with ``None`` pika.

    Raises:
        ConfigurationError: the URL or another argument is wrong.
        MissingExtraError: a client library is not installed.
    """

    def __init__(
        self,
        connection: Any,
        exchange: str = DEFAULT_EXCHANGE,
        mandatory: bool = True,
        *,
        driver: Driver | None = None,
    ) -> None:
        check_driver(driver)
        self._exchanges: dict[str, Any] = {}
        source: Source | None = None
        if isinstance(connection, Source):
            source = connection
        elif isinstance(connection, str):
            source = Source(connection)
        else:
            self._exchanges = exchanges_of(connection)
            exchange = next(iter(self._exchanges))
            if driver is not None:
                raise ConfigurationError("driver= is for a URL; ready-made exchanges bring their own")
        super().__init__(source, exchange, mandatory)
        self._driver = driver
        self._aio: AioPikaOutlet | None = None
        self._loop: object = None

    def accepts(self, route: EventRoute, config: EventConfig | None) -> str | None:
        if (problem := super().accepts(route, config)) is not None:
            return problem
        name = route.exchange if isinstance(route, RabbitMQEventRoute) else None
        if self._exchanges and name is not None and name not in self._exchanges and "{" not in name:
            return (
                f"its route goes to the exchange {name!r}, and the producer was given "
                f"{', '.join(map(repr, self._exchanges))} only"
            )
        return None

    async def start(self) -> None:
        source = self._pika_source()
        if source is None:
            await self._here().start()
            return
        returns, event = _Returns.here(), anyio.Event()
        found: list[BrokerError | None] = []

        def told(error: BrokerError | None) -> None:
            found.append(error)
            returns.tell(event)

        self._pika(source).connect(told)
        await event.wait()
        if found[0] is not None:
            raise found[0]

    async def send(self, messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
        if not messages:
            await anyio.lowlevel.checkpoint()
            return []
        source = self._pika_source()
        if source is None:
            batch = self._batch(messages, timeout, _nobody)
            with anyio.move_on_after(timeout):
                await self._here().send(batch)
            return batch.outcomes()
        returns, event = _Returns.here(), anyio.Event()
        batch = self._batch(messages, timeout, lambda: returns.tell(event))
        outlet = self._pika(source)
        outlet.submit(batch)
        try:
            with anyio.move_on_after(timeout):
                await event.wait()
        finally:
            outcomes = batch.outcomes()
            outlet.done(batch)
        return outcomes

    async def stop(self) -> None:
        if self._pika_source() is None:
            if self._aio is not None and self._loop is current_loop():
                await self._aio.stop()
        elif (outlet := self._outlet) is not None and outlet.pid == os.getpid():
            await anyio.to_thread.run_sync(outlet.stop, limiter=anyio.CapacityLimiter(1))
            return
        await anyio.lowlevel.checkpoint()

    def blocking(self) -> BlockingRabbitMQProducer:
        if self._source is None:
            raise ConfigurationError(
                "ready-made exchanges of aio-pika need an asyncio event loop, and blocking code has none; give "
                "RabbitMQProducer a URL"
            )
        return BlockingRabbitMQProducer(self._source, self.exchange, self.mandatory)

    def _pika_source(self) -> Source | None:
        """Where pika is to connect; ``None`` if this is for aio-pika."""
        if self._source is None:
            refuse_trio("an exchange of aio-pika")
        elif self._driver == "aio-pika":
            refuse_trio("driver='aio-pika'")
        else:
            return self._source
        return None

    def _here(self) -> AioPikaOutlet:
        """What publishes by aio-pika on the running loop."""
        loop = current_loop()
        if self._aio is None or self._loop is not loop:
            self._aio = AioPikaOutlet(self._source, self._channel_of, self.mandatory)
            self._loop = loop
        return self._aio

    def _channel_of(self, exchange: str) -> Any:
        found = self._exchanges.get(exchange)
        return None if found is None else found.channel


def _nobody() -> None:
    """Nobody waits to be notified."""


class BlockingRabbitMQProducer(_Sender, BlockingProducer):
    """Publishes to exchanges of RabbitMQ from blocking code, through pika in a thread of its own.

    Args:
        connection: A URL; see `RabbitMQProducer`.
        exchange: Where events go whose routes name none.
        mandatory: Whether an event that no queue takes is an error.

    Raises:
        ConfigurationError: the URL or another argument is wrong.
        MissingExtraError: pika is not installed.
    """

    def __init__(self, connection: Any, exchange: str = DEFAULT_EXCHANGE, mandatory: bool = True) -> None:
        if not isinstance(connection, str | Source):
            raise ConfigurationError(
                f"BlockingRabbitMQProducer takes a URL such as 'amqp://localhost', not {type(connection).__name__}"
            )
        self._where = connection if isinstance(connection, Source) else Source(connection)
        super().__init__(self._where, exchange, mandatory)

    def start(self) -> None:
        opened = threading.Event()
        found: list[BrokerError | None] = []

        def told(error: BrokerError | None) -> None:
            found.append(error)
            opened.set()

        self._pika(self._where).connect(told)
        opened.wait()
        if found[0] is not None:
            raise found[0]

    def send(self, messages: Sequence[Message], timeout: float | None) -> Sequence[Receipt | DispytchError]:
        if not messages:
            return []
        done = threading.Event()
        batch = self._batch(messages, timeout, done.set)
        outlet = self._pika(self._where)
        outlet.submit(batch)
        try:
            done.wait(timeout)
        finally:
            outcomes = batch.outcomes()
            outlet.done(batch)
        return outcomes

    def stop(self) -> None:
        if (outlet := self._outlet) is not None and outlet.pid == os.getpid():
            outlet.stop()

    def abandon(self) -> None:
        self._outlet = None
