"""The examples, as programs: each on every loop, and the demo on every broker that there is by now."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import blocking_until

ROOT = Path(__file__).parent.parent
LOOPS = ["asyncio", "uvloop", "trio"]
BROKERS = ["redis", "redis+stream", "rabbitmq", "kafka"]


def url_of(broker: str, request: pytest.FixtureRequest) -> str:
    """The address of a real broker, by the name of its transport."""
    url: str = request.getfixturevalue(f"{broker.partition('+')[0]}_url")
    return url.replace("redis://", f"{broker}://", 1) if broker.startswith("redis") else url


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONDEVMODE": "1", **more}


def start(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env=environment(**variables),
        check=False,
    )


def run(*command: str, **variables: str) -> str:
    done = start(*command, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("broker", ["memory", *(broker for broker in BROKERS if broker != "redis+stream")])
def test_demo(loop: str, broker: str, request: pytest.FixtureRequest) -> None:
    url = "memory://demo" if broker == "memory" else url_of(broker, request)
    lines = run("-m", "dispytch", "demo", url, "--loop", loop).splitlines()
    assert lines[0] == "ledger: opened"
    assert lines[-1] == "ledger: closed"
    assert "done:    4 events handled" in lines
    assert sorted(line for line in lines if line.startswith(("charge", "pack", "audit"))) == [
        "audit:   OrderPlaced on shops.berlin.orders",
        "audit:   OrderPlaced on shops.oslo.orders",
        "audit:   OrderPlaced on shops.oslo.orders",
        "audit:   OrderShipped on shops.berlin.shipments",
        "charge:    49.90 for order 1 (try 2)",
        "charge:   120.00 for order 2 (try 2)",
        "pack:    a chair at oslo (in a worker thread)",
        "pack:    a lamp at berlin (in a worker thread)",
        "pack:    nothing at oslo (in a worker thread)",
    ]


def test_demo_has_patterns_that_redis_streams_cannot_serve(request: pytest.FixtureRequest) -> None:
    done = start("-m", "dispytch", "demo", url_of("redis+stream", request))
    assert done.returncode == 2
    assert "'shops.{shop}.orders' is a pattern, and Redis Streams have none" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("broker", BROKERS)
def test_shop(loop: str, broker: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A blocking program and a service in another process exchange events."""
    url = url_of(broker, request)
    log = tmp_path / "service.log"
    command = [sys.executable, "-u", "-m", "examples.shop.service", "--url", url, "--loop", loop]
    with log.open("w") as output:
        service = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=output, stderr=output)
    try:
        blocking_until(lambda: "is ready" in log.read_text() or service.poll() is not None)
        assert service.poll() is None, log.read_text()
        lines = run("-m", "examples.shop.site", "--url", url).splitlines()
        assert lines[3:] == ["order 1: lamp in a box", "order 2: chair in a box", "order 3: table in a box"]
        service.terminate()
        assert service.wait(30) == 0, log.read_text()
    finally:
        service.kill()
        service.wait()
    assert {f"shipped: order {number}" for number in (1, 2, 3)} <= set(log.read_text().splitlines())


def test_tests_of_the_shop() -> None:
    assert "7 passed" in run("-m", "pytest", "-p", "no:cacheprovider", "examples/shop")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("program", ["[User Registered]", "1 user served"]),
        ("basic", ["seen: ada"]),
        ("router", ["created: ada, at attempt 3", "deleted: ada"]),
    ],
)
def test_first_documentation(program: str, expected: list[str], loop: str) -> None:
    lines = run(f"examples/seed/{program}.py", "--loop", loop).splitlines()
    assert len(lines) == len(expected)
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True))


@pytest.mark.parametrize("loop", LOOPS)
def test_first_documentation_on_redis(loop: str, redis_url: str) -> None:
    """A ready-made pubsub of redis.asyncio works where it belongs, and is refused where it does not."""
    out = run("examples/seed/redis_pubsub.py", "--loop", loop, REDIS_URL=redis_url)
    assert out.startswith("refused: " if loop == "trio" else "[INFO] all is well")


@pytest.mark.parametrize("loop", LOOPS)
def test_first_documentation_on_kafka(loop: str, kafka_url: str) -> None:
    out = run("examples/seed/listener_kafka.py", "--loop", loop, KAFKA_SERVERS=kafka_url.removeprefix("kafka://"))
    assert out == "Login action with value: 2\n"


@pytest.mark.parametrize("loop", LOOPS)
def test_first_documentation_on_rabbitmq(loop: str, rabbitmq_url: str) -> None:
    """Ready-made objects of aio-pika work where they belong, and are refused where they do not."""
    out = run("examples/seed/listener_rabbitmq.py", "--loop", loop, RABBITMQ_URL=rabbitmq_url)
    assert out.startswith("refused: " if loop == "trio" else "Notified: all is well")
