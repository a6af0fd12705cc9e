"""A broker of the rig's own, behind a proxy: it may be killed, and started again with all that it keeps."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from dispytch.serialization import JSONDeserializer
from tests import brokers
from tests.brokers import _process
from tests.faults.proxy import Proxy
from tests.faults.task import Job, Transport
from tests.kafka.helpers import Cluster
from tests.rabbitmq.helpers import channel_to
from tests.support import PATIENCE, blocking_until

__all__ = ["Broker", "running"]

_SERVERS: Mapping[Transport, Callable[[], Any]] = {
    "kafka": brokers.Kafka,
    "rabbitmq": brokers.RabbitMQ,
    "redis": lambda: brokers.Redis(persistent=True),
}
_SIZE_OF_LETTERS = "max.message.bytes"


class Broker:
    """One running broker.

    Args:
        transport: Its kind.
        folder: What it keeps.
    """

    def __init__(self, transport: Transport, folder: Path) -> None:
        self.transport: Transport = transport
        self._folder = folder
        self._running = ExitStack()
        self._port, listens = brokers.free_port(), brokers.free_port()
        # Clients of Kafka go where the broker sends them, so one of its listeners sends them to the proxy.
        self._server = _SERVERS[transport]()
        target = listens if transport == "kafka" else self._port
        self.url = self._server.url(self._port)
        self.proxy = Proxy(self._server.url(target))
        if transport == "kafka":
            self._server = brokers.Kafka((listens, self.proxy.port))
        self._pid = 0
        self._taken: dict[str, int] = {}
        """How many dead letters were taken, of each topic of them on Kafka."""
        self.start()
        self._cluster: Cluster | None = None

    def start(self) -> None:
        """Starts it, on the port that it had."""
        started = self._running.enter_context(brokers.started(self._server, self._folder, self._port))
        assert started.pid is not None
        self._pid = started.pid

    def kill(self) -> None:
        """Ends it as a power cut would end its process."""
        os.killpg(self._pid, signal.SIGKILL)
        blocking_until(lambda: _process.birth(self._pid) is None)
        self._running.close()

    def close(self) -> None:
        self.proxy.close()
        self._running.close()

    @property
    def cluster(self) -> Cluster:
        if self._cluster is None:
            self._cluster = Cluster(self.url)
        return self._cluster

    # --- what Dispytch would not do

    def create(self, topic: str, group: str, partitions: int) -> None:
        """Makes a topic with more than one partition, where there are partitions."""
        if self.transport == "kafka":
            self.cluster.create(topic, partitions=partitions)
            self.cluster.create(f"{topic}.{group}.dead")

    def redis(self) -> Any:
        """A plain client."""
        return import_module("redis").Redis.from_url(self.url)

    def committed(self, topic: str, group: str, partition: int = 0) -> int:
        """The offset that the group would begin with."""
        return self.cluster.committed(group, topic, partition) or 0

    def unacknowledged(self, topic: str, group: str) -> int:
        """How many events the group was given, or waits for, and has not acknowledged. No consumer may be running."""
        if self.transport == "rabbitmq":
            with channel_to(self.url) as channel:
                return int(channel.queue_declare(group, passive=True).method.message_count)
        with self.redis() as client:
            (state,) = (found for found in client.xinfo_groups(topic) if found["name"] == group.encode())
            waiting = client.xrange(topic, min=b"(" + state["last-delivered-id"])
            return int(state["pending"]) + len(waiting)

    def break_letters(self, topic: str, group: str) -> None:
        """Has the dead-letter destination take nothing."""
        if self.transport == "rabbitmq":
            with channel_to(self.url) as channel:
                channel.queue_delete(f"{group}.dead")
        elif self.transport == "redis":
            with self.redis() as client:
                client.set(f"{topic}.{group}.dead", "no stream")
        else:
            self._limit_letters(f"{topic}.{group}.dead", "1")

    def mend_letters(self, topic: str, group: str) -> None:
        """The opposite of `break_letters`."""
        if self.transport == "rabbitmq":
            with channel_to(self.url) as channel:
                channel.queue_declare(f"{group}.dead", durable=True)
        elif self.transport == "redis":
            with self.redis() as client:
                client.delete(f"{topic}.{group}.dead")
        else:
            self._limit_letters(f"{topic}.{group}.dead", "1000000")

    def _limit_letters(self, name: str, size: str) -> None:
        module: Any = import_module("confluent_kafka.admin")
        entry = module.ConfigEntry(_SIZE_OF_LETTERS, size, incremental_operation=module.AlterConfigOpType.SET)
        resource = module.ConfigResource(module.ResourceType.TOPIC, name, incremental_configs=[entry])
        for done in self.cluster.admin.incremental_alter_configs([resource]).values():
            done.result(PATIENCE)

    def take_letters(self, topic: str, group: str) -> list[Job]:
        """The events of the dead letters that were not taken yet, one for each letter."""
        found: list[bytes] = []
        name = f"{topic}.{group}.dead"
        if self.transport == "rabbitmq":
            with channel_to(self.url) as channel:
                while (got := channel.basic_get(f"{group}.dead", auto_ack=True))[0] is not None:
                    found.append(got[2])
        elif self.transport == "redis":
            with self.redis() as client:
                found = [fields[b"data"] for _, fields in client.xrange(name)]
                client.delete(name)
        else:
            end = self._length(name)
            found = [message.value() for message in self.cluster.read(name, end)][self._taken.get(name, 0) :]
            self._taken[name] = end
        return [Job.model_validate(JSONDeserializer().deserialize(payload)) for payload in found]

    def count_letters(self, topic: str, group: str) -> int:
        """How many dead letters there are that were not taken yet."""
        if self.transport == "rabbitmq":
            with channel_to(self.url) as channel:
                return int(channel.queue_declare(f"{group}.dead", passive=True).method.message_count)
        if self.transport == "redis":
            with self.redis() as client:
                return int(client.xlen(f"{topic}.{group}.dead"))
        return self._length(f"{topic}.{group}.dead") - self._taken.get(f"{topic}.{group}.dead", 0)

    def _length(self, name: str) -> int:
        confluent: Any = import_module("confluent_kafka")
        consumer = confluent.Consumer({"bootstrap.servers": self.cluster.servers, "group.id": "look"})
        try:
            return int(consumer.get_watermark_offsets(confluent.TopicPartition(name, 0), timeout=PATIENCE)[1])
        finally:
            consumer.close()

    def delete(self, topic: str, group: str) -> None:
        """Removes what a run has left."""
        if self.transport == "rabbitmq":
            with channel_to(self.url) as channel:
                for queue in (group, f"{group}.dead"):
                    channel.queue_delete(queue)
        elif self.transport == "redis":
            with self.redis() as client:
                client.flushall()

    def delete_queue(self, group: str) -> None:
        with channel_to(self.url) as channel:
            channel.queue_delete(group)


@contextmanager
def running(transport: Transport, folder: Path) -> Iterator[Broker]:
    """A broker for as long as the block runs."""
    broker = Broker(transport, folder)
    try:
        yield broker
    finally:
        broker.close()
