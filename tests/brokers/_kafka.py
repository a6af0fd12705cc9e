"""Apache Kafka: one node that is broker and controller, from its Maven jars on the local Java.

It has a listener for each way of connecting, so that one process serves all tests. The address of the broker leads to
the plain one; its ``listeners`` setting tells the others, and its ``ssl.truststore.location`` the authority.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ._errors import BrokersError
from ._ports import free_ports
from ._servers import LOOPBACK, Server

KAFKA_VERSION = "4.1.0"
KAFKA_USERS = {"alice": "alice's secret", "bob": "bob's secret"}
"""Names and passwords, by any SASL mechanism. All may do everything until an access control list says otherwise."""

_POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>dispytch.tests</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{KAFKA_VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-simple</artifactId>
      <version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
_LISTENERS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL", "CONTROLLER")
_QUICK_START = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
_LOG_LEVELS = {
    "defaultLogLevel": "warn",
    "log.org.apache.kafka.common.utils.AppInfoParser": "info",  # the version
    "log.kafka.server.KafkaRaftServer": "info",
}


class Kafka(Server):
    name = "kafka"
    program = "java"
    debian_package = "default-jre-headless"
    start_seconds = 180.0

    def __init__(self, proxied: tuple[int, int] | None = None) -> None:
        """Has one more listener, if ``proxied``: on the first of these ports, which sends its clients to the second."""
        self._proxied = proxied
        self._clusters: dict[int, str] = {}

    def url(self, port: int) -> str:
        return f"kafka://{LOOPBACK}:{port}"

    def missing(self) -> str | None:
        if (missing := super().missing()) is not None:
            return missing
        if shutil.which("openssl") is None:
            return "openssl is not on PATH"
        return None if _jars().is_dir() else f"there is no Kafka {KAFKA_VERSION} in {_jars()}"

    def missing_packages(self) -> Sequence[str]:
        needed = {"java": self.debian_package, "openssl": "openssl"}
        if not _jars().is_dir():
            needed["mvn"] = "maven"
        return [package for program, package in needed.items() if shutil.which(program) is None]

    def fetch(self) -> None:
        if _jars().is_dir():
            return
        _jars().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_jars().parent) as folder:
            pom, output = Path(folder, "pom.xml"), Path(folder, "jars")
            pom.write_text(_POM)
            maven = shutil.which("mvn") or "mvn"
            _run(maven, "-B", "-q", "-f", str(pom), _COPY, "-DincludeScope=runtime", f"-DoutputDirectory={output}")
            with suppress(FileExistsError):  # somebody else was faster
                output.rename(_jars())

    def prepare(self, folder: Path, port: int) -> None:
        certificates = _make_certificates(folder)
        settings = folder / "server.properties"
        lines = (f"{key}={value}\n" for key, value in _settings(folder, port, certificates, self._proxied).items())
        settings.write_text("".join(lines))
        if (kept := folder / "data" / "meta.properties").exists():
            self._clusters[port] = _property(kept, "cluster.id")
            return
        # One that begins with a hyphen would be taken for an option.
        cluster = self._clusters[port] = "k" + urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:].rstrip("=")
        users = (
            f"--add-scram=SCRAM-SHA-{bits}=[name={name},password={password}]"
            for bits in (256, 512)
            for name, password in KAFKA_USERS.items()
        )
        java = shutil.which("java") or "java"
        format_storage = ("kafka.tools.StorageTool", "format", "--cluster-id", cluster, "--config", str(settings))
        _run(java, "-Xmx256m", *_QUICK_START, "-cp", _class_path(), *format_storage, *users)

    def arguments(self, folder: Path, port: int) -> Sequence[str]:
        levels = (f"-Dorg.slf4j.simpleLogger.{key}={level}" for key, level in _LOG_LEVELS.items())
        settings = str(folder / "server.properties")
        return ("-Xmx512m", *_QUICK_START, *levels, "-cp", _class_path(), "kafka.Kafka", settings)

    def answers(self, port: int, pid: int | None) -> bool:
        cluster, brokers = _metadata(port)
        # Another one may have taken the port between our choosing it and the start of ours.
        return brokers > 0 and (pid is None or cluster == self._clusters[port])

    def version(self, folder: Path) -> str:
        """What the server that keeps to ``folder`` has said of itself in its log."""
        found = re.search(r"Kafka version: (\S+)", (folder / "server.log").read_text())
        if found is None:
            raise BrokersError(f"The log in {folder} names no version.")
        return found[1]


def _property(file: Path, name: str) -> str:
    lines = dict(line.split("=", 1) for line in file.read_text().splitlines() if "=" in line)
    return lines[name]


def _jars() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "dispytch-tests" / f"kafka-{KAFKA_VERSION}"


def _class_path() -> str:
    return f"{_jars()}/*"


def _settings(folder: Path, port: int, certificates: Path, proxied: tuple[int, int] | None = None) -> dict[str, object]:
    ports = dict(zip(_LISTENERS, (port, *free_ports(len(_LISTENERS) - 1)), strict=True))
    listeners = {name: f"{name}://{LOOPBACK}:{number}" for name, number in ports.items()}
    advertised = [address for name, address in listeners.items() if name != "CONTROLLER"]
    protocols = {name: "PLAINTEXT" if name == "CONTROLLER" else name for name in _LISTENERS}
    if proxied is not None:
        listeners["PROXIED"], protocols["PROXIED"] = f"PROXIED://{LOOPBACK}:{proxied[0]}", "PLAINTEXT"
        advertised.append(f"PROXIED://{LOOPBACK}:{proxied[1]}")
    passwords = " ".join(f'user_{name}="{password}"' for name, password in KAFKA_USERS.items())
    jaas = {
        f"listener.name.{listener}.{mechanism}.sasl.jaas.config": f"org.apache.kafka.common.security.{module}"
        for listener in ("sasl_plaintext", "sasl_ssl")
        for mechanism, module in {
            "plain": f"plain.PlainLoginModule required {passwords};",
            "scram-sha-256": "scram.ScramLoginModule required;",
            "scram-sha-512": "scram.ScramLoginModule required;",
        }.items()
    }
    return {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{LOOPBACK}:{ports['CONTROLLER']}",
        "listeners": ",".join(listeners.values()),
        "advertised.listeners": ",".join(advertised),
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": folder / "data",
        "offsets.topic.num.partitions": 1,
        "offsets.topic.replication.factor": 1,
        "transaction.state.log.num.partitions": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "num.partitions": 1,
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 1000,
        "log.cleaner.backoff.ms": 200,
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
        "log.initial.task.delay.ms": 100,
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
        "super.users": "User:ANONYMOUS",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": certificates / "server.pem",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": certificates / "authority.pem",
        **jaas,
    }


def _make_certificates(folder: Path) -> Path:
    """An authority of our own, and a certificate of it for this machine."""
    made = folder / "certificates"
    made.mkdir(exist_ok=True)
    openssl = shutil.which("openssl") or "openssl"
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650")
    authority = ("-keyout", str(made / "authority.key"), "-out", str(made / "authority.pem"))
    _run(openssl, "req", "-x509", *new_key, "-subj", "/CN=Authority of the tests", *authority)
    _run(
        *(openssl, "req", "-x509", *new_key, "-subj", "/CN=localhost", "-CA", str(made / "authority.pem")),
        *("-CAkey", str(made / "authority.key"), "-addext", f"subjectAltName=IP:{LOOPBACK},DNS:localhost"),
        *("-addext", "basicConstraints=critical,CA:FALSE"),
        *("-keyout", str(made / "server.key"), "-out", str(made / "server.crt")),
    )
    (made / "server.pem").write_text((made / "server.key").read_text() + (made / "server.crt").read_text())
    return made


def _run(*command: str) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise BrokersError(f"Cannot run {command[0]}: {error}.") from None
    if done.returncode != 0:
        raise BrokersError(
            f"`{' '.join(command)}` ended with {done.returncode}.\n{done.stdout.strip()[-2000:]}\n"
            "Run it by hand to see what is wrong, or set DISPYTCH_TEST_KAFKA_URL to the address of a server that runs."
        )


def _metadata(port: int) -> tuple[str, int]:
    """The cluster's id and the number of its brokers, by a Metadata request (version 2) for no topics."""
    client = b"tests"
    request = struct.pack(">hhih", 3, 2, 1, len(client)) + client + struct.pack(">i", 0)
    with socket.create_connection((LOOPBACK, port), timeout=2) as connection, connection.makefile("rb") as stream:
        connection.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", _exactly(stream.read(4), 4))
        answer = memoryview(_exactly(stream.read(size), size))
    position = 4  # past the correlation id

    def number(kind: str) -> int:
        nonlocal position
        (found,) = struct.unpack_from(f">{kind}", answer, position)
        position += struct.calcsize(f">{kind}")
        return int(found)

    def text() -> str:
        nonlocal position
        length = max(number("h"), 0)
        position += length
        return str(answer[position - length : position], "utf-8")

    brokers = number("i")
    for _ in range(brokers):
        number("i")  # node
        text()  # host
        number("i")  # port
        text()  # rack
    return text(), brokers


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ConnectionError("the connection was closed")
    return data
