"""What people do to a group: redrive or drop its dead letters, purge what it has not started."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..reference import is_reference
from .model import Change, JournalEntry, Outcome, Parked, View
from .order import free, keys_of
from .passing import pass_over
from .seek import refuse_while_moved
from .spans import count


def redrive(
    view: View,
    dead: list[Parked],
    change: Change,
    now: float,
    interval: float = 0.0,
    edits: Mapping[int, tuple[bytes, str]] = MappingProxyType({}),
) -> int:
    """Give dead letters back to their group: due at once, with a clean count of retries and deliveries.

    `redrives` rises, so that the calls a record makes now are others than those it made before (H8).

    Parameters:
        interval: seconds between one and the next, for a rate; the first is due at `now`.
        edits: by position, the body that is run instead of the record's own, and what the history says of it.
    """
    refuse_while_moved(view)
    given = 0
    for parked in dead:
        if parked.reason != "dead":
            continue
        body, note = edits.get(parked.pos, (parked.body, None))
        change.parked.append(
            parked._replace(
                reason="scheduled",
                due=now + given * interval,
                retries=0,
                deliveries=0,
                redrives=parked.redrives + 1,
                alone=False,
                body=body,
                error=None,
                at=now,
                key=abs(parked.key) if parked.key else None,
            )
        )
        if parked.pos in edits and body is not None and is_reference(body):
            change.edited.append((parked.pos, body))
        change.forgotten.append(parked.pos)
        change.journal.append(
            JournalEntry(parked.pos, parked.pos + 1, None, 0, now, now, "redriven", parked.retries, note)
        )
        given += 1
    return given


def drop(view: View, change: Change, now: float, note: str | None = None, until: float | None = None) -> int:
    """End the dead letters of a view for good: nothing runs them again. Their outcome, a failure, stands.

    Where one held up its key, what waits behind it goes on. With `until`, only those that died before.
    """
    dead = [parked for parked in view.due if until is None or parked.at < until]
    gone = 0
    for parked in dead:
        if parked.reason != "dead":
            continue
        change.unparked.append(parked.pos)
        change.journal.append(
            JournalEntry(parked.pos, parked.pos + 1, None, 0, now, now, "dropped", parked.retries, note)
        )
        gone += 1
    change.count("dead letters dropped", gone)
    free({each.key for each in dead if each.key and each.key > 0}, view, change, now)
    return gone


def purge(view: View, change: Change, waiting: list[Parked], reason: bytes, now: float) -> int:
    """End as REVOKED what a group has not started: pending, given back and waiting records.

    Dead letters stay, and so do all records, and what is not committed yet. Pending is what the view sees of
    it: a caller comes again until no cursor moves. Returns how many were ended.
    """
    refuse_while_moved(view)
    ended = 0
    for at in view.positions:
        passed, _ = pass_over(view, change, at, at.end)
        change.journal += [JournalEntry(span.lo, span.hi, None, 0, now, now, "purged") for span in passed]
        ended += count(passed)
    for lease in view.returned:
        change.dropped_leases.append(lease.id)
        for span in lease.spans:
            change.journal.append(JournalEntry(span.lo, span.hi, None, 0, now, now, "purged", span.retries))
        ended += count(lease.spans)
    for parked in waiting:
        if parked.reason == "dead":
            continue
        change.unparked.append(parked.pos)
        change.outcomes.append(Outcome(parked.pos, "revoked", reason, now))
        change.journal.append(
            JournalEntry(parked.pos, parked.pos + 1, None, 0, now, now, "purged", parked.retries)
        )
        ended += 1
    if view.order is not None:
        keys = {parked.key for parked in waiting if parked.key and parked.key > 0}
        free(keys.union(*map(keys_of, view.returned)), view, change, now)
    return ended
