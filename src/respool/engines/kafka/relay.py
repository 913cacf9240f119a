"""Moving what waits in the outbox to Kafka, and writing down where it is now (K4).

Who relays has a lease, as a worker has, and says for how long it sends at most by it. Others take it for dead
once they have seen that lease for as long, each by its own clock: so no two machines' clocks are compared. By
then it sends nothing more: it looks at its own before each record, and that had begun earlier. What it may
have sent without saying so is looked for before it is sent.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from random import SystemRandom

import msgspec

from ...clock import boottime_ns
from ...clock import now as wall_clock
from ...delivery.claim import Request, claim
from ...delivery.model import (
    LIMITED,
    MAX_LEASE,
    WAITING,
    Change,
    Lease,
    NewCall,
    Outcome,
    Settlement,
    View,
)
from ...delivery.order import Claimant
from ...delivery.settle import settle
from ...delivery.spans import Finder, count
from ...errors import EngineError, EngineUnavailable, RecordTooLarge, RespoolError
from ...record import OFFSET_BITS, Id
from ...reference import is_reference
from ..base import Engine, Reads
from ..turns import Down, NotMyTurn, Turn, left
from .cluster import TopicGone
from .message import item
from .places import KafkaPlaces
from .sender import Sender
from .waiting import Box, Waiting, waiting

log_ = logging.getLogger("respool.engine")
RELAY = -1  # who owns what is being relayed: no worker has that number
AT_ONCE = 1000
LONG = 0.5  # seconds that a log is waited for until it rests
LOOK = 1.0  # seconds between two looks of a process at what is put by
EVER = 1e11  # a time before which no claim takes what is put by, but for one that asks for all
ALL = 2 * EVER  # the time that it then says it is
NOWHERE = -1  # the place of what is lost
LOST = "calls lost: their topic is gone, or takes none of their size"
LookFor = Callable[[int, set[Id], float], dict[Id, int]]
"""Where records with these ids are in a log, of those made since a time."""
NoteTimes = Callable[[int, Sequence[float], int], None]
"""Takes note of when records were made that were just stored in a log."""
_random_bits = SystemRandom().getrandbits  # no seed that users' code sets, or that forked processes share
_pack = msgspec.msgpack.Encoder().encode


def _number() -> int:
    """Return a lease's number that nobody else has."""
    return -_random_bits(61) - (1 << 61)


class Relayed:
    """What came of relaying."""

    def __init__(self, came: float | None = None) -> None:
        self.came = time.monotonic() if came is None else came  # when it was asked for
        self.sent: set[Id] = set()
        self.failed: dict[int, RespoolError] = {}
        """Why a log in Kafka took nothing."""
        self.broken: RespoolError | None = None
        """Why a box could not be gone through."""

    def why_not(self, own: Iterable[NewCall]) -> RespoolError | None:
        """Return why some of these records were not sent; None where they were, or others are at them."""
        for row in own:
            if row.id not in self.sent:
                error = self.failed.get(row.log, self.broken)
                if error is not None:
                    return error
        return None

    def check(self) -> None:
        """Raise the first error, whosever records it kept back."""
        error = next(iter(self.failed.values()), self.broken)
        if error is not None:
            raise error


class Relay:
    """Sends what waits in boxes; several processes may do so, each by leases of its own."""

    boxes: tuple[Box, ...]

    def __init__(
        self,
        inner: Engine,
        places: KafkaPlaces,
        sender: Sender,
        look_for: LookFor,
        note_times: NoteTimes,
        timeout: float,
    ) -> None:
        self._inner, self._places, self._sender = inner, places, sender
        self._look_for, self._note_times = look_for, note_times
        self._timeout = timeout
        self.patience = 2 * timeout + 2.0  # seconds after which nothing more comes of a lease of ours
        self._lock = threading.Lock()
        self._watched: dict[int, int] = {}  # leases of others, since when we have seen them, in ns
        self._resting: dict[int, tuple[int, RespoolError]] = {}  # logs that took nothing: until when, and why
        self._down: dict[int, Down] = {}  # by log
        self._look_at: dict[int, int] = {}  # by box, when what is put by is looked at again

    def relay(
        self,
        logs: Collection[int],
        own: Sequence[NewCall] = (),
        *,
        everything: bool = False,
        came: float | None = None,
    ) -> Relayed:
        """Send all that waits in these logs of the outbox. What cannot be sent waits for another who relays.

        A log that takes nothing keeps back no other. Where it was waited for, it rests for a while: it is not
        tried for records that are others'. What waits for it is put by, and not even claimed by who has
        others to send, but for once a second.

        Parameters:
            own: the caller's records, as they were given. For those he wakes the workers once all is written;
                for all others they are woken here.
            everything: look at what is put by, too.
            came: when the caller began to wait for it, by `time.monotonic()`; None: now.
        """
        done = Relayed(came)
        patience = left(self._timeout)
        until = done.came + patience
        try:
            with Turn(self._lock.acquire, True, max(until - time.monotonic(), 0.0)) as mine:
                if not mine:
                    raise NotMyTurn
                self._relay_boxes([box for box in self.boxes if box.log in logs], done, own, everything)
        except NotMyTurn:
            done.broken = EngineUnavailable(f"others of this process have been at it for {patience:.3g} s")
        return done

    def _relay_boxes(
        self, boxes: Sequence[Box], done: Relayed, own: Sequence[NewCall], everything: bool
    ) -> None:
        for box in boxes:
            try:
                self._relay_box(box, done, {row.id for row in own}, {row.log for row in own}, everything)
            except RespoolError as error:  # of the state
                done.broken = done.broken or error

    def _relay_box(self, box: Box, done: Relayed, own: set[Id], to: set[int], everything: bool) -> None:
        held: list[int] = []  # what could not be sent; given back at once, it would head the next lease
        if box.ordered:  # nothing is put by there: it would hold up its keys
            everything = False
        elif boottime_ns() >= self._look_at.get(box.log, 0):
            everything = True
        try:
            more = True
            while more:
                until = boottime_ns() + int(self._timeout * 1e9)
                lease = self._claim(box, ALL if everything else wall_clock())
                if lease is None:
                    break
                if not self._send(box, lease, until, done, own, to):
                    held.append(lease.id)
                # What one who relays in order holds back, he leaves to whoever comes next.
                more = box.ordered or count(lease.spans) >= AT_ONCE
        finally:
            if everything:
                self._look_at[box.log] = boottime_ns() + int(LOOK * 1e9)
            for id in held:
                self._give_back(box, id, put_by=not box.ordered)

    def _claim(self, box: Box, now: float) -> Lease | None:
        who = Claimant(RELAY, 0, AT_ONCE) if box.ordered else None
        milliseconds = max(int(self.patience * 1000), 1)
        request = Request(AT_ONCE, RELAY, milliseconds, _number(), now, ordered=who)
        reads = Reads(box.group.id, (), True, AT_ONCE, MAX_LEASE, request.now, ordered=who)
        lease: Lease | None = self._inner.transact(reads, lambda view, change: claim(view, change, request))
        return lease

    def _send(self, box: Box, lease: Lease, until: int, done: Relayed, own: set[Id], to: set[int]) -> bool:
        """Send a lease's records, and say where they are; say whether that was all of them."""
        found: list[tuple[int, int]] = []
        kept: list[Waiting] = []
        by_log: dict[int, list[Waiting]] = {}
        try:
            spans = Finder(lease.spans)
            for pos, _, body, packed in self._inner.rows(lease.spans):
                span = spans.find(pos)
                kept.append(waiting(pos, body, packed or b"", tried=span is not None and span.deliveries > 0))
            for each in kept:
                by_log.setdefault(each.log, []).append(each)
            for target in self._in_turn(by_log, to):
                if target not in done.failed:
                    try:
                        self._check_down(target, done.came)
                        found += self._send_or_lose(target, by_log[target], until, rest=target not in to)
                    except RespoolError as error:  # of this topic: what goes elsewhere need not wait
                        done.failed[target] = error
        except BaseException:
            self._settle(box, lease, found, kept, tried=True, release=True)
            raise
        failed = not done.failed.keys().isdisjoint(by_log)
        self._settle(box, lease, found, kept, tried=failed, release=False)
        self._inner.ring_waiters([pos for pos, _ in found])
        there = {pos for pos, place in found if place != NOWHERE}
        for target, some in by_log.items():
            ids = {each.id for each in some if each.pos in there}
            done.sent |= ids
            if not ids <= own:
                self._inner.ring(target, everyone=len(ids) > 1)
        return not failed

    def _check_down(self, target: int, came: float) -> None:
        """Raise where another has waited for a log in vain, while we waited for our turn."""
        down = self._down.get(target)
        if down is not None:
            down.check(came, came + self._timeout)

    def _in_turn(self, by_log: dict[int, list[Waiting]], to: set[int]) -> list[int]:
        """Return logs in the order in which they are tried: last those that may use up the time.

        Those are the ones that took nothing when they were tried last, the latest of them at the end. Of the
        others the caller's own are the first.
        """

        def turn(target: int) -> tuple[int, bool, bool]:
            rests, _ = self._resting.get(target, (0, None))
            return rests, target not in to, any(each.tried for each in by_log[target])

        return sorted(by_log, key=turn)

    def _send_or_lose(
        self, target: int, some: list[Waiting], until: int, *, rest: bool
    ) -> list[tuple[int, int]]:
        """Send what waits for one log; return where it is now, NOWHERE where it can never be sent.

        A log that was waited for in vain rests for twice as long: whoever has calls for others waits behind
        it for a third of the time at most.
        """
        began = boottime_ns()
        rests, why = self._resting.get(target, (0, None))
        if rest and why is not None and began < rests:
            raise why
        try:
            found = self._send_whole(target, some, until)
        except RespoolError as error:
            ended = boottime_ns()
            if began <= until:  # else it was not tried
                waited, now = ended - began, time.monotonic()
                self._down.setdefault(target, Down()).note(str(error), now - waited / 1e9, now)
                self._resting[target] = ended + (2 * waited if waited > LONG * 1e9 else 0), error
            raise
        self._resting.pop(target, None)
        return found

    def _send_whole(self, target: int, some: list[Waiting], until: int) -> list[tuple[int, int]]:
        try:
            return self._send_to(target, some, until)
        except TopicGone as error:
            self._make_sure_of(target)
            log_.error("%d call(s) are lost: %s", len(some), error)
            return [(each.pos, NOWHERE) for each in some]
        except RecordTooLarge as error:
            return self._send_singly(target, some, error, until)

    def _send_singly(
        self, target: int, some: list[Waiting], error: RecordTooLarge, until: int
    ) -> list[tuple[int, int]]:
        """Send one by one what a topic took not together; return where each is, if need be NOWHERE."""
        found: list[tuple[int, int]] = []
        for each in some:
            try:
                found += self._send_to(target, [each], until)
            except RecordTooLarge:
                log_.error("a call is lost: %s", error)
                found.append((each.pos, NOWHERE))
        return found

    def _make_sure_of(self, target: int) -> None:
        """Raise EngineUnavailable unless a log's topic is gone for good.

        A broker that was just started, or has just lost one beside it, may not know of it: all are asked.
        """
        try:
            self._places.check_log(target)
        except EngineError:
            return
        raise EngineUnavailable("a broker does not know of a topic that is there; nothing was sent")

    def _send_to(self, target: int, some: list[Waiting], until: int) -> list[tuple[int, int]]:
        """Send what waits for one log, or raise once it is too late; return where it is now."""
        if boottime_ns() > until:  # others will take us for dead, and send it too
            raise EngineUnavailable("the brokers are slow; the rest is sent later")
        try:
            place = self._places.place(target)
        except EngineError as error:
            raise TopicGone(str(error)) from None
        there = self._arrived(target, [each for each in some if each.tried])
        new = [each for each in some if each.id not in there]
        events = bool(self._places.stream_of_log(target).settings.get("cloudevents"))
        stored = self._sender.append(place, [item(each.row(), events) for each in new], until=until)
        if new:
            self._note_times(target, [each.time for each in new], stored.at)
        found = [(each.pos, target << OFFSET_BITS | at) for each, at in zip(new, stored.offsets, strict=True)]
        return found + [(each.pos, there[each.id]) for each in some if each.id in there]

    def _arrived(self, target: int, tried: list[Waiting]) -> dict[Id, int]:
        """Return where those are that somebody has sent without saying so."""
        if not tried:
            return {}
        return self._look_for(target, {each.id for each in tried}, min(each.time for each in tried))

    def _settle(
        self,
        box: Box,
        lease: Lease,
        found: list[tuple[int, int]],
        kept: Sequence[Waiting],
        *,
        tried: bool,
        release: bool,
    ) -> None:
        """Write down where records are; what is left stays ours or goes back, marked as perhaps sent.

        What refers to a blob is told again as of its place in Kafka: its row here is forgotten one day (H18).
        So is what has taken a key (H16).
        """
        bodies = {each.pos: each.body for each in kept if is_reference(each.body)}
        locks = {each.pos: each.lock for each in kept if each.lock is not None}
        ended = wall_clock()
        results = [(pos, _pack(place)) for pos, place in sorted(found)]
        done = [(pos, pos + 1) for pos, _ in results]
        if not tried:  # all of it: what is not there any more is done, too
            done = [(span.lo, span.hi) for span in lease.spans]
        settlement = Settlement(lease.id, RELAY, done, [], results, ended, ended, release=release)
        lost = sum(place == NOWHERE for _, place in found)

        def decide(view: View, change: Change) -> None:
            mine = view.leases.get(lease.id)
            if tried and mine is not None:
                mine.spans = [span._replace(deliveries=span.deliveries + 1) for span in mine.spans]
            settle(view, change, settlement)
            change.count(LOST, lost)
            for pos, place in found if bodies or locks else ():
                if pos in locks and place != NOWHERE:
                    change.moved_locks.append((locks[pos], pos, place))
                if pos in bodies and place != NOWHERE:
                    change.outcomes.append(Outcome(place, "success", bodies[pos], ended))
                    change.references.append((place, bodies[pos]))
            change.journal.clear()  # the outcomes say it all

        self._inner.transact(Reads(box.group.id, (lease.id,)), decide)

    def recover(self) -> None:
        """Give back what somebody took to relay it, and died: we have seen its lease for so long."""
        now, seen = boottime_ns(), set()
        for box in self.boxes:
            for lease in self._inner.leases(box.group):
                if not lease.owner:
                    continue
                seen.add(lease.id)
                since = self._watched.setdefault(lease.id, now)
                if now - since > lease.child * 1_000_000:
                    self._give_back(box, lease.id)
        self._watched = {id: since for id, since in self._watched.items() if id in seen}

    def _give_back(self, box: Box, id: int, *, put_by: bool = False) -> None:
        """Give back a lease as perhaps sent; `put_by`: to who asks for all that waits."""

        def decide(view: View, change: Change) -> None:
            mine = view.leases.get(id)
            if mine is not None and mine.owner:
                spans = [span._replace(deliveries=span.deliveries + 1) for span in mine.spans]
                back = Lease(id, None, mine.child, spans, mine.bodies, mine.since, keys=mine.keys)
                if put_by:  # a lease that is there keeps what it was made with, but for its owner and spans
                    back = Lease(_number(), WAITING, LIMITED, spans, mine.bodies, EVER)
                    change.dropped_leases.append(id)
                change.leases.append(back)

        self._inner.transact(Reads(box.group.id, (id,)), decide)

    def tried_in_vain(self) -> int:
        """Return how many records wait that could not be sent when that was tried last."""
        known = [self._inner.counts(box.group) for box in self.boxes]
        return sum(each.returned + each.parked.get("limited", 0) for each in known)

    def lost(self) -> int:
        """Return how many records that waited were given up."""
        return sum(self._inner.counters(box.group.id).get(LOST, 0) for box in self.boxes)
