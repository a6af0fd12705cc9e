from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from dispytch.errors import DispytchError
from dispytch.kafka.sender import _senders
from tests.kafka.helpers import Cluster, earlier_threads


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that are refused are given up sooner than the two seconds that a user's are given."""
    monkeypatch.setattr("dispytch.kafka.trouble._PATIENCE", 0.5)


@pytest.fixture(autouse=True)
def _on_its_own() -> Iterator[None]:
    """What a test that failed has left behind is not held against the next one."""
    earlier_threads.update(threading.enumerate())
    yield
    earlier_threads.clear()
    for sender in list(_senders):
        with suppress(DispytchError):
            sender.close(0.0)


@pytest.fixture(scope="session")
def cluster(kafka_url: str) -> Cluster:
    """The session's Kafka, to look at it."""
    return Cluster(kafka_url)


@pytest.fixture(scope="session")
def listeners(cluster: Cluster) -> dict[str, str]:
    """The addresses of the broker's listeners, by their protocol."""
    found = cluster.listeners()
    if "SASL_SSL" not in found:
        pytest.skip("this Kafka has no listeners for TLS and SASL")
    return found


@pytest.fixture(scope="session")
def authority(cluster: Cluster) -> str:
    """The file of the authority that the broker's certificate comes from."""
    return cluster.settings()["ssl.truststore.location"]
