"""A connection of pika that takes plain deliveries past it, survives headers which pika cannot read, and does not warn
of what is expected.

pika raises in the middle of its loop at a date after the year 9999. The connection would be gone, the message back in
its queue, and the next connection gone the same way.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

from dispytch.rabbitmq.deliveries import Take, cut
from dispytch.rabbitmq.source import import_pika

__all__ = ["UNREADABLE", "connection_type"]

logger: logging.Logger = logging.getLogger("dispytch")

UNREADABLE = {"ce-specversion": "1.0"}
"""In place of headers that cannot be read: an event without an id, which is dead-lettered as unreadable."""

_READ_BYTES = 64 * 1024
"""What is read at once; pika reads a sixteenth."""
_HEADER_FRAME = 2
_FRAME_START, _FIXED = 7, 12
_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS = 1 << 15, 1 << 14, 1 << 13


@cache
def connection_type() -> Any:
    """pika's SelectConnection, with a quick and a patient way of reading frames.

    Its ``plain`` is the number of a channel, and what takes the plain deliveries of that channel. Its ``after_read`` is
    called when what was read at once has been handed out, so that it can be passed on at once.
    """
    pika = import_pika()
    select: Any = pika.SelectConnection

    class Connection(select):  # type: ignore[misc]  # pika has no types
        plain: tuple[int, Take] | None = None
        after_read: Callable[[], object] | None = None

        def _proto_connection_made(self, transport: Any) -> None:
            transport._MAX_RECV_BYTES = _READ_BYTES
            super()._proto_connection_made(transport)

        def _on_data_available(self, data_in: bytes) -> None:
            # pika's own, with the cutting before each of its steps.
            self._frame_buffer += data_in
            while self._frame_buffer:
                if self.plain is not None:
                    found = cut(self._frame_buffer, *self.plain)
                    self._trim_frame_buffer(found.size)
                    if found.is_part or not self._frame_buffer:
                        break
                size, frame = self._read_frame()
                if frame is None:
                    break
                self._trim_frame_buffer(size)
                self._process_frame(frame)
            if self.after_read is not None:
                self.after_read()

        def _read_frame(self) -> Any:
            try:
                return super()._read_frame()
            except Exception:
                buffer = self._frame_buffer
                if len(buffer) < _FRAME_START or buffer[0] != _HEADER_FRAME:
                    raise
                _, channel, size = struct.unpack_from(">BHL", buffer)
                frame = _without_headers(pika, channel, buffer[_FRAME_START : _FRAME_START + size])
                logger.warning("A message has headers that pika cannot read, so it is taken for one without an id.")
                return _FRAME_START + size + 1, frame

    def is_news(record: logging.LogRecord) -> bool:
        """Why the broker closed a channel of ours is told by us, unless we only asked whether something exists."""
        given = record.args if isinstance(record.args, tuple) else ()
        return "Channel.Close" not in str(record.msg) or not any(
            isinstance(getattr(one, "connection", None), Connection) for one in given
        )

    logging.getLogger("pika.channel").addFilter(is_news)
    return Connection


def _without_headers(pika: Any, channel: int, data: bytes) -> Any:
    """A header frame, from its data less the table of headers, which comes third of the properties."""
    _, _, body_size, flags = struct.unpack_from(">HHQH", data)
    if not flags & _HEADERS:
        raise ValueError("the header frame is malformed elsewhere")
    position = _FIXED + 2
    for flag in (_CONTENT_TYPE, _CONTENT_ENCODING):
        if flags & flag:
            position += 1 + data[position]
    (length,) = struct.unpack_from(">L", data, position)
    properties = pika.BasicProperties()
    properties.decode(
        struct.pack(">H", flags & ~_HEADERS) + data[_FIXED + 2 : position] + data[position + 4 + length :]
    )
    properties.headers = UNREADABLE
    return pika.frame.Header(channel, body_size, properties)
