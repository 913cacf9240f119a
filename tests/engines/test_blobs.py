"""Large payloads: what the engines know of them (H18). What is referred to stays, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engines.kits import KITS, EngineKit
from tests.engines.test_conformance import FIRST, finish, grant, granted, head, row, write

from respool.blobs import Blobs, Store
from respool.delivery.admin import redrive
from respool.delivery.death import Cause, Suspect, bury_lease
from respool.delivery.model import NewCall, Outcome, Parked, Settlement, Verdict
from respool.engines.base import Engine, Group, Reads, Stream
from respool.engines.blobs import BlobKey, ReferenceKey
from respool.errors import BlobLost, BlobsUnavailable, RecordTooLarge
from respool.record import Meta, first_pos, id_text
from respool.reference import is_reference, unpack
from respool.replay.payloads import lost_payloads
from respool.worker.sweeping import Progress, remove_left_over, sweep

BODY = b"payload" * 20_000
LATER = time.time() + 100_000  # everything is older than that
META = Meta(offloaded=len(BODY)).packed()


@pytest.fixture(params=KITS)
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineKit]:
    folder = tmp_path / "log"
    folder.mkdir()
    made = KITS[request.param](request, folder, "full")
    yield made
    made.remove()


held_by_the_record_alone = pytest.mark.parametrize(
    "kit", [name for name in KITS if name != "kafka"], indirect=True
)
"""Where log and state are apart a record's way in refers to its payload, too, until that is forgotten: see
test_kafka.py."""


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        return Store("memory:///", 5.0)
    return Store((tmp_path / "blobs").as_uri(), 5.0, own=True)


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return Store((tmp_path / "blobs").as_uri(), 5.0, own=True)


@pytest.fixture
def blobs(engine: Engine, store: Store) -> Blobs:
    return Blobs(engine, store, 1 << 20)


def swept(engine: Engine, store: Store, before: float = LATER) -> int:
    return sweep(engine, store, Progress(), before)


def large(log: int, reference: bytes, **more: Any) -> NewCall:
    return row(log, reference, meta=META, **more)


def holders(engine: Engine, reference: bytes) -> list[tuple[int, int]]:
    """Return (position, group) of who refers to a blob; group 0: a record.

    Where log and state are apart, a record is told by no more than that there is one.
    """
    found = [(key.pos, key.group) for key in engine.referred(unpack(reference).digest)]
    if engine.capabilities.one_transaction:
        return found
    known = {group.id for group in engine.groups()}
    outcomes = [each for each in found if each[1] in known]
    return outcomes + [(0, 0)] * (len(outcomes) < len(found))


def records(engine: Engine, *positions: int) -> list[tuple[int, int]]:
    """Return what `holders` says of records at these positions."""
    return [(pos, 0) for pos in positions] if engine.capabilities.one_transaction else [(0, 0)]


def test_what_is_stored_is_what_is_found(blobs: Blobs, log: int) -> None:
    reference = blobs.offload(BODY)
    assert is_reference(reference)
    assert len(reference) < 100
    assert blobs.load(reference) == BODY


def test_equal_payloads_are_stored_once(blobs: Blobs, engine: Engine, log: int) -> None:
    assert blobs.offload(BODY) == blobs.offload(BODY)
    assert blobs.offload(BODY) != blobs.offload(BODY + b"!")


def test_too_large_a_payload_is_refused_before_anything_is_stored(blobs: Blobs, engine: Engine) -> None:
    with pytest.raises(RecordTooLarge, match="max_blob_size allows 1,048,576"):
        blobs.offload(b"x" * (1 << 20) + b"y")
    assert not engine.has_blobs()


def test_a_record_refers_to_its_payload(blobs: Blobs, engine: Engine, log: int) -> None:
    reference = blobs.offload(BODY)
    first = engine.append_row(large(log, reference))
    assert first == first_pos(log)
    assert engine.append_rows([row(log), large(log, reference), row(log)]) == []
    assert holders(engine, reference) == records(engine, first, first + 2)
    assert [r.body for r in engine.records(first, first + 9, 9)] == [reference, b"b", reference, b"b"]
    assert engine.records(first, first + 1, 1)[0].meta.offloaded == len(BODY)


def test_the_same_record_again_is_no_other(blobs: Blobs, engine: Engine, log: int) -> None:
    reference = blobs.offload(BODY)
    sent = large(log, reference, id="shop\0order-1")
    assert engine.append_row(sent) == engine.append_row(sent) == first_pos(log)
    assert engine.append_rows([sent]) == []
    other = large(log, blobs.offload(BODY + b"!"), id="shop\0order-1")
    assert not isinstance(engine.append_row(other), int)
    assert holders(engine, other.body) == []  # what was not written refers to nothing


def test_a_lost_fence_writes_neither_record_nor_reference(blobs: Blobs, engine: Engine, log: int) -> None:
    from respool.engines.base import LeaseLost

    reference = blobs.offload(BODY)
    with pytest.raises(LeaseLost):
        engine.append_rows([large(log, reference)], (99, 1))
    assert holders(engine, reference) == []
    assert engine.records(first_pos(log), first_pos(log + 1), 9) == []


def test_calls_of_a_run_refer_with_its_settlement(
    blobs: Blobs, engine: Engine, log: int, main: Group
) -> None:
    engine.append_row(row(log))
    lease = grant(engine, main, 1)
    assert lease is not None
    reference = blobs.offload(BODY)
    (pos,) = granted(lease)
    finish(engine, main, lease, Verdict(pos, "success", calls=[large(log, reference), row(log)]))
    assert holders(engine, reference) == records(engine, pos + 1)
    assert swept(engine, blobs._store) == 0
    assert blobs.load(reference) == BODY


def test_an_outcome_refers_to_its_value(blobs: Blobs, engine: Engine, log: int, main: Group) -> None:
    engine.append_run(log, "add", [b"1", b"2"], None, FIRST, 1.0)
    lease = grant(engine, main, 2)
    assert lease is not None
    reference = blobs.offload(BODY)
    verdicts = [Verdict(pos, "success", reference, offloaded=True) for pos in granted(lease)]
    finish(engine, main, lease, *verdicts)
    assert holders(engine, reference) == [(pos, main.id) for pos in granted(lease)]
    assert swept(engine, blobs._store) == 0
    engine.drop_group(main)
    assert swept(engine, blobs._store) == 1
    assert not engine.has_blobs()


def test_what_a_dead_process_had_finished_refers_as_well(
    blobs: Blobs, engine: Engine, log: int, main: Group
) -> None:
    """Its supervisor settles that from shared memory, with what becomes of the rest (P6, H2)."""
    engine.append_run(log, "add", [b"1", b"2"], None, FIRST, 1.0)
    lease = grant(engine, main, 2)
    assert lease is not None
    first, second = granted(lease)
    reference = blobs.offload(BODY)
    verdicts = [Verdict(first, "success", reference, offloaded=True)]
    done = Settlement(lease.id, 1, [(first, second)], verdicts, records=1)
    suspect = Suspect(second, "add", 3, "killed", b"e", 1.0)
    assert engine.transact(
        Reads(main.id, (lease.id,)),
        lambda view, change: bury_lease(view, change, lease.id, 1, Cause.CHILD, done, [suspect], 2.0),
    )
    assert holders(engine, reference) == [(first, main.id)]
    assert swept(engine, blobs._store) == 0


@held_by_the_record_alone
def test_edited_arguments_are_kept_for_as_long_as_their_record(
    blobs: Blobs, engine: Engine, queue: Stream, main: Group
) -> None:
    log = queue.logs[0]
    engine.append_row(large(log, blobs.offload(BODY), time=1000.0))
    lease = grant(engine, main, 1)
    assert lease is not None
    (pos,) = granted(lease)
    finish(engine, main, lease, Verdict(pos, "failure", b"e", reason="dead", task="add", error=b"e"))
    edited = blobs.offload(BODY + b"edited")
    engine.transact(
        Reads(main.id, parked=(pos,)),
        lambda view, change: redrive(view, view.due, change, 2000.0, edits={pos: (edited, "edited")}),
    )
    while engine.trim(queue, LATER, 100):
        pass
    assert swept(engine, blobs._store) == 0
    again = grant(engine, main, 1, now=3000.0)
    assert again is not None
    assert again.bodies == {pos: edited}
    assert swept(engine, blobs._store) == 0
    assert blobs.load(edited) == BODY + b"edited"
    finish(engine, main, again)
    while engine.trim(queue, LATER, 100):
        pass
    assert swept(engine, blobs._store) == 2


def test_a_value_past_its_time_lets_go(blobs: Blobs, engine: Engine, log: int, main: Group) -> None:
    engine.append_row(row(log))
    lease = grant(engine, main, 1)
    assert lease is not None
    (pos,) = granted(lease)
    reference = blobs.offload(BODY)
    finish(engine, main, lease, Verdict(pos, "success", reference, offloaded=True, ttl=10.0))
    assert swept(engine, blobs._store) == 0
    assert engine.expire_outcomes(LATER * 2, 10) == 1
    assert swept(engine, blobs._store) == 1


def test_another_outcome_in_its_place_lets_go(blobs: Blobs, engine: Engine, log: int, main: Group) -> None:
    first, pos = blobs.offload(BODY), first_pos(log)
    engine.append_row(row(log))
    write(engine, main, outcomes=[Outcome(pos, "success", first, 1.0)], references=[(pos, first)])
    second = blobs.offload(BODY + b"!")
    write(engine, main, outcomes=[Outcome(pos, "success", second, 1.0)], references=[(pos, second)])
    assert swept(engine, blobs._store) == 1
    assert blobs.load(second) == BODY + b"!"
    with pytest.raises(BlobLost, match="is gone"):
        blobs.load(first)


@held_by_the_record_alone
def test_what_was_trimmed_lets_go_and_what_is_parked_does_not(
    blobs: Blobs, engine: Engine, queue: Stream, main: Group
) -> None:
    log = queue.logs[0]
    references = [blobs.offload(BODY + b"%d" % n) for n in range(3)]
    for reference in references:
        engine.append_row(large(log, reference, time=1000.0))
    lease = grant(engine, main, 3)
    assert lease is not None
    first, second, third = granted(lease)
    dead = Verdict(second, "failure", b"e", reason="dead", task="add", error=b"e", note="failed")
    finish(engine, main, lease, dead)
    assert swept(engine, blobs._store) == 0  # done, and on record
    while engine.trim(queue, LATER, 100):
        pass
    assert swept(engine, blobs._store) == 2
    assert blobs.load(references[1]) == BODY + b"1"
    for pos, reference in ((first, references[0]), (third, references[2])):
        assert holders(engine, reference) == [], pos
        with pytest.raises(BlobLost):
            blobs.load(reference)
    # What was parked is leased next: in neither moment is it gone.
    write(engine, main, parked=[Parked(second, "scheduled", 1.0, "add")])
    again = grant(engine, main, 1, now=time.time())
    assert again is not None
    assert granted(again) == [second]
    assert swept(engine, blobs._store) == 0
    finish(engine, main, again)
    while engine.trim(queue, LATER, 100):
        pass
    assert swept(engine, blobs._store) == 1


def test_an_upload_whose_append_failed_is_swept_later(blobs: Blobs, engine: Engine) -> None:
    """Whether or not it had come so far as to store anything."""
    reference = blobs.offload(BODY)
    engine.touch_blob(b"\1" * 32, 5, time.time())
    assert swept(engine, blobs._store, before=time.time() - 60) == 0  # it may yet be on its way
    assert swept(engine, blobs._store) == 2
    with pytest.raises(BlobLost):
        blobs.load(reference)


def test_sent_again_it_is_left_alone_for_as_long_again(blobs: Blobs, engine: Engine) -> None:
    reference = unpack(blobs.offload(BODY))
    moment = time.time() + 50
    assert engine.touch_blob(reference.digest, reference.size, moment) == reference.stamp
    assert swept(engine, blobs._store, before=moment - 1) == 0
    assert swept(engine, blobs._store, before=moment + 1) == 1


def test_what_is_being_removed_takes_no_reference(blobs: Blobs, engine: Engine, log: int) -> None:
    """A sweep that was killed, or is slow, between dooming and removing: who sends it then stores it anew."""
    reference = blobs.offload(BODY)
    assert engine.doom_blobs(None, LATER, 10)[0] == 1
    with pytest.raises(BlobsUnavailable, match="removed from the blob store before its record"):
        engine.append_row(large(log, reference))
    with pytest.raises(BlobsUnavailable):
        engine.append_rows([row(log), large(log, reference)])
    assert engine.records(first_pos(log), first_pos(log + 1), 9) == []
    anew = blobs.offload(BODY)
    assert unpack(anew).stamp != unpack(reference).stamp
    engine.append_row(large(log, anew))
    assert swept(engine, blobs._store) == 1  # the late removal hits the old one
    assert blobs.load(anew) == BODY
    assert engine.doomed_blobs(10) == []


def test_a_settlement_is_not_held_up_by_a_payload_that_was_removed(
    blobs: Blobs, engine: Engine, log: int, main: Group
) -> None:
    engine.append_row(row(log))
    lease = grant(engine, main, 1)
    assert lease is not None
    (pos,) = granted(lease)
    reference = blobs.offload(BODY)
    swept(engine, blobs._store)
    verdict = Verdict(pos, "success", reference, offloaded=True, calls=[large(log, reference)])
    assert finish(engine, main, lease, verdict)
    assert engine.status(main, pos).place == "done"
    assert engine.records(pos + 1, pos + 2, 1)[0].body == reference  # its run will say that it is lost
    assert holders(engine, reference) == []


@held_by_the_record_alone
def test_a_sweep_goes_on_where_the_last_one_ended(engine: Engine, folder: Store, log: int) -> None:
    blobs = Blobs(engine, folder, 1 << 20)
    kept = [blobs.offload(BODY + b"%d" % n) for n in range(5)]
    for reference in kept:
        engine.append_row(large(log, reference))
    lone = [blobs.offload(BODY + b"%d" % n) for n in range(5, 10)]
    after, doomed, rounds = None, 0, 0
    while True:
        some, after = engine.doom_blobs(after, LATER, 2)
        doomed, rounds = doomed + some, rounds + 1
        if after is None:
            break
    assert (doomed, rounds) == (5, 6)
    key: ReferenceKey | None = None
    seen = 0
    while True:
        dropped, key = engine.drop_references(key, LATER, 2)
        assert dropped == 0
        seen += 1
        if key is None:
            break
    assert seen == 3
    assert {key.digest for key in engine.doomed_blobs(10)} == {unpack(r).digest for r in lone}


def test_a_lost_or_damaged_payload_is_told(engine: Engine, folder: Store, tmp_path: Path) -> None:
    blobs = Blobs(engine, folder, 1 << 20)
    for name, damage in {
        "gone": lambda path: path.unlink(),
        "not what was stored": lambda path: path.write_bytes(b"x" * len(BODY)),
        "3 bytes, not 140,000": lambda path: path.write_bytes(b"xyz"),
    }.items():
        reference = blobs.offload(BODY)
        damage(tmp_path / "blobs" / unpack(reference).name)
        with pytest.raises(BlobLost, match=name):
            blobs.load(reference)
        (tmp_path / "blobs" / unpack(reference).name).unlink(missing_ok=True)
    assert blobs.load(blobs.offload(BODY)) == BODY  # sent again, it is there again


def test_check_tells_what_is_gone(
    engine: Engine, folder: Store, tmp_path: Path, log: int, main: Group
) -> None:
    """Of a record, and of an outcome; not what is on its way, nor what was trimmed."""
    blobs = Blobs(engine, folder, 1 << 20)
    kept, lost, result, lone = (blobs.offload(BODY + b"%d" % n) for n in range(4))
    first, second = (head(), head())
    engine.append_row(large(log, kept, id=first))
    engine.append_row(large(log, lost, id=second))
    pos = first_pos(log)
    ended = [Outcome(pos, "success", result, 1.0, None)]
    write(engine, main, outcomes=ended, references=[(pos, result)])
    assert lost_payloads(engine, folder) == (0, [])
    for each in (lost, lone):
        (tmp_path / "blobs" / unpack(each).name).unlink()
    (tmp_path / "blobs" / unpack(result).name).write_bytes(b"cut")
    count, ids = lost_payloads(engine, folder)
    assert (count, sorted(ids)) == (2, sorted(map(id_text, (first, second))))


def test_what_nobody_knows_is_removed_from_a_folder_of_ours(
    engine: Engine, folder: Store, tmp_path: Path, log: int
) -> None:
    """Of an interrupted upload part of a file is left; of a transaction rolled back, one without an entry."""
    blobs = Blobs(engine, folder, 1 << 20)
    kept, lone = blobs.offload(BODY), blobs.offload(BODY + b"!")
    engine.append_row(large(log, kept))
    key = BlobKey(unpack(lone).digest, unpack(lone).stamp)
    engine.doom_blobs(None, LATER, 10)
    engine.forget_blobs([key])
    assert engine.unknown_blobs([key, BlobKey(unpack(kept).digest, unpack(kept).stamp)]) == [key]
    part = tmp_path / "blobs" / f"{unpack(kept).name}#1"
    part.write_bytes(b"half")
    assert remove_left_over(engine, folder, time.time() - 60) == 0  # it may yet be on its way
    assert remove_left_over(engine, folder, LATER) == 2
    assert not part.exists()
    assert blobs.load(kept) == BODY
    with pytest.raises(BlobLost):
        blobs.load(lone)


def test_heads_of_runs_are_found_behind_a_reference(blobs: Blobs, engine: Engine, log: int) -> None:
    """It is a run of one, as any record sent alone."""
    sent = large(log, blobs.offload(BODY), id=head())
    engine.append_row(sent)
    assert engine.find("shop", sent.id) == first_pos(log)
    assert engine.run_spans(sent.id, 1) == [(first_pos(log), first_pos(log) + 1)]
