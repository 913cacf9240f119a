"""References in place of payloads, and how bodies are grouped where some are large."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from respool.encoding.codec import codec_for
from respool.errors import CorruptBody
from respool.producer import CHUNK_BYTES, CHUNK_RECORDS, chunks
from respool.reference import LENGTH, Reference, is_reference, payload_of, same_payload, unpack

DIGESTS = st.binary(min_size=32, max_size=32)
references = st.builds(Reference, DIGESTS, st.integers(0, 1 << 62), st.integers(0, 1 << 62))


@given(references)
def test_packed_and_unpacked(reference: Reference) -> None:
    packed = reference.packed()
    assert len(packed) == LENGTH
    assert is_reference(packed)
    assert unpack(packed) == reference
    assert payload_of(reference.name) == (reference.digest, reference.stamp)


@given(references)
def test_no_codec_takes_one_for_a_body(reference: Reference) -> None:
    for codec in ("msgpack", "json"):
        with pytest.raises(CorruptBody):
            codec_for(codec).decode(reference.packed())


@given(st.recursive(st.none() | st.text() | st.binary() | st.integers(-(2**63), 2**63 - 1), st.lists))
def test_no_body_is_taken_for_one(value: object) -> None:
    assert not is_reference(msgspec.msgpack.encode(value))


@given(references, st.integers(0, 1 << 62))
def test_the_same_payload_stored_anew_is_the_same_call(reference: Reference, stamp: int) -> None:
    again = reference._replace(stamp=stamp)
    assert same_payload(reference.packed()) == same_payload(again.packed())
    assert same_payload(b"body") == b"body"


@pytest.mark.parametrize("name", ["", "x", "ab/cd-1", "ab/" + "0" * 64, "ab/" + "0" * 64 + "-1#2"])
def test_what_is_no_blobs_name(name: str) -> None:
    assert payload_of(name) is None


SIZES = st.lists(st.sampled_from([1, 10, 1000, 70_000, 400_000, 2_000_000]), max_size=40)


@given(SIZES, st.sampled_from([65536, 1_000_000, 1 << 62]))
def test_chunks(sizes: list[int], over: int) -> None:
    bodies = [bytes(size) for size in sizes]
    found = list(chunks(iter(bodies), over))
    assert list(itertools.chain(*found)) == bodies
    assert all(found)
    for chunk in found:
        assert len(chunk) == 1 or (sum(map(len, chunk)) <= CHUNK_BYTES and max(map(len, chunk)) <= over)
    for before, after in itertools.pairwise(found):  # none ends without need
        large = len(before[-1]) > over or len(after[0]) > over
        assert large or sum(map(len, before)) + len(after[0]) > CHUNK_BYTES


def test_many_small_ones_are_full_chunks() -> None:
    sizes = [len(chunk) for chunk in chunks(iter([b"x"] * 12_000), 65536)]
    assert sizes == [CHUNK_RECORDS, CHUNK_RECORDS, 2000]


def test_few_large_ones_are_held_at_a_time() -> None:
    taken = 0

    def each() -> object:
        nonlocal taken
        for _ in range(50):
            taken += 1
            yield bytes(2_000_000)

    ahead = []
    for n, _ in enumerate(chunks(each(), 65536)):  # type: ignore[arg-type]
        ahead.append(taken - n)
    assert max(ahead) <= 16
    assert max(ahead[20:]) <= 2
