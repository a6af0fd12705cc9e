"""`dispytch bench`: figures from real brokers, and what it says when there are none."""

from __future__ import annotations

import json
import time
from typing import Any

import anyio
import pytest
from click.testing import CliRunner, Result

from dispytch import EventEmitter
from dispytch.cli.app import command as dispytch
from tests.cli.support import LOOPS
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
