"""RedisStore, against a real Redis."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator

import anyio
import pytest

from dispytch import Event, EventBase, EventDispatcher, EventEmitter
from dispytch.errors import BrokerError, BrokerUnreachableError, ConfigurationError
from dispytch.middleware import Claim, Deduplicate
from dispytch.redis import RedisStore, RedisStreamConsumer, RedisStreamProducer
from tests.redis.helpers import client_of, reader_threads, unique, until
from tests.support import CANARY, closed_port, texts

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[RedisStore]:
    async with RedisStore(redis_url, 60, prefix=unique("once")) as store:
        yield store


async def test_a_claim_is_exclusive_until_it_is_released_or_completed(store: RedisStore) -> None:
    assert await store.claim("k", "a", 5) is Claim.GRANTED
    assert await store.claim("k", "b", 5) is Claim.BUSY
    assert await store.claim("k", "a", 5) is Claim.GRANTED, "the reply may have been lost"
    await store.release("k", "b")
    assert await store.claim("k", "b", 5) is Claim.BUSY, "nobody releases what is another's"
    await store.release("k", "a")
    assert await store.claim("k", "b", 5) is Claim.GRANTED
    await store.complete("k")
    await store.release("k", "b")
    assert await store.claim("k", "c", 5) is Claim.DONE


async def test_claims_and_notes_expire(redis_url: str) -> None:
    async with RedisStore(redis_url, 0.05, prefix=unique("once")) as store:
        assert await store.claim("k", "somebody who dies", 0.05) is Claim.GRANTED
        with anyio.fail_after(10):
            while await store.claim("k", "b", 60) is Claim.BUSY:  # noqa: ASYNC110 - it is Redis's clock
                await anyio.sleep(0.005)
            await store.complete("k")
            while await store.claim("k", "c", 60) is Claim.DONE:  # noqa: ASYNC110
                await anyio.sleep(0.005)


async def test_of_many_that_claim_at_once_one_is_granted(redis_url: str) -> None:
    prefix = unique("once")
    stores = [RedisStore(redis_url, 60, prefix=prefix) for _ in range(5)]
    found: list[Claim] = []

    async def claim(number: int) -> None:
        found.append(await stores[number % 5].claim("k", f"token {number}", 60))

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(claim, number)
    for store in stores:
        await store.close()
    assert found.count(Claim.GRANTED) == 1
    assert found.count(Claim.BUSY) == 19


async def test_a_lost_connection_is_made_anew(store: RedisStore, redis_url: str) -> None:
    await store.complete("k")
    with client_of(redis_url) as client:
        client.client_kill_filter(_type="normal", skipme=True)
    assert await store.claim("k", "a", 5) is Claim.DONE


async def test_closing_leaves_nothing_behind(redis_url: str) -> None:
    before = len(reader_threads())
    store = RedisStore(redis_url, 60, prefix=unique("once"))
    await store.complete("k")
    await store.close()
    await store.close()
    assert len(reader_threads()) == before
    assert await store.claim("k", "a", 5) is Claim.DONE, "it may be used again"
    await store.close()


async def test_nobody_there() -> None:
    store = RedisStore(f"redis://:{CANARY}@127.0.0.1:{closed_port()}", 60)
    with pytest.raises(BrokerUnreachableError) as caught:
        await store.claim("k", "a", 5)
    assert CANARY not in texts(caught.value) + repr(store)


async def test_a_refusal_is_told(store: RedisStore, redis_url: str) -> None:
    with client_of(redis_url) as client:
        client.rpush(f"{store.prefix}k", "x")
        with pytest.raises(BrokerError, match=r"refused to claim an event: .*WRONGTYPE"):
            await store.claim("k", "a", 5)
        client.delete(f"{store.prefix}k")


async def test_a_ready_made_client_gives_its_address(redis_url: str) -> None:
    with client_of(redis_url) as client:
        async with RedisStore(client, 60, prefix=unique("once")) as store:
            assert await store.claim("k", "a", 5) is Claim.GRANTED


async def test_wrong_arguments(redis_url: str) -> None:
    import redis.asyncio

    with pytest.raises(ConfigurationError, match="ttl"):
        RedisStore(redis_url, 0)
    with pytest.raises(ConfigurationError, match="URL"):
        RedisStore("http://localhost", 60)
    with pytest.raises(ConfigurationError, match=r"redis\.asyncio"):
        RedisStore(redis.asyncio.Redis(), 60)


def test_importing_it_imports_no_client() -> None:
    code = "import sys, dispytch.redis.store; print('redis' in sys.modules, 'hiredis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_one_store_in_one_loop_after_the_other(redis_url: str) -> None:
    store = RedisStore(redis_url, 60, prefix=unique("once"))

    async def claim(token: str, expected: Claim) -> None:
        async with store:
            assert await store.claim("k", token, 5) is expected

    anyio.run(claim, "a", Claim.GRANTED)
    anyio.run(claim, "b", Claim.BUSY, backend="trio")
    anyio.run(claim, "c", Claim.BUSY)


_CHILD = """
import sys, anyio
from dispytch.redis import RedisStore
url, prefix, key = sys.argv[1:]
async def main():
    store = RedisStore(url, 60, prefix=prefix)
    print((await store.claim(key, "child", 0.5)).name, flush=True)
    await anyio.sleep_forever()
anyio.run(main)
"""


async def test_events_that_come_twice_are_handled_once_also_after_a_kill(redis_url: str) -> None:
    topic, prefix = unique("paid"), unique("once")

    class Paid(EventBase):
        __topic__ = topic
        n: int

    handled: list[tuple[int, int]] = []

    def dispatcher() -> EventDispatcher:
        store = RedisStore(redis_url, 60, prefix=prefix)
        found = EventDispatcher(
            RedisStreamConsumer(redis_url, group_id="group"),
            middlewares=[Deduplicate(store)],
            on_lifespan=lambda _: store,
        )

        @found.handler(Paid)
        async def take(event: Event[Paid]) -> None:
            handled.append((event.body.n, event.meta.attempt))

        return found

    first, second = dispatcher(), dispatcher()
    events = [Paid(n=number) for number in range(20)]
    async with EventEmitter(RedisStreamProducer(redis_url)) as emitter:
        await emitter.emit_many([*events, *events])
        async with first.lifespan(), second.lifespan():
            await until(lambda: first.health().handled + second.health().handled == 40)
        assert sorted(handled) == [(number, 1) for number in range(20)]

        # Somebody claims an event and is killed: it is handled here once the claim has expired.
        with client_of(redis_url) as client:
            (known, *_) = client.scan_iter(f"{prefix}*", count=1000)
        key = known.decode().removeprefix(prefix).rpartition("/")[0]
        id = "00000000-0000-4000-8000-000000000000"
        child = await anyio.open_process([sys.executable, "-c", _CHILD, redis_url, prefix, f"{key}/{id}"], stderr=None)
        async with child:
            assert child.stdout is not None
            assert (await child.stdout.receive()).startswith(b"GRANTED")
            child.kill()
        await emitter.emit(Paid(n=99), id=id)
        async with first.lifespan():
            await until(lambda: (99, 1) in handled)
            assert first.health().failed == 0
