"""RabbitMQ as one plain process: no epmd, no plugins, nothing outside its folder, listeners on loopback only."""

from __future__ import annotations

import os
import shutil
import socket
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from ._ports import free_port
from ._servers import LOOPBACK, Server

_DEBIAN_SCRIPT = "/usr/lib/rabbitmq/bin/rabbitmq-server"
_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME = 1
_CONNECTION_START = (10, 10)


class RabbitMQ(Server):
    name = "rabbitmq"
    program = "rabbitmq-server"
    debian_package = "rabbitmq-server"
    start_seconds = 180.0

    def __init__(self, settings: Mapping[str, object] | None = None) -> None:
        """``settings`` are further lines of its ``rabbitmq.conf``, for instance those of a TLS listener."""
        self.settings = dict(settings or {})

    def find(self) -> str | None:
        # What Debian has on PATH changes to another user and into another folder first.
        return shutil.which(_DEBIAN_SCRIPT) if Path(_DEBIAN_SCRIPT).exists() else super().find()

    def url(self, port: int) -> str:
        return f"amqp://guest:guest@{LOOPBACK}:{port}/"

    def arguments(self, folder: Path, port: int) -> Sequence[str]:
        return ()

    def environment(self, folder: Path, port: int) -> Mapping[str, str]:
        settings = {"listeners.tcp.1": f"{LOOPBACK}:{port}", **self.settings}
        (folder / "rabbitmq.conf").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
        (folder / "enabled_plugins").write_text("[].\n")
        (folder / "environment").touch()
        node = _node(port) + "@localhost"
        distribution = free_port()
        return {
            "HOME": str(folder),  # where Erlang keeps its cookie
            "RABBITMQ_CONF_ENV_FILE": str(folder / "environment"),  # instead of the machine's own
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_NODENAME": node,
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_ALLOW_INPUT": "1",  # the script then becomes the server, instead of waiting beside it
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                # A node that has its name from the start asks for no epmd, and none is left behind.
                f"-noinput -sname {node} -start_epmd false -erl_epmd_port {distribution} "
                f"-kernel inet_dist_use_interface {{127,0,0,1}} "
                f"-kernel inet_dist_listen_min {distribution} -kernel inet_dist_listen_max {distribution}"
            ),
        }

    def answers(self, port: int, pid: int | None) -> bool:
        properties = server_properties(port)
        # A second server may have taken the port between our choosing it and the start of ours.
        return pid is None or properties["cluster_name"].startswith(f"{_node(port)}@")


def server_properties(port: int) -> Mapping[str, str]:
    """What a server says of itself before anybody logs in: ``product``, ``version``, ``cluster_name`` and more.

    Raises:
        OSError: nothing answers, or it is no AMQP 0-9-1 server.
    """
    with socket.create_connection((LOOPBACK, port), timeout=1) as connection, connection.makefile("rwb") as stream:
        stream.write(_PROTOCOL_HEADER)
        stream.flush()
        kind, _, size = struct.unpack(">BHL", _exactly(stream.read(7), 7))
        if kind != _METHOD_FRAME:  # while it boots, a connection to the port may also have met itself
            raise OSError(f"what answers on port {port} does not speak AMQP 0-9-1")
        payload = _exactly(stream.read(size), size)
    if struct.unpack_from(">HH", payload) != _CONNECTION_START:
        raise OSError(f"what answers on port {port} does not speak AMQP 0-9-1")
    (length,) = struct.unpack_from(">L", payload, 6)
    return _texts(payload[10 : 10 + length])


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise OSError("the connection ended in the middle of the handshake")
    return data


def _texts(table: bytes) -> dict[str, str]:
    """The texts of an AMQP table; what is nested in it is left out."""
    found: dict[str, str] = {}
    position = 0
    while position < len(table):
        name_end = position + 1 + table[position]
        name, kind = table[position + 1 : name_end].decode(), table[name_end : name_end + 1]
        position = name_end + 1
        if kind == b"t":
            position += 1
            continue
        (length,) = struct.unpack_from(">L", table, position)
        position += 4
        if kind == b"S":
            found[name] = table[position : position + length].decode()
        position += length
    return found


def _node(port: int) -> str:
    """The name of the node that this process starts on the port."""
    return f"dispytch-{os.getpid()}-{port}"
