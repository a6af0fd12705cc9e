"""What every test may use: real brokers, and the loops that the library must run on.

Mark async tests with ``@pytest.mark.anyio``; each then runs once on every loop.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any, NoReturn

import pytest

from dispytch import EventDispatcher
from dispytch.memory import MemoryBroker
from tests import brokers
from tests.browser import Browser
from tests.helpers import dispatcher_on


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("brokers")
    group.addoption(
        "--require-brokers",
        action="store_true",
        help="fail instead of skip where a broker's server is not installed (the default when CI is set)",
    )
    group.addoption(
        "--install-brokers",
        action="store_true",
        help="install missing servers with apt-get, as root or with sudo; implies --require-brokers",
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Installs what is missing before anything runs, since several workers could not do it at once."""
    config = session.config
    if config.getoption("--install-brokers") and not hasattr(config, "workerinput"):
        for name in brokers.SERVERS:
            brokers.program(name, install=True)
        for program in brokers.TOOLS:
            brokers.tool(program, install=True)


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def missing_server(config: pytest.Config, error: brokers.MissingServerError) -> NoReturn:
    """Skip on a laptop; fail where leaving a test out would hide something."""
    if in_ci() or config.getoption("--require-brokers"):
        raise pytest.fail.Exception(str(error), pytrace=False) from None
    raise pytest.skip.Exception(str(error)) from None


def running_broker(config: pytest.Config, name: str) -> Iterator[str]:
    with ExitStack() as stack:
        try:
            urls = stack.enter_context(brokers.running(name, install=config.getoption("--install-brokers")))
        except brokers.MissingServerError as error:
            missing_server(config, error)
        yield urls[name]


def program_of(config: pytest.Config, name: str) -> str:
    try:
        return brokers.program(name, install=config.getoption("--install-brokers"))
    except brokers.MissingServerError as error:
        missing_server(config, error)


@pytest.fixture(scope="session")
def redis_url(pytestconfig: pytest.Config) -> Iterator[str]:
    """The address of a real Redis, shared by the session's tests: use keys and channels of your own."""
    yield from running_broker(pytestconfig, "redis")


@pytest.fixture(scope="session")
def kafka_url(pytestconfig: pytest.Config) -> Iterator[str]:
    """The address of a real Kafka, shared by the session's tests: use topics and groups of your own."""
    yield from running_broker(pytestconfig, "kafka")


@pytest.fixture(scope="session")
def redis_server(pytestconfig: pytest.Config) -> str:
    """The path of the redis-server program, for tests that start their own."""
    return program_of(pytestconfig, "redis")


@pytest.fixture(scope="session")
def kafka_server(pytestconfig: pytest.Config) -> str:
    """The path of the java program, with Kafka's jars in place, for tests that start their own."""
    return program_of(pytestconfig, "kafka")


@pytest.fixture(scope="session")
def rabbitmq_url(pytestconfig: pytest.Config) -> Iterator[str]:
    """The address of a real RabbitMQ, shared by the session's tests: use exchanges, queues and keys of your own."""
    yield from running_broker(pytestconfig, "rabbitmq")


@pytest.fixture(scope="session")
def rabbitmq_server(pytestconfig: pytest.Config) -> str:
    """The path of the rabbitmq-server program, for tests that start their own."""
    return program_of(pytestconfig, "rabbitmq")


def tool_of(config: pytest.Config, name: str) -> str:
    """The path of one of the tools that tests use; skips without it, or fails where it must not be missing."""
    try:
        return brokers.tool(name, install=config.getoption("--install-brokers"))
    except brokers.MissingServerError as error:
        missing_server(config, error)


@pytest.fixture(scope="session")
def browser(pytestconfig: pytest.Config) -> Iterator[Browser]:
    """A real browser, for pages of your own; see `tests.browser`."""
    with Browser.start(tool_of(pytestconfig, "chromium")) as one:
        yield one


def _loop(name: str, options: dict[str, Any], needs: str, id: str) -> Any:
    absent = find_spec(needs) is None and not in_ci()
    return pytest.param((name, options), id=id, marks=pytest.mark.skipif(absent, reason=f"{needs} is not installed"))


@pytest.fixture(
    params=[
        _loop("asyncio", {"debug": False}, needs="asyncio", id="asyncio"),
        _loop("asyncio", {"debug": False, "use_uvloop": True}, needs="uvloop", id="uvloop"),
        _loop("trio", {}, needs="trio", id="trio"),
    ],
    scope="module",
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The loop that a test marked ``anyio`` runs on."""
    loop: tuple[str, dict[str, Any]] = request.param
    return loop


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def dispatcher(broker: MemoryBroker) -> EventDispatcher:
    return dispatcher_on(broker)


@pytest.fixture
def log() -> list[str]:
    return []
