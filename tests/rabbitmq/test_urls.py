"""URLs: what they may say, what is verified, and that no secret gets out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dispytch import consumer_from_url, producer_from_url
from dispytch.abc import Receipt
from dispytch.errors import BrokerError, BrokerUnreachableError, ConfigurationError, EmitError, EmitUnreachableError
from dispytch.rabbitmq import RabbitMQConsumer, RabbitMQProducer
from dispytch.rabbitmq.producer import Driver
from dispytch.rabbitmq.source import Source
from tests import brokers
from tests.brokers import Running
from tests.certificates import Certificates
from tests.faults.proxy import port_of, proxy_to
from tests.rabbitmq.helpers import message
from tests.support import CANARY, closed_port, texts


@pytest.mark.parametrize(
    ("url", "address", "vhost"),
    [
        ("amqp://h", "h:5672", "/"),
        ("amqp://h/", "h:5672", "/"),
        ("amqp://h//", "h:5672", "/"),
        ("amqp://h/%2F", "h:5672", "/"),
        ("amqp://u:p@h:1234/shop", "h:1234/shop", "shop"),
        ("amqp://[::1]:1/a%2Fb", "::1:1/a/b", "a/b"),
        ("amqps://h?heartbeat=5&connection_timeout=2.5", "h:5671", "/"),
    ],
)
def test_forms(url: str, address: str, vhost: str) -> None:
    source = Source(url)
    assert (source.address, source.vhost) == (address, vhost)


def test_options() -> None:
    source = Source("amqp://us%40er:p%2Fw@h?heartbeat=5&connection_timeout=2.5")
    parameters = source.pika_parameters("name")
    assert (parameters.heartbeat, parameters.socket_timeout, parameters.stack_timeout) == (5, 2.5, 2.5)
    assert (parameters.credentials.username, parameters.credentials.password) == ("us@er", "p/w")


@pytest.mark.parametrize(
    "rest",
    [
        "h:port",
        "h:0",
        "h:70000",
        "h/a/b",
        "h#x",
        "h?heartbeat=often",
        "h?heartbeat=-1",
        "h?connection_timeout=0",
        "h?unknown=1",
        "h?heartbeat=1&heartbeat=2",
        "h?cafile=/nowhere",
        "h/%FF",
        "[h",
    ],
)
def test_wrong_urls_are_refused_without_a_secret(rest: str, tmp_path: Path) -> None:
    for scheme in ("amqp", "amqps"):
        for make in (producer_from_url, lambda url: consumer_from_url(url, "group")):
            with pytest.raises(ConfigurationError) as caught:
                make(f"{scheme}://user:{CANARY}@{rest}")
            assert CANARY not in texts(caught.value)


def test_other_schemes_are_refused_without_a_secret() -> None:
    with pytest.raises(ConfigurationError) as caught:
        RabbitMQProducer(f"redis://user:{CANARY}@h")
    assert CANARY not in texts(caught.value)


@pytest.mark.anyio
async def test_no_secret_gets_out(rabbitmq_url: str, driver: Driver | None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    port = port_of(rabbitmq_url)
    for where in (f"127.0.0.1:{port}/", f"127.0.0.1:{closed_port()}", "no-such-host.invalid", f"127.0.0.1:{port}/none"):
        url = f"amqp://guest:{CANARY}@{where}"
        sender = RabbitMQProducer(url, driver=driver)
        (outcome,) = await sender.send([message("k")], 10)
        assert isinstance(outcome, EmitError)
        consumer = RabbitMQConsumer(url, queue="q", driver=driver)
        with pytest.raises(BrokerError) as caught:
            await consumer.start()
        await sender.stop()
        await consumer.stop()
        for text in (texts(outcome), texts(caught.value), repr(sender), repr(consumer)):
            assert CANARY not in text
    assert not [record for record in caplog.records if CANARY in record.getMessage()]


@pytest.mark.anyio
async def test_what_went_wrong_is_said(rabbitmq_url: str, driver: Driver | None) -> None:
    port = port_of(rabbitmq_url)
    for where, kind, words in (
        (f"guest:wrong@127.0.0.1:{port}", BrokerError, "user name or the password"),
        (f"127.0.0.1:{port}/nowhere", BrokerError, "virtual host 'nowhere'"),
        (f"127.0.0.1:{closed_port()}", BrokerUnreachableError, "cannot connect"),
        ("no-such-host.invalid", BrokerUnreachableError, "cannot connect"),
    ):
        consumer = RabbitMQConsumer(f"amqp://{where}", queue="q", driver=driver)
        with pytest.raises(kind, match=words) as caught:
            await consumer.start()
        assert type(caught.value) is kind
        await consumer.stop()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    Certificates(folder, "IP:127.0.0.1")
    return folder


@pytest.fixture(scope="module")
def server(
    rabbitmq_server: str, certificates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, int]]:
    """A server with a TLS listener too, and its port."""
    port = closed_port()
    settings = {
        "listeners.ssl.1": f"127.0.0.1:{port}",
        "ssl_options.certfile": certificates / "server.pem",
        "ssl_options.keyfile": certificates / "server.key",
        "ssl_options.cacertfile": certificates / "authority.pem",
        "ssl_options.verify": "verify_none",
    }
    with brokers.started(brokers.RabbitMQ(settings), tmp_path_factory.mktemp("server")) as running:
        yield running, port


class TestTLS:
    @pytest.mark.anyio
    async def test_certificates_are_verified(
        self, server: tuple[Running, int], certificates: Path, driver: Driver | None
    ) -> None:
        _, port = server
        for options, works in (
            (f"cafile={certificates}/authority.pem", True),
            ("", False),
            ("no_verify_ssl=1", True),
        ):
            sender = RabbitMQProducer(f"amqps://127.0.0.1:{port}?{options}", mandatory=False, driver=driver)
            (outcome,) = await sender.send([message("k")], 10)
            await sender.stop()
            if works:
                assert isinstance(outcome, Receipt)
            else:
                assert isinstance(outcome, EmitUnreachableError)
                assert "certificate" in str(outcome)

    @pytest.mark.anyio
    async def test_the_host_name_is_verified(
        self, server: tuple[Running, int], certificates: Path, driver: Driver | None
    ) -> None:
        url = f"amqps://localhost:{server[1]}?cafile={certificates}/authority.pem"
        consumer = RabbitMQConsumer(url, queue="q", driver=driver)
        with pytest.raises(BrokerUnreachableError, match="certificate"):
            await consumer.start()
        await consumer.stop()

    @pytest.mark.anyio
    async def test_plain_to_tls_and_back_say_so(self, server: tuple[Running, int], driver: Driver | None) -> None:
        running, port = server
        for url in (f"amqp://127.0.0.1:{port}", f"amqps://127.0.0.1:{running.port}"):
            consumer = RabbitMQConsumer(f"{url}?connection_timeout=2", queue="q", driver=driver)
            with pytest.raises(BrokerUnreachableError):
                await consumer.start()
            await consumer.stop()


@pytest.mark.anyio
async def test_connection_timeout(rabbitmq_url: str, driver: Driver | None) -> None:
    with proxy_to(rabbitmq_url) as proxy:
        proxy.frozen = True
        consumer: Any = RabbitMQConsumer(f"{proxy.url}?connection_timeout=0.15", queue="q", driver=driver)
        with pytest.raises(BrokerUnreachableError, match=r"within 0\.15 s"):
            await consumer.start()
        await consumer.stop()
        proxy.frozen = False
