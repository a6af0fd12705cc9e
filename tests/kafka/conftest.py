from __future__ import annotations

import pytest

from tests.kafka.helpers import Cluster


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that are refused are given up sooner than the two seconds that a user's are given."""
    monkeypatch.setattr("dispytch.kafka.trouble._PATIENCE", 0.5)


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
