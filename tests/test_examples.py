"""The examples, as programs: each on every loop, and the demo on every broker that there is by now."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOOPS = ["asyncio", "uvloop", "trio"]


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONDEVMODE": "1", **environment},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("transport", ["memory", "rabbitmq", "redis"])
def test_demo(loop: str, transport: str, request: pytest.FixtureRequest) -> None:
    url = "memory://demo" if transport == "memory" else request.getfixturevalue(f"{transport}_url")
    lines = run("-m", "examples.demo", "--loop", loop, "--url", url).splitlines()
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


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("program", ["[User Registered]", "1 user served"]),
        ("basic", ["seen: ada"]),
        ("listener", ["Login action with value: 2"]),
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
