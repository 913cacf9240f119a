"""Calls on their way to Kafka, and the ids that are known (K4).

What has an id that can come again (one given by a user, or derived from a run) is first a record of a
stream in the state: the *outbox*. There an id is known, a conflict is seen, a lease is a fence, and a
settlement takes its calls along. A group of that stream, the *relay* (`relay.py`), moves them to Kafka; what
it returned for each is where the record is now. So what is relayed twice, lost, or held up by a crash is what
any lease is: given back and taken up by whoever comes next, who looks first whether it had arrived. Both
are forgotten after `id_window`.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from ...clock import now as wall_clock
from ...delivery.model import NewCall
from ...delivery.spans import Span
from ...errors import AppendUnknown, ConfigError, EngineError, EngineUnavailable, RespoolError
from ...record import Id, first_pos, log_of, unpack_meta
from .. import stored_id
from ..base import Conflict, Engine, Reads, UniqueLock
from .moved import Moved, outbox_id
from .places import HIDDEN, KafkaPlaces
from .relay import ALL, NOWHERE, LookFor, NoteTimes, Relay, Relayed
from .sender import Sender
from .waiting import Box, id_from_outbox, put_by, waiting

NAME = "outbox"
NAME_IN_ORDER = "outbox in order"
_unpack = msgspec.msgpack.Decoder(int).decode
_KEPT = "the record is kept in the state, and could not be sent yet; a worker sends it"


class Outbox(Relay):
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
        note_times: NoteTimes,
        timeout: float,
    ) -> None:
        Relay.__init__(self, inner, places, sender, look_for, note_times, timeout)
        self._moved_here = moved
        streams = [
            inner.create_stream("queue", HIDDEN, name, 1, {"ordered": ordered})
            for name, ordered in ((NAME, False), (NAME_IN_ORDER, True))
        ]
        groups = {group.stream: group for group in inner.groups()}
        self._plain, self._keyed = (
            Box(stream, stream.logs[0], groups[stream.id], bool(stream.settings.get("ordered")))
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
            self._places.known_place(log)  # what never gets there is counted as lost
        keyed = {row.log for row in rows if row.key is not None}  # what comes together stays in its order
        return [put_by(row, self._keyed if row.log in keyed else self._plain, lock) for row in rows]

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
        with _kept_by_now():
            sent = self._relay_kept(places, rows)
            for id, row in {row.id: row for row in rows}.items():
                if id not in sent:
                    self._await(self._inner.find(HIDDEN, outbox_id(id)), row)
            return [self._moved(each) for each in conflicts]

    def append_one(self, row: NewCall) -> int | Conflict:
        """Append one record by way of the outbox; return where it is in Kafka."""
        (kept,) = self.rewritten([row])
        done = self._inner.append_row(kept)
        with _kept_by_now():
            self._relay_kept([kept.log], [row])
            return self._moved(done) if isinstance(done, Conflict) else self._await(done, row)

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
        with _kept_by_now():
            self._relay_kept([kept.log], [row])
            return self._await(place, row)

    def lock_of(self, key: str) -> UniqueLock | None:
        """Return what a key is taken by, or was."""
        lock = self._inner.lock_of(key)
        if lock is None:
            return None
        lock = lock._replace(id=id_from_outbox(lock.id))
        if self._box_of(lock.pos) is None:
            return lock
        if self._place_of(lock.pos) == NOWHERE:
            return lock._replace(placed=False, expires=0.0)
        for pos, _, body, packed in self._inner.rows([Span(lock.pos, lock.pos + 1)]):
            meta = waiting(pos, body, packed or b"", tried=False).row().meta
            if meta is not None:
                return lock._replace(placed=False, expires=unpack_meta(meta).expires)
        return lock._replace(placed=False)

    def _await(self, place: int | None, row: NewCall) -> int:
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
            self._relay_kept([log_of(place)], [row])
        raise AppendUnknown(_KEPT)

    def _moved(self, conflict: Conflict) -> Conflict:
        pos = self._position(conflict.pos)
        return conflict._replace(pos=conflict.pos if pos is None else pos)

    # Finding

    def find(self, id: Id) -> int | None:
        """Return where a record is that came by way of the outbox; it is sent first where it was not.

        None where there is none, or somebody else is about to send it. Raises AppendUnknown where it cannot
        be sent now; not that nothing was, since whoever sends an id again asks for it first.
        """
        place = self._inner.find(HIDDEN, outbox_id(id))
        if place is None:
            return None
        pos = self._place_of(place)
        if pos is None:
            done = self.relay([log_of(place)], everything=True)
            pos = self._place_of(place)
            if pos is None:
                error = self._why_not(done, place)
                if error is not None:
                    raise AppendUnknown(f"{_KEPT}: {error}") from error
        return None if pos == NOWHERE else pos

    def _why_not(self, done: Relayed, place: int) -> RespoolError | None:
        """Return why a record was not sent; None where somebody else is at it."""
        for pos, _, body, packed in self._inner.rows([Span(place, place + 1)]):
            return done.failed.get(waiting(pos, body, packed or b"", tried=False).log, done.broken)
        return done.broken

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

    def _box_of(self, pos: int) -> Box | None:
        return next((box for box in self.boxes if box.log == log_of(pos)), None)

    def _relay_kept(self, logs: Collection[int], own: Sequence[NewCall]) -> set[Id]:
        """Send what was just kept: it will be sent, so where it cannot be now it must not be sent anew.

        That somebody else's cannot be sent is no matter of the caller's.
        """
        try:
            done = self.relay(logs, own)
            left = [row for row in own if row.id not in done.sent and self._still_here(row.id)]
            error = done.why_not(left)
            if left and error is None:  # put by, where it was sent before; or somebody else is at it
                again = self.relay(logs, left, everything=True, came=done.came)
                done.sent |= again.sent
                error = again.why_not(row for row in left if self._still_here(row.id))
            if error is not None:
                raise error
        except (EngineUnavailable, ConfigError, EngineError) as error:
            raise AppendUnknown(f"{_KEPT}: {error}") from error
        return done.sent

    def _still_here(self, id: Id) -> bool:
        place = self._inner.find(HIDDEN, outbox_id(id))
        return place is not None and self._place_of(place) is None

    def forget_references(self, log: int, end: int) -> None:
        """Take down who referred to blobs, of what a log has lost below a position."""
        for box in self.boxes:
            gone = [each.pos for each in self._inner.outcomes(box.group.id, first_pos(log), end)]
            if gone:
                reads = Reads(box.group.id)
                self._inner.transact(reads, lambda view, change, gone=gone: change.forgotten.extend(gone))  # type: ignore[misc]

    def tidy(self, window: float) -> None:
        """Send what somebody left behind, and forget what is known for longer than the window."""
        self.recover()
        waits = [box.log for box in self.boxes if self._inner.has_work(box.group.id, ALL, ())]
        done = self.relay(waits, everything=True)
        for box in self.boxes:
            self._inner.trim(box.stream, wall_clock() - window, 5000)
        done.check()


@contextmanager
def _kept_by_now() -> Iterator[None]:
    """What is kept will be sent: that the state is away for a moment is no refusal."""
    try:
        yield
    except EngineUnavailable as error:
        raise AppendUnknown(f"{_KEPT} ({error})") from error
