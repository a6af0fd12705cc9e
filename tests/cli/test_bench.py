"""`dispytch bench`: figures from real brokers, and what it says when there are none."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
from click.testing import CliRunner, Result

from dispytch import EventEmitter
from dispytch.cli.app import command as dispytch
from tests.cli.support import LOOPS, running
from tests.support import blocking_until
from tests.test_examples import BROKERS, url_of

ROWS = ["emit, one after the other", "the same, until handled", "emit_many of 1,000", "handle what waits"]


def bench(*words: str) -> Result:
    return CliRunner().invoke(dispytch, ["bench", *words])


def rows_of(done: Result) -> list[dict[str, Any]]:
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("broker", BROKERS)
def test_every_broker_is_measured(broker: str, loop: str, request: pytest.FixtureRequest) -> None:
    rows = rows_of(bench(url_of(broker, request), "--loop", loop, "--events", "2500", "--json"))
    assert [row["name"] for row in rows] == ROWS
    for row in rows:
        assert row["events_per_second"] > 0
    for row in rows[:2]:
        assert 0 < row["p50_ms"] <= row["p99_ms"]


def test_without_a_url_it_is_the_broker_in_the_process() -> None:
    done = bench("--events", "100")
    assert done.exit_code == 0
    assert done.stdout.startswith("Memory on asyncio, Python ")
    assert "Every event was handled." in done.stdout
    assert "stay at the broker" not in done.stdout


def test_it_names_what_it_leaves(request: pytest.FixtureRequest) -> None:
    done = bench(url_of("redis+stream", request), "--events", "20")
    assert "The topic dispytch-bench-" in done.stdout.splitlines()[-1]
    done = bench(url_of("redis+stream", request), "--events", "20", "--json")
    assert len(rows_of(done)) == len(ROWS)
    assert done.stderr.startswith("The topic dispytch-bench-")
    done = bench(url_of("rabbitmq", request), "--events", "20")
    assert "The queue dispytch-bench-" in done.stdout.splitlines()[-1]


def test_it_ends_when_it_takes_too_long() -> None:
    done = bench("--events", "100000", "--timeout", "0.01")
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "give fewer, or more --timeout" in done.stderr


@pytest.mark.parametrize("broker", BROKERS)
def test_it_names_what_it_leaves_when_it_takes_too_long(
    broker: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(self: EventEmitter, *args: Any, **options: Any) -> Any:
        await anyio.sleep_forever()

    monkeypatch.setattr(EventEmitter, "emit_many", never)
    done = bench(url_of(broker, request), "--events", "20", "--timeout", "2")
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert " 2 s" in line  # on a busy machine another measurement may take as long
    what = {"rabbitmq": "queue {} stays", "redis": None}.get(broker, "topic {} and the group of that name stay")
    if what is None:
        assert "stay" not in line
    else:
        assert re.search(f"; the {what.format('dispytch-bench-[0-9a-f]{8}')} at the broker, to be deleted there$", line)


def test_it_names_what_it_leaves_at_ctrl_c(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    with running(tmp_path, "bench", url_of("redis+stream", request), "--events", "200000") as one:
        client: Any = redis.Redis.from_url(url_of("redis", request))
        with client:
            before = set(client.keys("dispytch-bench-*"))
            blocking_until(lambda: set(client.keys("dispytch-bench-*")) - before)
            one.signal(signal.SIGINT)
            assert one.code() == 130
            (name,) = set(client.keys("dispytch-bench-*")) - before
        assert f"The topic {name.decode()} and the group of that name stay at the broker" in one.said
        assert "Traceback" not in one.said


def test_a_broker_that_is_not_there() -> None:
    assert bench("redis://127.0.0.1:1").exit_code == 3
    assert bench("http://localhost").exit_code == 2


def test_a_broker_that_is_far_away_is_measured_for_as_long_as_it_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    emit = EventEmitter.emit

    async def slowly(self: EventEmitter, *args: Any, **options: Any) -> Any:
        await anyio.sleep(1)
        return await emit(self, *args, **options)

    monkeypatch.setattr(EventEmitter, "emit", slowly)
    begin = time.monotonic()
    rows = rows_of(bench("--events", "2000", "--timeout", "2", "--json"))  # 100 events one after the other
    assert [row["name"] for row in rows] == ROWS
    assert time.monotonic() - begin < 50
