"""The outbox, as processes on SQLite and PostgreSQL: in order, and nothing lost, whoever is killed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import redis

from tests.cli.support import Running, read_all
from tests.conftest import tool_of
from tests.frameworks import postgres
from tests.frameworks.test_django import Shop, migrated
from tests.support import blocking_until, closed_port, unique

FILL = """
from dispytch.django import emit_on_commit
from orders.events import OrderPlaced
emit_on_commit(*[OrderPlaced(order_id=n, item={item!r}) for n in range({count})])
"""


@pytest.fixture(scope="session")
def postgres_folder(pytestconfig: pytest.Config) -> Iterator[Path]:
    with postgres.running(tool_of(pytestconfig, "postgres")) as folder:
        yield folder


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> Shop:
    # A database of its own: nobody handles these events, and other tests would find all of them.
    url = redis_url.replace("redis://", "redis+stream://", 1).rpartition("/")[0] + "/7"
    variables = {"OUTBOX": "1", "BROKER_TIMEOUT": "0.8"}
    if request.param == "postgresql":
        variables["DATABASE"] = f"postgresql:{request.getfixturevalue('postgres_folder')}"
    return migrated(tmp_path, url, **variables)


def fill(shop: Shop, count: int) -> str:
    """Commits events; the name by which the test knows its own among those of others."""
    item = unique("lamp")
    code, said = shop.run("shell", "-c", FILL.format(count=count, item=item))
    assert code == 0, said
    return item


STREAM = "django_shop.orders"


def length(shop: Shop) -> int:
    client: Any = redis.Redis.from_url(shop.url.replace("redis+stream://", "redis://", 1))
    with client:
        found: int = client.xlen(STREAM)
        return found


def emitted_of(shop: Shop, item: str) -> list[int]:
    return [one["body"]["order_id"] for one in read_all(shop.url, STREAM) if one["body"]["item"] == item]


def until_emitted(shop: Shop, item: str, count: int, before: int) -> list[int]:
    blocking_until(lambda: length(shop) >= before + count and len(set(emitted_of(shop, item))) == count)
    return emitted_of(shop, item)


def until_one_is_active(first: Running, second: Running) -> tuple[Running, Running]:
    """The relay that empties the outbox, and the one that stands by."""
    blocking_until(lambda: "standing by" in first.said or "standing by" in second.said)
    return (second, first) if "standing by" in first.said else (first, second)


def test_two_relays_at_once(shop: Shop) -> None:
    with shop.start("dispytch_outbox") as first, shop.start("dispytch_outbox") as second:
        active, waiting = until_one_is_active(first, second)
        before = length(shop)
        item = fill(shop, 1000)
        assert until_emitted(shop, item, 1000, before) == list(range(1000))
        active.signal(signal.SIGTERM)
        assert active.code() == 0, active.said
        waiting.until_said("Emptying the outbox")
        before = length(shop)
        item = fill(shop, 100)
        assert until_emitted(shop, item, 100, before) == list(range(100))
        waiting.signal(signal.SIGINT)
        assert waiting.code() == 0, waiting.said


def test_a_relay_that_is_killed(shop: Shop) -> None:
    count = 5000
    with shop.start("dispytch_outbox") as first, shop.start("dispytch_outbox") as second:
        active, _ = until_one_is_active(first, second)
        before = length(shop)
        items: list[str] = []
        filling = Thread(target=lambda: items.append(fill(shop, count)))
        filling.start()
        blocking_until(lambda: length(shop) > before)
        active.signal(signal.SIGKILL)
        active.code()
        at_the_kill = length(shop) - before
        filling.join()
        found = until_emitted(shop, items[0], count, before)
    assert at_the_kill < count
    assert list(dict.fromkeys(found)) == list(range(count))  # in order, and none is lost
    assert len(found) - count <= 500  # what comes again is at most the batch in hand


def test_a_broker_that_comes_later(shop: Shop) -> None:
    before = length(shop)
    item = fill(shop, 100)
    nowhere = f"redis+stream://127.0.0.1:{closed_port()}"
    with shop.start("dispytch_outbox", BROKER_URL=nowhere) as relay:
        relay.until_said("The outbox stays as it is, to be tried again in")
        relay.signal(signal.SIGTERM)
        assert relay.code() == 0
    code, said = shop.run("dispytch_outbox", "--once", BROKER_URL=nowhere)
    assert code == 3, said
    code, said = shop.run("dispytch_outbox", "--once")
    assert code == 0, said
    assert until_emitted(shop, item, 100, before) == list(range(100))
