"""Fixtures of the fault rows."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests import brokers
from tests.conftest import missing_server
from tests.faults.broker import Broker, running
from tests.faults.task import Transport


@pytest.fixture(scope="session")
def faults_seed() -> int:
    """Decides on everything that is random in a run; ``DISPYTCH_FAULTS_SEED``, or a new one."""
    return int(os.environ.get("DISPYTCH_FAULTS_SEED") or random.randrange(1_000_000))


@pytest.fixture(scope="session")
def broker_of(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Transport], Broker]]:
    """The session's broker of a kind, for rows alone: they kill it."""
    found: dict[Transport, Broker] = {}
    with ExitStack() as stack:

        def broker_of(transport: Transport) -> Broker:
            if transport not in found:
                try:
                    brokers.program(transport, install=pytestconfig.getoption("--install-brokers"))
                except brokers.MissingServerError as error:
                    missing_server(pytestconfig, error)
                found[transport] = stack.enter_context(running(transport, tmp_path_factory.mktemp(transport)))
            return found[transport]

        yield broker_of
