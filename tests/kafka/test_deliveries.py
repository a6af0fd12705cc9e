"""What becomes of a message of the client."""

from __future__ import annotations

import copy
import pickle
import time
from typing import Any

import pytest

from dispytch.abc import Delivery
from dispytch.kafka.deliveries import delivery_of
from dispytch.kafka.partitions import Partition


class Message:
    """As much of the client's message as is looked at."""

    def __init__(self, timestamp: tuple[int, int], headers: Any) -> None:
        self._timestamp = timestamp
        self._headers = headers
        self.looks = 0

    def headers(self) -> Any:
        return self._headers

    def value(self) -> bytes:
        return b"{}"

    def key(self) -> bytes:
        return b"k"

    def timestamp(self) -> tuple[int, int]:
        self.looks += 1
        return self._timestamp


def made(timestamp: tuple[int, int] = (1, 1234), headers: Any = None) -> tuple[Message, Delivery]:
    message = Message(timestamp, headers)
    return message, delivery_of(message, Partition("orders", 3, is_taken=True), 42)


def test_it_has_all_that_a_delivery_has() -> None:
    plain = Delivery("orders", b"{}", (), 1234, b"k", "3:42", 3)
    message, delivery = made()
    assert {name: getattr(delivery, name) for name in Delivery.__slots__ if name != "token"} == {
        name: getattr(plain, name) for name in Delivery.__slots__ if name != "token"
    }
    assert repr(delivery) == repr(plain)
    assert (delivery.timestamp_ms, message.looks) == (1234, 1)


@pytest.mark.parametrize("is_read", [False, True])
def test_copies_are_for_reading(is_read: bool) -> None:
    _, delivery = made(headers=[("name", b"value"), ("none", None)])
    if is_read:
        assert (delivery.position, delivery.timestamp_ms) == ("3:42", 1234)
    for one in (pickle.loads(pickle.dumps(delivery)), copy.copy(delivery), copy.deepcopy(delivery)):
        assert (one.source, one.payload, one.key, one.partition) == ("orders", b"{}", b"k", 3)
        assert (one.position, one.timestamp_ms, one.token) == ("3:42", 1234, None)
        assert list(one.headers) == [("name", b"value"), ("none", b"")]


def test_a_message_without_a_time_came_just_now() -> None:
    before = int(time.time() * 1000)
    _, delivery = made(timestamp=(0, 0))
    found = delivery.timestamp_ms
    assert before <= found <= time.time() * 1000
    assert delivery.timestamp_ms == found
