"""The Django shop as processes: requests, transactions, a worker that writes to the database, real brokers."""

from __future__ import annotations

import signal
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.support import Running, program
from tests.frameworks import BROKERS
from tests.support import blocking_until, closed_port
from tests.test_examples import ROOT, url_of

MANAGE = str(ROOT / "examples" / "django_shop" / "manage.py")


class Shop:
    """The project with a database of its own."""

    def __init__(self, folder: Path, url: str, **variables: str) -> None:
        self.folder = folder
        self.url = url
        self._variables = {"BROKER_URL": url, "DATABASE": str(folder / "db.sqlite3"), **variables}

    def start(self, *arguments: str, **variables: str) -> AbstractContextManager[Running]:
        command = [sys.executable, "-W", "error", MANAGE, *arguments]
        return program(self.folder, command, **{**self._variables, **variables})

    def run(self, *arguments: str, **variables: str) -> tuple[int, str]:
        with self.start(*arguments, **variables) as command:
            code = command.code()
        return code, command.said

    def migrate(self) -> None:
        code, said = self.run("migrate", "-v0")
        assert code == 0, said

    @contextmanager
    def served(self, **variables: str) -> Iterator[httpx.Client]:
        port = closed_port()
        address = f"127.0.0.1:{port}"
        with (
            self.start("runserver", "--noreload", address, **variables) as server,
            httpx.Client(base_url=f"http://{address}/orders/", timeout=20) as client,
        ):
            blocking_until(lambda: is_listening(port) or server.process.poll() is not None)
            yield client

    def rows(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(self.folder / "db.sqlite3")) as connection:
            return connection.execute(query).fetchall()


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def shop(tmp_path: Path, redis_url: str) -> Shop:
    return migrated(tmp_path, redis_url.replace("redis://", "redis+stream://", 1))


def migrated(folder: Path, url: str, **variables: str) -> Shop:
    shop = Shop(folder, url, **variables)
    if "DATABASE" in variables:
        shop.migrate()
    else:
        (folder / "db.sqlite3").write_bytes(empty_database())
    return shop


@cache
def empty_database() -> bytes:
    """A file of SQLite with the shop's tables; once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        Shop(Path(folder), "memory://unused").migrate()
        return (Path(folder) / "db.sqlite3").read_bytes()


@pytest.mark.parametrize("broker", BROKERS)
def test_from_a_request_to_the_database(broker: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    shop = migrated(tmp_path, url_of(broker, request))
    workers = 2 if broker == "redis+stream" else 1
    with shop.start("dispytch_worker", "--workers", str(workers)) as worker, shop.served() as client:
        worker.until_said("The dispatcher is ready", times=workers)
        # The worker may have to wait until it has its partitions; it begins with what came before all the same.
        refused = client.post("", data={"item": "unicorn"})
        assert refused.status_code == 409
        placed = [client.post("", data={"item": f"lamp {number}"}).json()["order_id"] for number in range(3)]
        blocking_until(lambda: len(shop.rows("SELECT id FROM orders_order WHERE customer_told")) == 3)
        for number, order_id in enumerate(placed):
            assert client.get(str(order_id)).json()["parcel"] == f"lamp {number} in a box"
        worker.signal(signal.SIGTERM)
        assert worker.code() == 0, worker.said
    assert worker.said.count("SIGTERM: draining") == workers
    assert "ERROR" not in worker.said
    assert [item for (item,) in shop.rows("SELECT item FROM orders_order")] == ["lamp 0", "lamp 1", "lamp 2"]
    assert not shop.rows("SELECT * FROM orders_unsentevent")


def test_a_broker_that_is_down_at_the_commit(tmp_path: Path) -> None:
    """It accepts connections and says nothing: the request ends with the time-out, and the event is kept."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        shop = migrated(tmp_path, f"redis+stream://127.0.0.1:{mute.getsockname()[1]}")
        with shop.served(BROKER_TIMEOUT="1.5") as client:
            began = time.monotonic()
            response = client.post("", data={"item": "lamp"})
            took = time.monotonic() - began
    assert response.status_code == 202
    assert 1.4 < took < 5
    assert [kind for (kind,) in shop.rows("SELECT kind FROM orders_unsentevent")] == ["OrderPlaced"]


@pytest.mark.parametrize("loop", ["uvloop", "trio"])
def test_loops_of_the_worker(loop: str, shop: Shop) -> None:
    with shop.start("dispytch_worker", "--loop", loop) as worker:
        worker.until_said("The dispatcher is ready")
        worker.signal(signal.SIGTERM)
        assert worker.code() == 0, worker.said


def test_exit_codes(shop: Shop) -> None:
    code, said = shop.run("dispytch_worker", BROKER_URL=f"redis+stream://127.0.0.1:{closed_port()}")
    assert (code, "Traceback" in said) == (3, False), said
    code, said = shop.run("dispytch_worker", "other")
    assert code == 2
    assert "there is no dispatcher 'other' in DISPYTCH (there are: 'default')" in said
    code, said = shop.run("dispytch_worker", BROKER_URL="nonsense")
    assert code == 4
    assert "(dispytch.E005) the emitter 'default' cannot be made" in said


def test_reloading(shop: Shop, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for file in (ROOT / "examples" / "django_shop").rglob("*.py"):
        target = project / file.relative_to(ROOT / "examples" / "django_shop")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text())
    variables = {"BROKER_URL": shop.url, "DATABASE": str(shop.folder / "db.sqlite3")}
    command = [sys.executable, str(project / "manage.py"), "dispytch_worker", "--reload"]
    with program(project, command, **variables) as worker:
        worker.until_said("The dispatcher is ready")
        with (project / "orders" / "handlers.py").open("a") as handlers:
            handlers.write("\nraise SystemError('broken by the test')\n")
        worker.until_said("broken by the test")
        (project / "orders" / "handlers.py").write_text(
            (ROOT / "examples" / "django_shop" / "orders" / "handlers.py").read_text()
        )
        worker.until_said("The dispatcher is ready", times=2)
        worker.signal(signal.SIGINT)
        worker.code()


def test_tests_of_the_django_shop(tmp_path: Path) -> None:
    code, said = Shop(tmp_path, "memory://django_shop").run("test", "orders")
    assert code == 0, said
    assert "Ran 5 tests" in said
