"""Calls on their way to Kafka, and the ids that are known (K4).

What has an id that can come again (one given by a user, or derived from a run) is first a record of a
stream in the state: the *outbox*. There an id is known, a conflict is seen, a lease is a fence, and a
settlement takes its calls along. A group of that stream, the *relay*, moves them to Kafka; what it
returned for each is where the record is now. So what is relayed twice, lost, or held up by a crash is what
any lease is: given back and taken up by whoever comes next, who looks first whether it had arrived. Both
are forgotten after `id_window`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from random import Random
from typing import NamedTuple

import msgspec

from ...clock import now as wall_clock
from ...delivery.claim import Request, claim
from ...delivery.model import MAX_LEASE, Change, Lease, NewCall, Outcome, Settlement, View
from ...delivery.order import Claimant
from ...delivery.settle import settle
from ...delivery.spans import Finder
from ...errors import AppendUnknown, ConfigError, EngineError, EngineUnavailable, RecordTooLarge, RespoolError
from ...record import Id, first_pos, log_of
from ...reference import is_reference
from .. import stored_id
from ..base import Conflict, Engine, Group, Reads, Stream, UniqueLock
from . import header as h
from .cluster import TopicGone
from .message import item
from .moved import Moved, outbox_id
from .places import HIDDEN, KafkaPlaces
from .sender import Sender

log_ = logging.getLogger("respool.engine")
NAME = "outbox"
NAME_IN_ORDER = "outbox in order"
_random_bits = Random().getrandbits  # seeded by the system, whatever the code of users seeds
RELAY = -1  # who owns what is being relayed: no worker has that number
AT_ONCE = 1000
EARLY = 2.0  # seconds before its time that a record may have been stored: clocks differ
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(int).decode
LookFor = Callable[[int, set[Id], float], dict[Id, int]]
"""Where records with these ids are in a log, of those stored since a time."""
_KEPT = "the record is kept in the state, and could not be sent yet; a worker sends it"
NOWHERE = -1  # the place of what is lost
LOST = "calls lost: their topic is gone"


class _Packed(msgspec.Struct, array_like=True, omit_defaults=True):
    """What the outbox keeps of a record besides task and body."""

    log: int  # where it goes
    header: bytes
    lock: str | None = None  # the key that it has taken


_unpack_row = msgspec.msgpack.Decoder(_Packed).decode


def id_from_outbox(id: Id) -> Id:
    """Return an id from how it is stored in the outbox, namespace and all."""
    assert isinstance(id, str)
    kept = id.partition("\0")[2]
    return bytes.fromhex(kept[1:]) if kept[0] == "b" else kept[1:]


class _Waiting(NamedTuple):
    """A record on its way."""

    pos: int  # in the outbox
    log: int  # where it goes
    header: bytes
    body: bytes
    tried: bool  # it may have arrived already
    lock: str | None

    @property
    def time(self) -> float:
        """When it was made."""
        return h.micros_of(self.header) / h.MICRO

    def row(self) -> NewCall:
        """Return it as it was given."""
        task, meta = h.row_of(self.header)
        return NewCall(self.log, task, self.body, meta, h.id_of(self.header), self.time)


class _Box(NamedTuple):
    """One stream of what is on its way, and the group that relays it."""

    stream: Stream
    log: int
    group: Group
    ordered: bool


class Outbox:
    """One outbox for all that is sent through a state.

    It is two streams: in one of them what has a key keeps the order of its key, whoever relays it and however
    often (P8). Who has no keys pays nothing for that.
    """

    def __init__(
        self,
        inner: Engine,
        places: KafkaPlaces,
        sender: Sender,
        look_for: LookFor,
        moved: Moved,
        note_time: Callable[[int, float], None],
        timeout: float,
    ) -> None:
        self._inner, self._places, self._sender = inner, places, sender
        self._look_for, self._moved_here, self._note_time = look_for, moved, note_time
        self._timeout = timeout
        self.patience = 2 * timeout + 2.0  # seconds after which who relays is taken for dead
        self._lock = threading.Lock()
        streams = [
            inner.create_stream("queue", HIDDEN, name, 1, {"ordered": ordered})
            for name, ordered in ((NAME, False), (NAME_IN_ORDER, True))
        ]
        groups = {group.stream: group for group in inner.groups()}
        self._plain, self._keyed = (
            _Box(stream, stream.logs[0], groups[stream.id], bool(stream.settings.get("ordered")))
            for stream in streams
        )
        self.boxes = self._plain, self._keyed
        self.group = self._plain.group

    # Putting in

    def rewritten(self, rows: Sequence[NewCall], lock: str | None = None) -> list[NewCall]:
        """Return records as the outbox keeps them. Raises EngineError where a log does not exist.

        `lock`: the key that they take.
        """
        for log in {row.log for row in rows}:
            self._places.place(log)
        keyed = {row.log for row in rows if row.key is not None}  # what comes together stays in its order
        return [
            NewCall(
                (self._keyed if row.log in keyed else self._plain).log,
                row.task,
                row.body,
                _pack(_Packed(row.log, h.pack(row.id, int(row.time * h.MICRO), row.task, row.meta), lock)),
                stored_id(HIDDEN, outbox_id(row.id)),
                row.time,
                row.key,
            )
            for row in rows
        ]

    def append(self, rows: Sequence[NewCall], fence: tuple[int, int] | None = None) -> list[Conflict]:
        """Append records by way of the outbox; return those whose id is taken, with where that is.

        Raises: LeaseLost; AppendUnknown where they are kept and could not be sent yet: they will be.
        """
        conflicts: list[Conflict] = []
        places: dict[int, list[int]] = {}
        kept = self.rewritten(rows)
        for n, each in enumerate(kept):
            places.setdefault(each.log, []).append(n)
        for some in places.values():
            found = self._inner.append_rows([kept[n] for n in some], fence)
            conflicts += [each._replace(row=some[each.row]) for each in found]
        sent = self._relay_kept(places)
        for id in {row.id for row in rows} - sent:
            self._await(self._inner.find(HIDDEN, outbox_id(id)))
        return [self._moved(each) for each in conflicts]

    def append_one(self, row: NewCall) -> int | Conflict:
        """Append one record by way of the outbox; return where it is in Kafka."""
        (kept,) = self.rewritten([row])
        done = self._inner.append_row(kept)
        self._relay_kept([kept.log])
        return self._moved(done) if isinstance(done, Conflict) else self._await(done)

    def append_unique(
        self, row: NewCall, key: str, seen: Id | None, until: float | None, fence: tuple[int, int] | None
    ) -> int | None:
        """Append a record that takes a key, both kept in one transaction; return where it is in Kafka.

        None where another has taken the key since. Raises: LeaseLost; AppendUnknown where both are kept, and
        the record could not be sent yet: it will be.
        """
        (kept,) = self.rewritten([row], key)
        before = None if seen is None else stored_id(HIDDEN, outbox_id(seen))
        place = self._inner.append_unique(kept, key, before, until, fence)
        if place is None:
            return None
        self._relay_kept([kept.log])
        return self._await(place)

    def lock_of(self, key: str) -> UniqueLock | None:
        """Return what a key is taken by, or was."""
        lock = self._inner.lock_of(key)
        if lock is None:
            return None
        return lock._replace(id=id_from_outbox(lock.id), placed=self._box_of(lock.pos) is None)

    def _await(self, place: int | None) -> int:
        """Return where a record is in Kafka, once whoever is at it has sent it."""
        deadline = time.monotonic() + self._timeout
        while place is not None:
            with self._inner.waiter(place) as waiter:
                waiter.prepare()
                pos = self._place_of(place)
                if pos == NOWHERE:
                    raise EngineError(
                        "the record was given up: its topic is gone, or takes no record of that size"
                    )
                if pos is not None:
                    return pos
                if time.monotonic() > deadline:
                    break
                waiter.sleep(0.05)
            self._relay_kept([log_of(place)])
        raise AppendUnknown(_KEPT)

    def _moved(self, conflict: Conflict) -> Conflict:
        pos = self._position(conflict.pos)
        return conflict._replace(pos=conflict.pos if pos is None else pos)

    # Finding

    def find(self, id: Id) -> int | None:
        """Return where a record is that came by way of the outbox; it is sent first where it was not."""
        place = self._inner.find(HIDDEN, outbox_id(id))
        if place is None:
            return None
        pos = self._position(place)
        if pos is None:
            self.relay([log_of(place)])
            pos = self._position(place)
        return pos

    def _position(self, place: int) -> int | None:
        pos = self._place_of(place)
        return None if pos == NOWHERE else pos

    def _place_of(self, place: int) -> int | None:
        """Return where in Kafka a record of the outbox is by now; NOWHERE: it was given up."""
        box = self._box_of(place)
        if box is None:  # it came from another engine
            return self._moved_here.place(place)
        for outcome in self._inner.outcomes(box.group.id, place, place + 1):
            if outcome.value is not None:
                return _unpack(outcome.value)
        return None

    def _box_of(self, pos: int) -> _Box | None:
        return next((box for box in self.boxes if box.log == log_of(pos)), None)

    # Relaying

    def _relay_kept(self, logs: Collection[int]) -> set[Id]:
        """Send what was just kept: it will be sent, so where it cannot be now it must not be sent anew."""
        try:
            return self.relay(logs)
        except (EngineUnavailable, ConfigError, EngineError) as error:
            raise AppendUnknown(f"{_KEPT}: {error}") from error

    def relay(self, logs: Collection[int], *, ring: bool = False) -> set[Id]:
        """Send all that waits in these logs of the outbox; return the ids of what was sent.

        Parameters:
            ring: wake the workers, too; whoever appends or settles does that once all is written.

        Raises: AppendUnknown, EngineUnavailable: the rest waits for the next who relays.
        """
        sent: set[Id] = set()
        with self._lock:
            for box in self.boxes if logs else ():
                while box.log in logs and (lease := self._claim(box)) is not None:
                    sent |= self._send(box, lease, ring=ring)
        return sent

    def _claim(self, box: _Box) -> Lease | None:
        number, who = -_random_bits(61) - (1 << 61), Claimant(RELAY, 0, AT_ONCE) if box.ordered else None
        request = Request(AT_ONCE, RELAY, 0, number, wall_clock(), ordered=who)
        reads = Reads(box.group.id, (), True, AT_ONCE, MAX_LEASE, request.now, ordered=who)

        def decide(view: View, change: Change) -> Lease | None:
            lease = claim(view, change, request)
            if lease is not None:
                # When we are to be taken for dead: others, with a shorter timeout, would wait less.
                lease.since = request.now + self.patience
            return lease

        lease: Lease | None = self._inner.transact(reads, decide)
        return lease

    def _send(self, box: _Box, lease: Lease, *, ring: bool) -> set[Id]:
        """Send a lease's records, and say where they are; return their ids."""
        found: list[tuple[int, bytes]] = []
        lost = 0
        waiting: list[_Waiting] = []
        stuck: RespoolError | None = None
        until = time.monotonic() + self._timeout
        try:
            spans = Finder(lease.spans)
            for pos, _, body, packed in self._inner.rows(lease.spans):
                kept = _unpack_row(packed or b"")
                span = spans.find(pos)
                tried = span is not None and span.deliveries > 0
                waiting.append(_Waiting(pos, kept.log, kept.header, body, tried, kept.lock))
            by_log: dict[int, list[_Waiting]] = {}
            for each in waiting:
                by_log.setdefault(each.log, []).append(each)
            for target, some in by_log.items():
                if time.monotonic() > until:  # or others would take us for dead, and send it too
                    raise EngineUnavailable("the brokers are slow; the rest is sent later")
                try:
                    found += self._send_to(target, some)
                except TopicGone as error:
                    self._make_sure_of(target)
                    lost += len(some)
                    log_.error("%d call(s) are lost: %s", len(some), error)
                    found += [(each.pos, _pack(NOWHERE)) for each in some]
                except RecordTooLarge as error:
                    sent, refused = self._send_singly(target, some, error, until)
                    found += sent + refused
                    lost += len(refused)
                except (ConfigError, EngineError) as error:
                    stuck = error  # of this topic: what goes elsewhere need not wait
            if stuck is not None:
                raise stuck
        except BaseException:
            self._settle(box, lease, found, lost, waiting, tried=True)
            raise
        self._settle(box, lease, found, lost, waiting, tried=False)
        self._inner.ring_waiters([pos for pos, _ in found])
        for target, some in by_log.items() if ring else ():
            self._inner.ring(target, everyone=len(some) > 1)
        gone = {pos for pos, place in found if _unpack(place) == NOWHERE}
        return {h.id_of(each.header) for each in waiting if each.pos not in gone}

    def _send_singly(
        self, target: int, waiting: list[_Waiting], error: RecordTooLarge, until: float
    ) -> tuple[list[tuple[int, bytes]], list[tuple[int, bytes]]]:
        """Send one by one what a topic took not together; return what it took, and what it never takes."""
        sent: list[tuple[int, bytes]] = []
        refused: list[tuple[int, bytes]] = []
        for each in waiting:
            if time.monotonic() > until:
                raise EngineUnavailable("the brokers are slow; the rest is sent later")
            try:
                sent += self._send_to(target, [each])
            except RecordTooLarge:
                log_.error("a call is lost: %s", error)
                refused.append((each.pos, _pack(NOWHERE)))
        return sent, refused

    def _make_sure_of(self, target: int) -> None:
        """Raise EngineUnavailable unless a log's topic is gone for good.

        A broker that was just started, or has just lost one beside it, may not know of it.
        """
        try:
            self._places.check_topic(self._places.stream_of_log(target))
        except EngineError:
            return
        raise EngineUnavailable("a broker does not know of a topic that is there; nothing was sent")

    def _send_to(self, target: int, waiting: list[_Waiting]) -> list[tuple[int, bytes]]:
        """Send what waits for one log; return where it is now."""
        try:
            place = self._places.place(target)
        except EngineError as error:
            raise TopicGone(str(error)) from None
        there = self._arrived(target, [each for each in waiting if each.tried])
        new = [each for each in waiting if h.id_of(each.header) not in there]
        events = bool(self._places.stream_of_log(target).settings.get("cloudevents"))
        offsets = self._sender.append(place, [item(each.row(), events) for each in new])
        if new:
            self._note_time(target, min(each.time for each in new))
        found = [(each.pos, _pack(target << 40 | at)) for each, at in zip(new, offsets, strict=True)]
        for each in waiting:
            if (pos := there.get(h.id_of(each.header))) is not None:
                found.append((each.pos, _pack(pos)))
        return found

    def _arrived(self, target: int, waiting: list[_Waiting]) -> dict[Id, int]:
        """Return where those are that somebody has sent without saying so."""
        if not waiting:
            return {}
        wanted = {h.id_of(each.header) for each in waiting}
        return self._look_for(target, wanted, min(each.time for each in waiting) - EARLY)

    def _settle(
        self,
        box: _Box,
        lease: Lease,
        found: list[tuple[int, bytes]],
        lost: int,
        waiting: Sequence[_Waiting],
        *,
        tried: bool,
    ) -> None:
        """Write down where records are; what is left goes back, marked where it may have been sent.

        What refers to a blob is told again as of its place in Kafka: its row here is forgotten one day (H18).
        So is what has taken a key (H16).
        """
        bodies = {each.pos: each.body for each in waiting if is_reference(each.body)}
        locks = {each.pos: each.lock for each in waiting if each.lock is not None}
        ended = wall_clock()
        results = sorted(found)
        done = [(pos, pos + 1) for pos, _ in results]
        if not tried:  # all of it: what is not there any more is done, too
            done = [(span.lo, span.hi) for span in lease.spans]
        settlement = Settlement(lease.id, RELAY, done, [], results, ended, ended, release=True)

        def decide(view: View, change: Change) -> None:
            mine = view.leases.get(lease.id)
            if tried and mine is not None:
                mine.spans = [span._replace(deliveries=span.deliveries + 1) for span in mine.spans]
            settle(view, change, settlement)
            change.count(LOST, lost)
            for pos, place in found if bodies or locks else ():
                if pos in locks and _unpack(place) != NOWHERE:
                    change.moved_locks.append((locks[pos], pos, _unpack(place)))
                if pos in bodies and _unpack(place) != NOWHERE:
                    change.outcomes.append(Outcome(_unpack(place), "success", bodies[pos], ended))
                    change.references.append((_unpack(place), bodies[pos]))
            change.journal.clear()  # the outcomes say it all

        self._inner.transact(Reads(box.group.id, (lease.id,)), decide)

    def forget_references(self, log: int, end: int) -> None:
        """Take down who referred to blobs, of what a log has lost below a position."""
        for box in self.boxes:
            gone = [each.pos for each in self._inner.outcomes(box.group.id, first_pos(log), end)]
            if gone:
                reads = Reads(box.group.id)
                self._inner.transact(reads, lambda view, change, gone=gone: change.forgotten.extend(gone))  # type: ignore[misc]

    def recover(self) -> None:
        """Give back what somebody took to relay it, and died."""
        now = wall_clock()
        for box in self.boxes:
            for lease in self._inner.leases(box.group):
                if lease.owner and lease.since < now:
                    self._give_back(box, lease.id)

    def _give_back(self, box: _Box, id: int) -> None:
        def decide(view: View, change: Change) -> None:
            mine = view.leases.get(id)
            if mine is not None and mine.owner:
                spans = [span._replace(deliveries=span.deliveries + 1) for span in mine.spans]
                back = Lease(mine.id, None, mine.child, spans, mine.bodies, mine.since, keys=mine.keys)
                change.leases.append(back)

        self._inner.transact(Reads(box.group.id, (id,)), decide)

    def tidy(self, window: float) -> None:
        """Send what somebody left behind, and forget what is known for longer than the window."""
        self.recover()
        now = wall_clock()
        waits = [box.log for box in self.boxes if self._inner.has_work(box.group.id, now, ())]
        self.relay(waits, ring=True)
        for box in self.boxes:
            self._inner.trim(box.stream, wall_clock() - window, 5000)
