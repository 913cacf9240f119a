"""What an ordered group's claims know of Kafka's log: it is bounded, and never another log's (P8, P10)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from respool.delivery.model import Position, View
from respool.engines.kafka import ahead as module
from respool.engines.kafka import header as h
from respool.engines.kafka.ahead import OVERHEAD, UNREAD, Ahead, KeysMissing
from respool.keys import key_hash
from respool.record import first_pos, new_head

NOW = 1_700_000_000.0


class Message:
    """What a consumer gives."""

    def __init__(self, offset: int, body: bytes = b"b", key: str | None = None) -> None:
        self._offset, self._body = offset, body
        self._key = f"k{offset % 3}" if key is None else key
        self._header = h.pack(new_head(NOW), int(NOW) * h.MICRO, "add", None)

    def offset(self) -> int:
        return self._offset

    def value(self) -> bytes:
        return self._body

    def key(self) -> bytes | None:
        return self._key.encode() or None

    def headers(self) -> list[tuple[str, bytes]]:
        return [(h.NAME, self._header)]


def at(log: int, cursor: int, end: int) -> Position:
    return Position(log, first_pos(log) + cursor, first_pos(log) + end)


def read(ahead: Ahead, group: int, log: int, offsets: Sequence[int], hi: int, **more: Any) -> None:
    """Have it read a range that holds these, from the first of them on."""
    lo = first_pos(log) + offsets[0]
    messages = [Message(offset, **more) for offset in offsets]
    ahead.keep(group, [((lo, first_pos(log) + hi), lo, messages)])


def keys(ahead: Ahead, group: int, position: Position, limit: int) -> list[int | None]:
    """Return the keys of what a claim sees; raises KeysMissing."""
    view = View()
    view.positions = [position]
    return [key for _, key in ahead.rows(group, view, [position], limit)[position.log]]


def bodies(ahead: Ahead, log: int, lo: int, hi: int) -> list[Any]:
    there = ahead.between(first_pos(log) + lo, first_pos(log) + hi)
    return [each[0][2] if each else each for each in there]


def test_keys_and_records_are_at_hand_from_the_cursor_on() -> None:
    ahead = Ahead()
    read(ahead, 1, 5, range(10), 10)
    assert keys(ahead, 1, at(5, 0, 10), 3) == [key_hash("k0"), key_hash("k1"), key_hash("k2")]
    assert bodies(ahead, 5, 0, 3) == [b"b"] * 3
    assert keys(ahead, 1, at(5, 4, 10), 2) == [key_hash("k1"), key_hash("k2")], "others have claimed some"
    assert bodies(ahead, 5, 3, 5) == [UNREAD, UNREAD], "what lies below is theirs"
    assert bodies(ahead, 5, 9, 12) == [b"b", UNREAD, UNREAD]
    with pytest.raises(KeysMissing) as missing:
        keys(ahead, 1, at(5, 4, 20), 9)
    assert missing.value.ranges == [(first_pos(5) + 10, first_pos(5) + 20)], "what is there is not read again"
    with pytest.raises(KeysMissing):
        keys(ahead, 2, at(5, 4, 10), 2)  # another group is elsewhere
    with pytest.raises(KeysMissing):
        keys(ahead, 1, at(5, 2, 10), 2)  # a seek has moved it back


def test_where_no_record_is_there_is_no_key() -> None:
    """A log that was compacted, or holds marks of transactions; and what was trimmed before it was read."""
    ahead = Ahead()
    read(ahead, 1, 5, [0, 2, 3], 5)
    assert keys(ahead, 1, at(5, 0, 5), 9) == [key_hash("k0"), None, key_hash("k2"), key_hash("k0"), None]
    assert bodies(ahead, 5, 0, 5) == [b"b", None, b"b", b"b", None]
    base = first_pos(6)
    ahead.keep(1, [((base, base + 3), base + 2, [Message(2)])])
    assert keys(ahead, 1, at(6, 0, 3), 9) == [None, None, key_hash("k2")]
    assert bodies(ahead, 6, 0, 3) == [UNREAD, UNREAD, b"b"], "who claims what was trimmed says so"


def test_a_log_that_may_have_others_is_read_anew() -> None:
    ahead = Ahead()
    read(ahead, 1, 5, range(3), 3)
    read(ahead, 2, 5, range(3), 3)
    read(ahead, 1, 6, range(3), 3)
    ahead.forget(5)
    for group in (1, 2):
        with pytest.raises(KeysMissing):
            keys(ahead, group, at(5, 0, 3), 1)
    assert len(keys(ahead, 1, at(6, 0, 3), 3)) == 3
    assert ahead.size == (3 * (OVERHEAD + 1 + len(Message(0)._header)), 3)


@pytest.mark.parametrize("size", [10, 3000, 40_000])
def test_records_fill_no_more_memory_than_they_may(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """What was not asked for for the longest time goes first; keys stay where a decision needs them."""
    monkeypatch.setattr(module, "BYTES", 100_000)
    ahead = Ahead()
    ahead.begin()
    for log in range(1, 9):
        read(ahead, 1, log, range(60), 60, body=b"x" * size)
        assert ahead.size[0] <= 100_000
        for each in range(1, log + 1):
            assert len(keys(ahead, 1, at(each, 0, 60), 60)) == 60, "of one decision all keys stay"
    assert bodies(ahead, 8, 0, 1) == [b"x" * size], "what was read last is at hand, as far as it may"
    assert bodies(ahead, 1, 0, 60) == [UNREAD] * 60
    ahead.begin()
    read(ahead, 1, 9, range(60), 60, body=b"x" * size)
    with pytest.raises(KeysMissing):
        keys(ahead, 1, at(2, 0, 60), 60)  # in the next one keys alone are worth nothing
    for log in range(1, 10):
        ahead.forget(log)
    assert ahead.size == (0, 0)


def test_keys_fill_no_more_memory_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEYS", 100)
    ahead = Ahead()
    for log in range(1, 6):
        read(ahead, 1, log, range(60), 60)
    assert ahead.size[1] == 300, "a decision may need all of them"
    ahead.begin()
    assert ahead.size[1] == 60
    assert len(keys(ahead, 1, at(5, 0, 60), 60)) == 60


def test_large_records_are_read_few_at_a_time() -> None:
    """By the size of those read last: ranges beyond what is asked for, and pages."""
    ahead, far = Ahead(), 1_000_000

    def asks(limit: int) -> int:
        with pytest.raises(KeysMissing) as missing:
            keys(ahead, 1, at(7, 0, far), limit)
        ((lo, hi),) = missing.value.ranges
        return hi - lo

    read(ahead, 1, 5, range(100), 100)
    assert asks(2000) == 2000 * (1 + module.SPARE)
    assert asks(1) == 1 + module.FEW
    assert ahead.page >= 10_000
    read(ahead, 1, 6, range(20), 20, body=b"x" * (1 << 20))
    assert asks(16) <= 16 + 4
    assert ahead.page <= 16


def test_no_crumbs_are_left_of_a_log() -> None:
    ahead = Ahead()
    read(ahead, 1, 5, range(100), 100)
    with pytest.raises(KeysMissing) as missing:
        keys(ahead, 1, at(7, 0, 6250), 2000)
    assert missing.value.ranges == [(first_pos(7), first_pos(7) + 6250)]
