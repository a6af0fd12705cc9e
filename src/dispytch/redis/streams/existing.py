"""A consumer of streams that are there already."""

from __future__ import annotations

from typing import ClassVar

from dispytch.redis.streams.consumer import RedisStreamConsumer

__all__ = ["ExistingStreamConsumer"]


class ExistingStreamConsumer(RedisStreamConsumer):
    """Makes its group where a stream has none, and is an error where there is no stream, which it does not make.

    For names that somebody has typed. Arguments and errors: see `RedisStreamConsumer`; with ``declare=False`` the group
    has to be there, too.
    """

    _makes_streams: ClassVar[bool] = False
