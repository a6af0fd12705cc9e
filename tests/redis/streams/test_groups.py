"""What consumers of a group do for each other: claims, renewals, hand-backs, trimming; and groups that vanish."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from dispytch import Event, EventBase, EventDispatcher
from dispytch.abc import Outcome
from dispytch.errors import BrokerError, BrokerUnreachableError
from dispytch.redis.streams.existing import ExistingStreamConsumer
from dispytch.redis.streams.groups import HANDED_BACK
from tests.redis.helpers import client_of, fake_server, unique, until
from tests.redis.streams.helpers import (
    GROUP,
    consumer_of,
    ensure_group,
    fill,
    leave_pending,
    names,
    nothing_comes,
    payloads,
    pending,
    settled,
    subscription,
    take,
)
from tests.redis.streams.test_consumer import without_entries
from tests.support import at_best

pytestmark = pytest.mark.anyio

MISSING = b"-NOGROUP No such key 'x' or consumer group\r\n"


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    with client_of(redis_url) as client:
        yield client


# --- what others have left


async def test_entries_of_a_consumer_that_died(redis_url: str, client: Any) -> None:
    stream = unique()
    fill(client, stream, 260)
    start = time.monotonic()
    leave_pending(client, stream, "dead", 250)
    consumer = consumer_of(redis_url, claim_idle=1.5)
    await consumer.start([subscription(stream)])
    found = await take(consumer, 10, limit=10)
    assert payloads(found) == list(range(250, 260))
    found = await take(consumer, 250, limit=30)
    assert payloads(found) == list(range(250))
    assert 1.4 < time.monotonic() - start < 10
    assert await consumer.settle(settled(found)) == []
    await consumer.stop()
    assert pending(client, stream) == 10  # those that were handed back
    assert names(client, stream) == ["dead", HANDED_BACK.decode()]


async def test_entries_behind_many_that_are_in_other_hands(
    redis_url: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispytch.redis.streams.reading.LOOK_EVERY", 0.1)
    stream = unique()
    ids = fill(client, stream, 250)
    leave_pending(client, stream, "busy", 250)
    consumer = consumer_of(redis_url, claim_idle=3600)
    await consumer.start([subscription(stream)])
    with anyio.move_on_after(0.2):
        await consumer.receive(3)
    client.xclaim(stream, GROUP, "dead", 0, ids[-2:], idle=3_700_000)
    assert payloads(await take(consumer, 2, limit=3, seconds=20)) == [248, 249]
    await consumer.stop()


async def test_a_stream_that_is_never_quiet_does_not_keep_from_looking(redis_url: str, client: Any) -> None:
    stream = unique()
    fill(client, stream, 5)
    leave_pending(client, stream, "dead", 5)
    consumer = consumer_of(redis_url, claim_idle=0.3)
    await consumer.start([subscription(stream)])
    seen: set[int] = set()
    with anyio.fail_after(10):
        while not seen >= set(range(5)):
            client.xadd(stream, {"data": "1000"})
            found = await consumer.receive(1)
            seen.update(payloads(found))
            await consumer.settle(settled(found))
    await consumer.stop()


async def test_what_is_being_handled_is_not_claimed(
    redis_url: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = unique()
    fill(client, stream, 3)
    monkeypatch.setattr("dispytch.redis.streams.reading.LOOK_EVERY", 0.1)
    first = consumer_of(redis_url, claim_idle=1.0)
    second = consumer_of(redis_url, claim_idle=1.0)
    await first.start([subscription(stream)])
    found = await take(first, 3)
    await second.start([subscription(stream)])
    await nothing_comes(second, 2.0)
    assert await first.settle(settled(found)) == []
    assert pending(client, stream) == 0
    await first.stop()
    await second.stop()


async def test_a_handler_that_blocks_the_loop_keeps_its_event(redis_url: str, client: Any) -> None:
    stream = unique()
    fill(client, stream, 1)
    consumer = consumer_of(redis_url, claim_idle=1.2)
    await consumer.start([subscription(stream)])
    await take(consumer, 1)
    longest = 0
    end = time.monotonic() + 2.4
    while time.monotonic() < end:
        (entry,) = client.xpending_range(stream, GROUP, "-", "+", 10)
        longest = max(longest, entry["time_since_delivered"])
        time.sleep(0.01)  # noqa: ASYNC251 - that is the point
    assert 50 < longest < 1200
    assert entry["times_delivered"] == 1
    await consumer.stop()


async def test_renewing_goes_on_after_a_lost_connection(
    redis_url: str, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stream, name = unique(), unique("name")
    fill(client, stream, 1)
    consumer = consumer_of(f"{redis_url}?client_name={name}", claim_idle=0.4)
    await consumer.start([subscription(stream)])
    await take(consumer, 1)

    def renewals() -> list[int]:
        return [int(c["id"]) for c in client.client_list() if c["name"] == name and c["cmd"] == "xclaim"]

    for _ in range(2):
        await until(renewals)
        for id in renewals():
            client.client_kill_filter(_id=id)
    await until(renewals)
    await consumer.stop()
    assert "could not be renewed" not in caplog.text  # it is of no concern to anybody


@pytest.mark.parametrize("whose", ["own", "other"])
async def test_what_was_delivered_before_comes_with_the_count(redis_url: str, client: Any, whose: str) -> None:
    stream = unique()
    ids = fill(client, stream, 5)
    name = "me" if whose == "own" else "dead"
    leave_pending(client, stream, name, 4)
    for id, count in ((ids[1], 120), (ids[2], 98)):
        client.xclaim(stream, GROUP, name, 0, [id], retrycount=count)
    consumer = consumer_of(redis_url, consumer="me", claim_idle=0.05)
    await consumer.start([subscription(stream)])
    found = {delivery.payload: delivery.deliveries for delivery in await take(consumer, 5)}
    assert found[b"4"] == 0  # a new one
    assert (found[b"1"] >= 120, 98 <= found[b"2"] < 100, found[b"0"] < 5) == (True, True, True)
    await consumer.stop()


async def test_what_kills_whoever_handles_it_is_given_up(redis_url: str, client: Any) -> None:
    class Deadly(EventBase):
        __topic__ = unique()
        n: int

    stream = str(Deadly.__topic__)
    ids = [client.xadd(stream, {"data": f'{{"n": {n}}}', "ce_specversion": "1.0", "ce_id": str(n)}) for n in range(3)]
    leave_pending(client, stream, "dead", 3)
    client.xclaim(stream, GROUP, "dead", 0, [ids[1]], retrycount=100)
    dispatcher = EventDispatcher(consumer_of(redis_url, consumer="me", claim_idle=0.05))
    seen: list[int] = []

    @dispatcher.handler(topic=stream)
    async def handle(event: Event[Deadly]) -> None:
        seen.append(event.body.n)

    async with dispatcher.lifespan():
        await until(lambda: len(seen) == 2 and pending(client, stream) == 0)
    assert sorted(seen) == [0, 2]
    ((_, letter),) = client.xrange(f"{stream}.{GROUP}.dead")
    assert letter[b"data"] == b'{"n": 1}'
    assert b"never settled: its handling seems to end the process" in letter[b"dispytch-dead-error"]


async def test_a_user_with_no_more_rights_than_needed(redis_url: str, client: Any) -> None:
    """The commands that the documentation lists."""
    stream, user = unique(), unique("user")
    needed = "+xadd +type +xpending +xreadgroup +xautoclaim +xclaim +xack +xgroup"
    client.execute_command("ACL", "SETUSER", user, "on", ">pass", "-@all", *needed.split(), "~*")
    fill(client, stream, 5)
    consumer = consumer_of(redis_url.replace("redis://", f"redis://{user}:pass@"), claim_idle=0.2)
    await consumer.start([subscription(stream)])
    found = await take(consumer, 5)
    assert await consumer.settle(settled(found[:4])) == []

    async def receive() -> float:
        start = time.monotonic()
        with anyio.move_on_after(0.3):
            await consumer.receive(1)
        return time.monotonic() - start

    await at_best(1.3, receive)  # the read ends by itself
    await consumer.stop()
    assert HANDED_BACK.decode() in names(client, stream)
    client.execute_command("ACL", "DELUSER", user)


# --- what is handed back


async def test_what_is_handed_back_goes_to_others_at_once(redis_url: str, client: Any) -> None:
    stream = unique()
    fill(client, stream, 4)
    first, second = consumer_of(redis_url), consumer_of(redis_url, claim_idle=10_000_000)
    await first.start([subscription(stream)])
    found = await take(first, 4)
    await second.start([subscription(stream)])
    with anyio.move_on_after(0.1):
        await second.receive(1)
    assert await first.settle(settled(found[:3], Outcome.RELEASE) + settled(found[3:])) == []
    again = await take(second, 3, seconds=20)
    assert payloads(again) == [0, 1, 2]
    counts = [entry["times_delivered"] for entry in client.xpending_range(stream, GROUP, "-", "+", 10)]
    assert counts == [1, 1, 1]  # a hand-back is no delivery that failed
    await second.settle(settled(again))
    assert pending(client, stream) == 0
    await first.stop()
    await second.stop()
    assert names(client, stream) == [HANDED_BACK.decode()]


async def test_what_is_handed_back_comes_again_to_the_same_consumer(
    redis_url: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispytch.redis.streams.reading.LOOK_EVERY", 0.1)
    stream = unique()
    fill(client, stream, 3)
    consumer = consumer_of(redis_url)
    await consumer.start([subscription(stream)])
    for _ in range(3):
        found = await take(consumer, 3, seconds=20)
        assert payloads(found) == [0, 1, 2]
        assert await consumer.settle(settled(found, Outcome.RELEASE)) == []
    await consumer.stop()


async def test_what_was_not_asked_for_yet_is_handed_back_too(redis_url: str, client: Any) -> None:
    stream = unique()
    fill(client, stream, 10)
    leave_pending(client, stream, "me", 10)
    first, second = consumer_of(redis_url, consumer="me"), consumer_of(redis_url)
    await first.start([subscription(stream)])
    found = await first.receive(3)
    assert await first.settle(settled(found, Outcome.RELEASE)) == []
    await second.start([subscription(stream)])
    assert payloads(await take(second, 10, seconds=20)) == list(range(10))
    await second.stop()
    await first.stop()


async def test_a_stop_hands_back(redis_url: str, client: Any) -> None:
    stream = unique()
    fill(client, stream, 1200)
    first, second = consumer_of(redis_url), consumer_of(redis_url, consumer="second")
    await second.start([subscription(stream)])
    await first.start([subscription(stream)])
    await take(first, 1200, limit=500)
    async with anyio.create_task_group() as group:
        group.start_soon(first.stop)
        assert sorted(payloads(await take(second, 1200, seconds=20))) == list(range(1200))
    await second.stop()
    third = consumer_of(redis_url)
    await third.start([subscription(stream)])
    assert payloads(await take(third, 1200, seconds=20)) == list(range(1200))
    await third.stop()


async def test_a_hand_back_in_the_middle_of_a_renewal(
    redis_url: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = unique()
    fill(client, stream, 1)
    consumer = consumer_of(redis_url, claim_idle=0.2)
    await consumer.start([subscription(stream)])
    keeper: Any = consumer._keeper
    call, reached, go_on = keeper._call, threading.Event(), threading.Event()

    def slow(*commands: bytes) -> Any:
        reached.set()
        go_on.wait(5)
        return call(*commands)

    monkeypatch.setattr(keeper, "_call", slow)
    found = await take(consumer, 1)
    await until(reached.is_set)
    async with anyio.create_task_group() as group:
        group.start_soon(consumer.settle, settled(found, Outcome.RELEASE))
        await anyio.sleep(0.05)
        go_on.set()
    await until(lambda: not keeper.is_renewing)
    (entry,) = client.xpending_range(stream, GROUP, "-", "+", 10)
    assert entry["consumer"] == HANDED_BACK
    await consumer.stop()


async def test_a_name_with_something_pending_is_not_removed(redis_url: str, client: Any) -> None:
    stream = unique()
    fill(client, stream, 5)
    consumer = consumer_of(redis_url)
    await consumer.start([subscription(stream)])
    group: Any = consumer._group
    leave_pending(client, stream, group.consumer, 2)  # by a reply that was lost
    await consumer.stop()
    assert names(client, stream) == [group.consumer.decode()]
    assert pending(client, stream) == 2


# --- groups that vanish


@pytest.mark.parametrize("how", ["flush", "destroy"])
async def test_a_group_that_vanishes_is_made_again(
    redis_url: str, client: Any, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    streams = [unique(), unique()]
    consumer = consumer_of(redis_url)
    await consumer.start([subscription(stream) for stream in streams])
    for round in range(2):
        with anyio.move_on_after(0.02):
            await consumer.receive(10)

        async def vanish() -> None:
            await anyio.sleep(0.05)
            for stream in streams:
                client.delete(stream) if how == "flush" else client.xgroup_destroy(stream, GROUP)
                fill(client, stream, 3)

        async with anyio.create_task_group() as group:
            group.start_soon(vanish)
            found = await take(consumer, 6 if how == "flush" else 6 * (round + 1))
        assert {one.source for one in found} == set(streams)
        assert await consumer.settle(settled(found)) == []
        assert [pending(client, stream) for stream in streams] == [0, 0]
    assert "has vanished" in caplog.text
    await consumer.stop()


async def test_a_late_group_that_vanishes_does_not_begin_at_the_start(redis_url: str, client: Any) -> None:
    stream = unique()
    fill(client, stream, 3)
    consumer = consumer_of(redis_url, start_from="latest")
    await consumer.start([subscription(stream)])
    client.xgroup_destroy(stream, GROUP)
    client.xadd(stream, {"data": "3"})
    found = await take(consumer, 1)
    assert payloads(found) == [3]
    await consumer.settle(settled(found))
    client.xgroup_destroy(stream, GROUP)
    client.xadd(stream, {"data": "4"})
    assert payloads(await take(consumer, 1)) == [4]
    await consumer.stop()


async def test_no_hot_loop_where_a_group_never_stays() -> None:
    def answer(command: list[bytes]) -> bytes | None:
        return MISSING if command[0] == b"XREADGROUP" else without_entries(command)

    with fake_server(answer) as server:
        consumer = consumer_of(server.url)
        await consumer.start([subscription("x")])

        async def receive() -> float:
            server.commands.clear()
            start = time.monotonic()
            with anyio.move_on_after(0.5):
                await consumer.receive(1)
            return time.monotonic() - start

        await at_best(0.8, receive)
        assert 2 <= len(server.named(b"XREADGROUP")) < 12
        await consumer.stop()


async def test_settling_in_a_group_that_has_vanished(redis_url: str, client: Any) -> None:
    stream = unique()
    fill(client, stream, 2)
    consumer = consumer_of(redis_url)
    await consumer.start([subscription(stream)])
    one, two = await take(consumer, 2)
    client.delete(stream)
    assert await consumer.settle(settled([one]) + settled([two], Outcome.RELEASE)) == []
    await consumer.stop()


async def test_a_group_that_must_be_there(redis_url: str, client: Any) -> None:
    stream = unique()
    consumer = consumer_of(redis_url, declare=False)
    with pytest.raises(BrokerError, match=f"XGROUP CREATE {stream} {GROUP} 0 MKSTREAM") as raised:
        await consumer.start([subscription(stream)])
    assert not isinstance(raised.value, BrokerUnreachableError)
    assert not client.exists(stream)
    ensure_group(client, stream)
    await consumer.start([subscription(stream)])
    fill(client, stream, 1)
    assert len(await take(consumer, 1)) == 1
    client.xgroup_destroy(stream, GROUP)
    with pytest.raises(BrokerError, match="XGROUP CREATE") as raised:
        await take(consumer, 1)
    assert not isinstance(raised.value, BrokerUnreachableError)
    await consumer.stop()


async def test_a_stream_that_must_be_there(redis_url: str, client: Any) -> None:
    stream = unique()
    consumer = ExistingStreamConsumer(redis_url, group_id=GROUP)
    for _ in range(2):
        with pytest.raises(BrokerError, match=f"there is no stream {stream} at .*; check its name") as raised:
            await consumer.start([subscription(stream)])
        assert not isinstance(raised.value, BrokerUnreachableError)
        assert not client.exists(stream)
    fill(client, stream, 1)
    await consumer.start([subscription(stream)])  # which makes the group
    assert len(await take(consumer, 1)) == 1
    client.delete(stream)
    with pytest.raises(BrokerError, match=f"there is no stream {stream}"):
        await take(consumer, 1)
    await consumer.stop()
    assert not client.exists(stream)


# --- entries that are gone, and trimming


@pytest.mark.parametrize("whose", ["own", "other"])
async def test_entries_that_were_trimmed_while_pending(
    redis_url: str, client: Any, whose: str, caplog: pytest.LogCaptureFixture
) -> None:
    stream = unique()
    fill(client, stream, 10)
    leave_pending(client, stream, "me" if whose == "own" else "dead", 6)
    client.xtrim(stream, maxlen=5, approximate=False)
    consumer = consumer_of(redis_url, consumer="me", claim_idle=0.05)
    with caplog.at_level(logging.WARNING, "dispytch"):
        await consumer.start([subscription(stream)])
        found = await take(consumer, 5)
        assert sorted(payloads(found)) == [5, 6, 7, 8, 9]
        await until(lambda: "5 entries" in caplog.text)
        await consumer.settle(settled(found))
        with anyio.move_on_after(0.1):
            await consumer.receive(1)
    assert pending(client, stream) == 0
    await consumer.stop()


async def test_what_redis_6_says_of_entries_that_are_gone(caplog: pytest.LogCaptureFixture) -> None:
    """It claims them, and tells nothing of them but that they are there."""
    gone = [b"*2\r\n$3\r\n0-0\r\n*1\r\n*-1\r\n"]

    def answer(command: list[bytes]) -> bytes | None:
        if command[0] == b"XAUTOCLAIM" and gone:
            return gone.pop()
        if command[0] == b"XREADGROUP" and not gone and not server.named(b"XACK") and b"BLOCK" not in command:
            return b"*1\r\n*2\r\n$1\r\nx\r\n*1\r\n*2\r\n$3\r\n5-5\r\n*-1\r\n"
        return without_entries(command)

    with fake_server(answer) as server:
        consumer = consumer_of(server.url)
        await consumer.start([subscription("x")])
        async with anyio.create_task_group() as group:
            group.start_soon(consumer.receive, 1)
            await until(lambda: server.named(b"XACK"))
            group.cancel_scope.cancel()
        await consumer.stop()
        assert server.named(b"XACK") == [[b"XACK", b"x", GROUP.encode(), b"5-5"]]
    assert "are deleted" in caplog.text


async def test_trimming_never_passes_what_a_group_has_not_acknowledged(
    redis_url: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispytch.redis.streams.keeper._TRIM_EVERY", 0.1)
    stream = unique()
    ids = fill(client, stream, 10)

    def left() -> list[bytes]:
        return [id for id, _ in client.xrange(stream)]

    for group in (GROUP, "slow", "idle"):
        ensure_group(client, stream, group)
    consumer = consumer_of(redis_url, trim_acknowledged=True)
    await consumer.start([subscription(stream)])
    found = await take(consumer, 10)
    assert await consumer.settle(settled(found[:9])) == []
    with anyio.move_on_after(0.4):
        await until(lambda: left() != ids)
    assert left() == ids  # nobody of the idle group has read anything
    client.xgroup_destroy(stream, "idle")
    client.xreadgroup("slow", "x", {stream: ">"}, count=6)
    client.xack(stream, "slow", *ids[:2], ids[3])
    await until(lambda: left() == ids[2:])  # the third is pending with the slow group
    client.xack(stream, "slow", *ids[2:6])
    await until(lambda: left() == ids[6:])  # the seventh was never given to it
    client.xreadgroup("slow", "x", {stream: ">"})
    client.xack(stream, "slow", *ids)
    await until(lambda: left() == ids[9:])  # the last one is pending here
    assert await consumer.settle(settled(found[9:])) == []
    await until(lambda: left() == [])
    fill(client, stream, 2)
    assert len(await take(consumer, 2)) == 2
    await consumer.stop()


async def test_nothing_is_trimmed_unless_it_was_asked_for(
    redis_url: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispytch.redis.streams.keeper._TRIM_EVERY", 0.05)
    stream = unique()
    fill(client, stream, 3)
    consumer = consumer_of(redis_url)
    await consumer.start([subscription(stream)])
    await consumer.settle(settled(await take(consumer, 3)))
    with anyio.move_on_after(0.3):
        await until(lambda: client.xlen(stream) != 3)
    assert client.xlen(stream) == 3
    await consumer.stop()
