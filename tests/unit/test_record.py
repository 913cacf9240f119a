"""Ids and attributes of records: what is stored is what is read, by later versions, too."""

from __future__ import annotations

import time
import uuid

from hypothesis import given
from hypothesis import strategies as st

from respool.record import (
    MAX_OFFSET,
    Meta,
    derived_id,
    first_pos,
    id_of,
    id_text,
    is_fresh,
    log_of,
    new_head,
    offset_of,
    parse_id,
    unpack_meta,
)

texts = st.none() | st.text(max_size=20)
times = st.none() | st.floats(0, 4e9)
ids = st.none() | st.binary(min_size=16, max_size=16) | st.text(min_size=1, max_size=20)
metas = st.builds(
    Meta,
    key=texts,
    headers=st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), min_size=1, max_size=3),
    due=times,
    expires=times,
    priority=st.none() | st.integers(0, 9),
    content_type=texts,
    version=st.integers(1, 99),
    parent=ids,
    root=ids,
    parent_group=texts,
    generation=st.integers(0, 1 << 40),
    offloaded=st.none() | st.integers(0, 1 << 40),
    latest=texts,
)


@given(metas)
def test_attributes_are_read_as_they_were_stored(meta: Meta) -> None:
    packed = meta.packed()
    assert meta == (Meta() if packed is None else unpack_meta(packed))


def test_a_record_without_attributes_stores_none() -> None:
    assert Meta().packed() is None


def test_the_form_of_attributes_stays() -> None:
    """What an earlier Respool has stored can be read, and what a later one adds is passed over."""
    packed = Meta(key="u", due=1262304000.0, priority=9, parent=b"\0" * 16, generation=2).packed()
    assert packed is not None
    assert packed.hex() == (
        "85a36b6579a175a3647565cb41d2cf4ec0000000a87072696f7269747909"
        "a6706172656e74c41000000000000000000000000000000000aa67656e65726174696f6e02"
    )
    assert unpack_meta(b"\x82\xa3key\xa1u\xabof_tomorrow\xc3") == Meta(key="u")


@given(st.integers(0, (1 << 23) - 1), st.integers(0, MAX_OFFSET))
def test_a_position_holds_its_log_and_offset(log: int, offset: int) -> None:
    pos = first_pos(log) | offset
    assert (log_of(pos), offset_of(pos)) == (log, offset)


def test_ids_are_uuids_that_rise_with_time() -> None:
    now = time.time()
    heads = [new_head(now + n) for n in range(100)]
    assert heads == sorted(heads)
    assert len({*(new_head(now) for _ in range(10_000))}) == 10_000
    for head in heads:
        assert uuid.UUID(bytes=head).version == 7
        assert uuid.UUID(bytes=head).variant == uuid.RFC_4122
        assert str(uuid.UUID(bytes=head)) == id_text(head)
        assert is_fresh(head, now + heads.index(head))
        last = id_of(head, (1 << 24) - 1)
        assert isinstance(last, bytes)
        assert last[:13] == head[:13]
        assert not is_fresh(last, now)


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_derived_ids_tell_their_parts_apart(one: bytes, other: bytes) -> None:
    id = derived_id(1e9, one, other)
    assert id == derived_id(1e9, one, other)
    assert uuid.UUID(bytes=id).version == 7
    if one or other:
        assert id != derived_id(1e9, one + other, b"x"), "parts have their lengths"
        assert id != derived_id(1e9 + 1, one, other)


@given(st.binary(min_size=16, max_size=16))
def test_ids_of_ours_are_read_as_they_are_shown(raw: bytes) -> None:
    id = raw[:6] + bytes([0x70 | raw[6] & 0x0F]) + raw[7:]
    assert parse_id(id_text(id)) == id


@given(st.text(min_size=1, max_size=50).filter(str.isprintable))
def test_ids_that_users_give_stay_text(text: str) -> None:
    parsed = parse_id(text)
    assert id_text(parsed) == text
