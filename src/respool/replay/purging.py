"""Purging: ending what a queue's own group has not started."""

from __future__ import annotations

from ..clock import now as wall_clock
from ..dead.acting import transact
from ..delivery import admin
from ..encoding.remote import encode_error
from ..engines.base import Engine, Group, ParkedFilter, Reads
from ..errors import Revoked
from .find import Source, parked_slices, queue_of, sides

RETURNED = 200  # leases purged in one transaction
WAITING = ("scheduled", "retry", "unknown", "blocked", "limited", "gap")


def purgeable(source: Source, queue: str, *, app: str | None = None) -> int:
    """Return how many records `purge` would end now."""
    engine, app = sides(source, app)
    counts = engine.counts(_main(engine, app, queue))
    return int(
        counts.pending
        + counts.returned
        + sum(n for r, n in counts.parked.items() if r not in ("dead", "gap"))
    )


def purge(source: Source, queue: str, *, app: str | None = None) -> int:
    """End as REVOKED what `main` of a queue has not started; return how many records.

    Records stay, and so do dead letters, what workers hold, and calls of transactions that are open: those
    run once they are committed. What is sent meanwhile may be left.
    """
    engine, app = sides(source, app)
    group = _main(engine, app, queue)
    reason = encode_error(Revoked("purged"))

    def end(reads: Reads) -> tuple[int, bool, int]:
        return transact(
            engine,
            group,
            reads._replace(settings=True),
            lambda view, change: (
                admin.purge(view, change, list(view.due), reason, wall_clock()),
                bool(change.cursors),
                len(view.returned),
            ),
        )

    before = engine.positions(group)
    ends = {at.log: at.end for at in before}
    ended, moved, leases = 0, True, RETURNED
    while moved or leases >= RETURNED:  # lanes, and what came late, are read beyond that
        more, moved, leases = end(Reads(group.id, positions=moved, returned=RETURNED))
        moved = moved and any(at.cursor < ends.get(at.log, at.cursor) for at in engine.positions(group))
        ended += more
    for found in parked_slices(engine, group, ParkedFilter((), WAITING)):
        ended += end(Reads(group.id, parked=tuple(pos for pos, _ in found)))[0]
        engine.ring_waiters([pos for pos, _ in found])
    for at in before:
        engine.ring_waiters(range(at.cursor, at.end))
    return ended


def _main(engine: Engine, app: str | None, queue: str) -> Group:
    stream = queue_of(engine, queue, app=app)
    return next(g for g in engine.groups() if g.stream == stream.id and g.kind == "main")
