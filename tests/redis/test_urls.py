"""URLs, TLS, secrets, and what happens without the client library."""

from __future__ import annotations

import logging
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from dispytch import consumer_from_url, producer_from_url
from dispytch.abc import Receipt
from dispytch.errors import BrokerUnreachableError, ConfigurationError, EmitUnreachableError
from dispytch.redis import RedisConsumer, RedisProducer
from dispytch.redis.source import with_advice
from tests.conftest import in_ci
from tests.redis.helpers import message, reader_threads, subscription, unique
from tests.support import CANARY, texts


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{CANARY}@host:port/0",
        f"redis://:{CANARY}@host:99999/0",
        f"redis://:{CANARY}@host:0/0",
        f"redis://:{CANARY}/x@host/0",
        f"redis://:12/{CANARY}@host",
        f"redis://:{CANARY}#x@host/0",
        f"redis://:x#{CANARY}@host/0",
        f"redis://:p@ss?{CANARY}@host/0",
        f"redis://:{CANARY}@host/database",
        f"redis://:{CANARY}@[::1/0",
        f"redis://:{CANARY}@host/0?db=one",
        f"redis://:{CANARY}@host/0?no_such_option=1",
        f"redis://host/0?password={CANARY}&no_such_option={CANARY}",
        f"redis://:{CANARY}@host/0?protocol=1&ssl_ca_certs=x",
        f"rediss://:{CANARY}@host/0?ssl_ca_certs=/no/such/file",
        f"rediss://:{CANARY}@host/0?ssl_certfile=/no/such/file&ssl_password={CANARY}",
        f"rediss://:{CANARY}@host/0?ssl_cert_reqs=perhaps",
        f"http://:{CANARY}@host",
        f"{CANARY}",
        "",
    ],
)
@pytest.mark.parametrize("kind", [RedisProducer, RedisConsumer])
def test_a_malformed_url_is_refused_without_its_password(kind: Any, url: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        kind(url)
    assert CANARY not in texts(raised.value)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://", "localhost:6379"),
        ("redis://host", "host:6379"),
        (f"redis://user:{CANARY}%40%2F@host:1234/7", "host:1234"),
        (f"rediss://user:{CANARY}@host:1234/7?ssl_cert_reqs=none", "host:1234"),
        (f"redis://host/?password={CANARY}&socket_connect_timeout=3&client_name=me", "host:6379"),
        ("redis://[::1]:7000/0", "::1:7000"),
    ],
)
def test_urls(url: str, address: str) -> None:
    for made in (producer_from_url(url), consumer_from_url(url, "group")):
        assert address in repr(made)
        assert CANARY not in repr(made)
        assert CANARY not in repr(vars(made))
    assert consumer_from_url(url, "billing").group_id == "billing"


def test_tls_verifies_by_default() -> None:
    source = RedisProducer("rediss://host")._source
    for connection in (source.blocking(), source.asyncio()):
        assert connection.cert_reqs == ssl.CERT_REQUIRED
        assert connection.check_hostname
    source = RedisProducer("rediss://host?ssl_cert_reqs=none")._source
    assert source.blocking().cert_reqs == ssl.CERT_NONE


def test_connections_retry_nothing() -> None:
    source = RedisProducer("redis://host?retry_on_timeout=true&health_check_interval=1&decode_responses=true")._source
    for connection in (source.blocking(), source.asyncio()):
        assert connection.retry._retries == 0
        assert not connection.retry_on_error
        assert not connection.health_check_interval


def test_importing_is_light() -> None:
    code = """
import sys
import dispytch, dispytch.redis
assert "redis" not in sys.modules and "hiredis" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("absent", ["redis", "hiredis"])
def test_without_the_client_library(absent: str) -> None:
    code = f"""
import sys
sys.modules[{absent!r}] = None
from dispytch import producer_from_url
from dispytch.errors import MissingExtraError
from dispytch.redis import RedisConsumer, RedisEventRoute, RedisProducer, RedisStreamConsumer, RedisStreamProducer
RedisEventRoute("x")
stream_consumer = lambda url: RedisStreamConsumer(url, group_id="group")
for make in (RedisProducer, RedisConsumer, RedisStreamProducer, stream_consumer, producer_from_url):
    try:
        make("redis://localhost")
    except MissingExtraError as error:
        assert 'pip install "dispytch[redis]"' in str(error), error
    else:
        raise AssertionError(make)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class TLSFront:
    """TLS in front of a server that has none."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        self.certificate = folder / "certificate.pem"
        key = folder / "key.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
                *("-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", self.certificate),
            ],
            check=True,
            capture_output=True,
        )
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self.certificate, key)
        self._target = urlsplit(redis_url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(plain,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        try:
            with (
                self._context.wrap_socket(plain, server_side=True) as secure,
                socket.create_connection((self._target.hostname, self._target.port)) as behind,
            ):
                back = threading.Thread(target=self._copy, args=(behind, secure), daemon=True)
                back.start()
                self._copy(secure, behind)
                back.join()
        except OSError:
            plain.close()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            with suppress(OSError):
                socket.socket.shutdown(end, socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)


@pytest.fixture(scope="module")
def tls(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TLSFront]:
    if shutil.which("openssl") is None and not in_ci():
        pytest.skip("openssl is not installed")
    front = TLSFront(redis_url, tmp_path_factory.mktemp("tls"))
    yield front
    front.close()


@pytest.mark.anyio
async def test_tls(tls: TLSFront) -> None:
    url = f"rediss://localhost:{tls.port}/0?ssl_ca_certs={tls.certificate}"
    name = unique()
    producer, consumer = RedisProducer(url), RedisConsumer(url)
    await consumer.start([subscription(name)])
    for size in (1, 500_000):
        (outcome,) = await producer.send([message(name, b"x" * size)], 10)
        assert isinstance(outcome, Receipt), outcome
        (delivery,) = await consumer.receive(10)
        assert delivery.payload == b"x" * size
    await consumer.stop()
    await producer.stop()
    assert reader_threads() == []
    (outcome,) = producer.blocking().send([message(name)], 10)
    assert isinstance(outcome, Receipt), outcome


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", ["unknown issuer", "other host", "no TLS"])
async def test_tls_that_does_not_hold(tls: TLSFront, wrong: str) -> None:
    url = {
        "unknown issuer": f"rediss://:{CANARY}@localhost:{tls.port}",
        "other host": f"rediss://:{CANARY}@127.0.0.1:{tls.port}?ssl_ca_certs={tls.certificate}",
        "no TLS": f"redis://:{CANARY}@localhost:{tls.port}",
    }[wrong]
    producer, consumer = RedisProducer(url), RedisConsumer(url)
    (outcome,) = await producer.send([message("x")], 5)
    assert isinstance(outcome, EmitUnreachableError)
    with pytest.raises(BrokerUnreachableError, match="TLS") as raised:
        await consumer.start([subscription("x")])
    assert CANARY not in texts(outcome) + texts(raised.value)
    await producer.stop()
    await consumer.stop()


@pytest.mark.anyio
async def test_no_password_in_the_log(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    url = redis_url.replace("redis://", f"redis://nobody:{CANARY}@")
    with caplog.at_level(logging.DEBUG):
        (outcome,) = await RedisProducer(url).send([message("x")], 5)
        logging.getLogger("dispytch").error("failed", exc_info=outcome if isinstance(outcome, Exception) else None)
    assert "refused" in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.parametrize("reply", ["NOAUTH Authentication required.", "Authentication required."])
def test_who_gave_no_password_is_told_where_it_goes(reply: str) -> None:
    assert with_advice(reply).endswith("required; give user and password in the URL: redis://user:password@host:6379")
    assert with_advice("ERR unknown command") == "ERR unknown command"
