"""Addresses, TLS, SASL, secrets, and what happens without the client library."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest

from dispytch import consumer_from_url, producer_from_url
from dispytch.abc import Receipt
from dispytch.errors import BrokerUnreachableError, ConfigurationError, EmitUnreachableError
from dispytch.kafka import KafkaConsumer, KafkaProducer
from tests.kafka.helpers import Cluster, kafka_threads, message, receive, subscription, unique
from tests.support import CANARY, texts

PASSWORD = "alice%27s%20secret"


def both(kafka: Any, config: dict[str, Any] | None = None) -> list[Any]:
    return [KafkaProducer(kafka, config), KafkaConsumer(kafka, group_id="g", config=config)]


@pytest.mark.parametrize(
    "url",
    [
        f"kafka://u:{CANARY}@host:port",
        f"kafka://u:{CANARY}@host:99999",
        f"kafka://u:{CANARY}@host:0",
        f"kafka://u:{CANARY}/x@host",
        f"kafka://u:12/{CANARY}@host",
        f"kafka://u:{CANARY}#x@host",
        f"kafka://u:p@ss?{CANARY}@host",
        f"kafka://u:{CANARY}@host/topic",
        f"kafka://u:{CANARY}@[::1",
        f"kafka://:{CANARY}@host",
        f"kafka://{CANARY}@host",
        f"kafka://u:{CANARY}@",
        f"kafka://u:{CANARY}@a,,b",
        f"kafka://u:{CANARY}@host?no.such.option=1",
        f"kafka://u:{CANARY}@host?sasl.mechanism={CANARY}",
        f"kafka://u:{CANARY}@host?security.protocol=SSL",
        f"kafka://u:{CANARY}@host?sasl.password={CANARY}",
        f"kafka://host?sasl.username=u&sasl.password={CANARY}&sasl.password={CANARY}",
        f"kafka+ssl://u:{CANARY}@host?ssl.ca.location=/no/such/file",
        f"kafka+ssl://host?ssl.key.password={CANARY}&ssl.key.location=/no/such/file",
        f"kafka+ssl://host?ssl.key.pem={CANARY}",
        f"http://u:{CANARY}@host",
        f"u:{CANARY}@host:9092",
        f"{CANARY}@host",
        "",
        ",",
    ],
)
@pytest.mark.parametrize("kind", [0, 1])
def test_a_malformed_address_is_refused_without_its_password(kind: int, url: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        (lambda: KafkaProducer(url), lambda: KafkaConsumer(url, group_id="g"))[kind]()
    assert CANARY not in texts(raised.value)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"sasl.password": CANARY, "no.such": 1}, "no.such"),
        ({"ssl.key.password": CANARY, "ssl.certificate.location": "/no/such", "security.protocol": "SSL"}, "ssl."),
        ({"sasl.jaas.config": CANARY}, "JAAS"),
        ({"ssl.key.pem": CANARY, "security.protocol": "SSL"}, "ssl.key.pem"),
        ({"security.protocol": CANARY}, "security.protocol"),
    ],
)
def test_settings_are_refused_without_secrets(config: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        KafkaProducer("localhost", config)
    assert name in str(raised.value)
    if "security.protocol" not in config or config["security.protocol"] != CANARY:
        assert CANARY not in texts(raised.value)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("kafka://host", "host:9092"),
        ("kafka://host/", "host:9092"),
        ("kafka://a:1,b:2", "a:1,b:2"),
        (f"kafka://user:{CANARY}%40%2F@host:1234", "host:1234"),
        (f"kafka+ssl://user:{CANARY}@host:1234,other?sasl.mechanism=SCRAM-SHA-512", "host:1234,other:9092"),
        (f"kafka://host?sasl.username=u&sasl.password={CANARY}&sasl.mechanism=PLAIN&client.id=me", "host:9092"),
        ("kafka://[::1]:7000", "[::1]:7000"),
    ],
)
def test_urls(url: str, address: str) -> None:
    for made in (producer_from_url(url), consumer_from_url(url, "group"), producer_from_url(url).blocking()):
        assert address in repr(made)
        assert CANARY not in repr(made)
        assert CANARY not in repr(vars(made))
    assert consumer_from_url(url, "billing").group_id == "billing"


def test_what_a_url_means() -> None:
    settings = KafkaProducer(f"kafka+ssl://user:{CANARY}%40@host?ssl.endpoint.identification.algorithm=https")._settings
    assert settings.get("security.protocol") == "SASL_SSL"
    assert (settings.get("sasl.username"), settings.get("sasl.password")) == ("user", f"{CANARY}@")
    assert settings.get("sasl.mechanism") == "PLAIN"
    assert KafkaProducer("kafka+ssl://host")._settings.get("security.protocol") == "SSL"
    assert KafkaProducer("kafka://u:p@host")._settings.get("security.protocol") == "SASL_PLAINTEXT"
    with pytest.raises(ConfigurationError, match="given by the URL and by config"):
        KafkaProducer("kafka://host?linger.ms=5", {"linger.ms": 5})


def test_importing_is_light() -> None:
    code = """
import sys
import dispytch, dispytch.kafka
assert "confluent_kafka" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_the_client_library() -> None:
    code = """
import sys
sys.modules["confluent_kafka"] = None
from dispytch import consumer_from_url, producer_from_url
from dispytch.errors import MissingExtraError
from dispytch.kafka import KafkaConsumer, KafkaEventRoute, KafkaProducer
KafkaEventRoute("x")
for make in (KafkaProducer, lambda url: KafkaConsumer(url, group_id="g"), producer_from_url, consumer_from_url):
    try:
        make("kafka://localhost")
    except MissingExtraError as error:
        assert 'pip install "dispytch[kafka]"' in str(error), error
    else:
        raise AssertionError(make)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("scheme", "listener", "user", "options"),
    [
        ("kafka", "SASL_PLAINTEXT", f"alice:{PASSWORD}@", {}),
        ("kafka", "SASL_PLAINTEXT", f"alice:{PASSWORD}@", {"sasl.mechanism": "SCRAM-SHA-256"}),
        ("kafka+ssl", "SSL", "", {}),
        ("kafka+ssl", "SASL_SSL", f"alice:{PASSWORD}@", {"sasl.mechanism": "SCRAM-SHA-512"}),
    ],
)
async def test_tls_and_sasl(
    cluster: Cluster,
    listeners: dict[str, str],
    authority: str,
    scheme: str,
    listener: str,
    user: str,
    options: dict[str, str],
) -> None:
    if scheme == "kafka+ssl":
        options = {**options, "ssl.ca.location": authority}
    query = "&".join(f"{name}={value}" for name, value in options.items())
    url = f"{scheme}://{user}{listeners[listener]}?{query}".rstrip("?")
    topic = unique()
    producer, consumer = KafkaProducer(url), KafkaConsumer(url, group_id=unique("group"))
    await consumer.start([subscription(topic)])
    (outcome,) = await producer.send([message(topic, b"x")], 20)
    assert isinstance(outcome, Receipt), outcome
    (delivery,) = await receive(consumer, 1, settle=True)
    assert delivery.payload == b"x"
    await consumer.stop()
    await producer.stop()
    assert kafka_threads() == []


WRONG = {
    "password": ("kafka://alice:{canary}@{SASL_PLAINTEXT}", "check the user, the password"),
    "scram": ("kafka://alice:{canary}@{SASL_PLAINTEXT}?sasl.mechanism=SCRAM-SHA-256", "check the user, the password"),
    "issuer": ("kafka+ssl://alice:{canary}@{SASL_SSL}", "certificate"),
    "no TLS": ("kafka://alice:{canary}@{SSL}", "TLS"),
    "TLS": ("kafka+ssl://alice:{canary}@{PLAINTEXT}", "TLS"),
    "no SASL": ("kafka://{SASL_PLAINTEXT}", "password"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [pytest.param(("trio", {}), id="trio")], scope="module")
@pytest.mark.parametrize("wrong", list(WRONG))
async def test_what_does_not_connect_says_why(
    listeners: dict[str, str], wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    template, text = WRONG[wrong]
    url = template.format(canary=CANARY, **listeners)
    producer, consumer = KafkaProducer(url), KafkaConsumer(url, group_id="g")
    with caplog.at_level(logging.DEBUG):
        (outcome,) = await producer.send([message("x")], 8)
        assert isinstance(outcome, EmitUnreachableError)
        with pytest.raises(BrokerUnreachableError, match=text) as raised:
            await consumer.start([subscription("x")])
        logging.getLogger("dispytch").error("failed", exc_info=raised.value)
    assert text in str(outcome)
    assert CANARY not in texts(outcome) + texts(raised.value) + caplog.text
    await producer.stop()
    await consumer.stop()
    assert kafka_threads() == []
