"""What people do to a group: redrive its dead letters, purge what it has not started."""

from __future__ import annotations

from .model import Change, JournalEntry, Outcome, Parked, View
from .spans import count


def redrive(dead: list[Parked], change: Change, now: float) -> int:
    """Give dead letters back to their group: due at once, with a clean count of retries and deliveries.

    `redrives` rises, so that the calls a record makes now are others than those it made before (H8).
    """
    given = 0
    for parked in dead:
        if parked.reason != "dead":
            continue
        change.parked.append(
            parked._replace(
                reason="scheduled",
                due=now,
                retries=0,
                deliveries=0,
                redrives=parked.redrives + 1,
                alone=False,
                error=None,
                at=now,
            )
        )
        change.forgotten.append(parked.pos)
        change.journal.append(
            JournalEntry(parked.pos, parked.pos + 1, None, 0, now, now, "redriven", parked.retries)
        )
        given += 1
    return given


def purge(view: View, change: Change, waiting: list[Parked], reason: bytes, now: float) -> int:
    """End as REVOKED what a group has not started: pending, given back and waiting records.

    Dead letters stay, and so do all records. Returns how many were ended.
    """
    ended = 0
    for at in view.positions:
        end = at.end if at.stop is None else min(at.end, at.stop)
        if end > at.cursor:
            change.cursors.append((at.log, end))
            change.journal.append(JournalEntry(at.cursor, end, None, 0, now, now, "purged"))
            ended += end - at.cursor
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
    return ended
