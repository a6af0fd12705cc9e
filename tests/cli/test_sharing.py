"""Two workers of one command share the events of a real broker, and drain together."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from dispytch import EventBase, producer_from_url
from dispytch.sync import EventEmitter
from tests.cli.support import running
from tests.kafka.helpers import Cluster
from tests.support import blocking_until, unique

_APP = """
import os
from pathlib import Path

import anyio

from dispytch import Event, EventDispatcher, consumer_from_url

dispatcher = EventDispatcher(consumer_from_url(os.environ["URL"], group_id=os.environ["TOPIC"]), concurrency=4)


@dispatcher.handler(topic=os.environ["TOPIC"])
async def work(event: Event) -> None:
    await anyio.sleep(0.01)
    with open(Path(os.environ["HERE"]) / "log", "a") as log:
        log.write(f"{os.environ['DISPYTCH_WORKER']} {event.body['number']}\\n")
"""


def check_that_two_share(folder: Path, url: str, topic: str, prepare: Callable[[], None]) -> None:
    class Numbered(EventBase):
        __topic__ = topic
        __key__ = "{number}"
        number: int

    (folder / "sharing.py").write_text(_APP)
    with running(folder, "run", "sharing:dispatcher", "--workers", "2", URL=url, TOPIC=topic) as one:
        one.until_said("is ready", times=2)
        prepare()
        with EventEmitter(producer_from_url(url)) as emitter:
            emitter.emit_many([Numbered(number=number) for number in range(200)])

        def handled() -> set[int]:
            return {int(line.split()[1]) for line in one.log}

        blocking_until(lambda: handled() == set(range(200)))
        workers = [line.split()[0] for line in one.log]
        assert set(workers) == {"1", "2"}
        assert min(workers.count("1"), workers.count("2")) > 20
        one.signal(signal.SIGTERM)
        assert one.code() == 0, one.said
        assert len(one.log) == 200


def test_a_rabbitmq_queue(folder: Path, rabbitmq_url: str) -> None:
    check_that_two_share(folder, rabbitmq_url, unique("shared"), lambda: None)


def test_a_kafka_group(folder: Path, kafka_url: str) -> None:
    topic = unique("shared")
    cluster = Cluster(kafka_url)
    cluster.create(topic, partitions=6)
    check_that_two_share(folder, kafka_url, topic, lambda: blocking_until(lambda: sharers(cluster, topic) == 2))


def sharers(cluster: Cluster, group: str) -> int:
    """How many members of a group have partitions."""
    members = cluster.admin.describe_consumer_groups([group])[group].result(30).members
    return sum(bool(member.assignment.topic_partitions) for member in members)
