"""The FastAPI shop under uvicorn, on real brokers."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from tests.cli.support import Running, program
from tests.frameworks import BROKERS
from tests.support import blocking_until, closed_port, unique
from tests.test_examples import ROOT, run, url_of

APP = "examples.fastapi_shop.app:app"


def served(port: int, url: str) -> AbstractContextManager[Running]:
    command = [sys.executable, "-m", "uvicorn", APP, "--host", "127.0.0.1", "--port", str(port)]
    return program(ROOT, command, BROKER_URL=url, PYTHONDEVMODE="1")


def until_ok(client: httpx.Client, path: str, holds: Callable[[httpx.Response], object]) -> None:
    def is_so() -> object:
        try:
            return holds(client.get(path))
        except httpx.TransportError:
            return False

    blocking_until(is_so)


@pytest.mark.parametrize("broker", BROKERS)
def test_an_order_under_uvicorn(broker: str, request: pytest.FixtureRequest) -> None:
    port = closed_port()
    with (
        served(port, url_of(broker, request)) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        until_ok(client, "/readyz", lambda response: response.status_code == 200)
        assert client.get("/livez").json() == {"state": "running"}
        for order_id in (1, 2):
            response = client.post("/orders", json={"order_id": order_id, "item": unique("lamp")})
            assert response.status_code == 202
            assert response.json()["event"]
        for order_id in (1, 2):
            until_ok(client, f"/orders/{order_id}", lambda response: response.json()["parcel"])
        assert client.post("/orders", json={"order_id": "none"}).status_code == 422
        server.signal(signal.SIGTERM)
        server.code()
        assert "Application shutdown complete" in server.said
        assert "Error" not in server.said
        assert "Warning" not in server.said


SLOW = """
from examples.fastapi_shop.app import app, dispatcher
from examples.fastapi_shop.events import OrderPlaced
from pathlib import Path
import anyio, os

here = Path(os.environ["HERE"])

@dispatcher.handler(OrderPlaced)
async def slow(order: OrderPlaced) -> None:
    (here / "began").touch()
    while not (here / "go").exists():
        await anyio.sleep(0.005)
    (here / "done").touch()
"""


def test_sigterm_waits_for_events_in_flight(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    port, url = closed_port(), redis_url.replace("redis://", "redis+stream://", 1)
    command = [sys.executable, "-m", "uvicorn", "slow:app", "--host", "127.0.0.1", "--port", str(port)]
    with (
        program(tmp_path, command, BROKER_URL=url, PYTHONPATH=f"{ROOT}:{ROOT / 'src'}") as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        until_ok(client, "/readyz", lambda response: response.status_code == 200)
        client.post("/orders", json={"order_id": 1, "item": "lamp"})
        blocking_until((tmp_path / "began").exists)
        server.signal(signal.SIGTERM)
        server.until_said("Waiting for application shutdown")
        assert not (tmp_path / "done").exists()
        (tmp_path / "go").touch()
        server.code()
        assert (tmp_path / "done").exists()


def test_an_unreachable_broker_ends_uvicorn_at_once() -> None:
    with served(closed_port(), f"redis+stream://127.0.0.1:{closed_port()}") as server:
        assert server.code() == 3  # uvicorn's own code for an application that cannot start
        assert "BrokerUnreachableError" in server.said
        assert "Application startup failed" in server.said


BREAKING = """
import examples.fastapi_shop.app as shop
from dispytch.errors import BrokerError
from dispytch.memory import MemoryConsumer

app, receive = shop.app, MemoryConsumer.receive

async def refused(self, limit):
    deliveries = await receive(self, limit)
    if any(b"break" in delivery.payload for delivery in deliveries):
        raise BrokerError("the broker does not want us any more")
    return deliveries

MemoryConsumer.receive = refused
"""


def test_health_tells_of_a_dispatcher_that_ended(tmp_path: Path) -> None:
    """Uvicorn logs the error and goes on serving, so it is health that has the process restarted."""
    (tmp_path / "breaking.py").write_text(BREAKING)
    port = closed_port()
    command = [sys.executable, "-m", "uvicorn", "breaking:app", "--host", "127.0.0.1", "--port", str(port)]
    with (
        program(tmp_path, command, PYTHONPATH=f"{ROOT}:{ROOT / 'src'}") as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        until_ok(client, "/livez", lambda response: response.status_code == 200)
        client.post("/orders", json={"order_id": 1, "item": "break"})
        until_ok(client, "/livez", lambda response: response.status_code == 503)
        assert client.get("/readyz").json() == {"state": "stopped", "connected": False, "in_flight": 0}
        server.until_said("BrokerError: the broker does not want us any more")


def test_tests_of_the_fastapi_shop() -> None:
    assert "10 passed" in run("-m", "pytest", "-p", "no:cacheprovider", "examples/fastapi_shop")
