"""What is remembered of the fields of entries is bounded, whatever foreign programs write."""

from __future__ import annotations

from dispytch.redis.streams import entries


def test_entries_whose_field_names_are_data_are_not_remembered() -> None:
    known = len(entries._shapes)
    for number in range(10):
        fields = [part for name in range(100) for part in (b"user-%d-%d" % (number, name), b"1")]
        delivery = entries.delivery_of("stream", b"1-0", fields, None)
        assert delivery.headers[99] == (f"user-{number}-99", b"1")
    assert len(entries._shapes) == known
