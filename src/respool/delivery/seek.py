"""Moving a group: seeks, back or forth, and pauses. A group that is held is granted nothing.

A seek is an intent among the group's settings, and steps that may each be done twice (H14): whoever is
killed in the middle leaves a group that is held, and that anybody can bring to the end.

    begin      the intent is written, with where it leads: nothing is granted from now on
    end_leases what is leased at or past the target is settled by its workers, or taken from them
    rewind     slice by slice: what is known of records at or past the target is made history
    finish     the generation rises, the cursors move, the intent goes

Until it is finished, what is to be done again counts as done (the journal says `rewound`): each record is in
one place all the time.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

from .model import Change, JournalEntry, Lease, Position, View
from .order import free, keys_of
from .passing import pass_over
from .settle import keep_or_return
from .spans import Span, subtract

Targets = Mapping[int, int]
"""By log: the position from which on the group is to read."""


class SeekUnderWay(Exception):
    """A decision that cannot be made while a group is moved; nothing was changed."""


def held(settings: Mapping[str, Any]) -> str | None:
    """Say why a group is granted nothing: `paused` or `seek`; None where it is not held."""
    if not settings:
        return None
    return "seek" if settings.get("seek") else "paused" if settings.get("paused") else None


def refuse_while_moved(view: View) -> None:
    """Raise SeekUnderWay where parked records must stay as they are, for the group is being moved."""
    if view.settings.get("seek"):
        raise SeekUnderWay


def pause(change: Change, now: float | None) -> None:
    """Have a group granted nothing from now on; None: have it go on."""
    change.settings["paused"] = now


def under_way(settings: Mapping[str, Any]) -> dict[int, int] | None:
    """Return the targets of a seek that has begun and is not finished."""
    seek = settings.get("seek")
    return None if not seek else {int(log): int(pos) for log, pos in seek["to"]}


def through(settings: Mapping[str, Any]) -> dict[int, int]:
    """Return how far a seek that is under way has come in each log, where it has begun."""
    seek = settings.get("seek") or {}
    return {int(log): int(pos) for log, pos in seek.get("through", ())}


def begin(
    view: View, change: Change, to: Targets, now: float, forth: Container[int] = ()
) -> dict[int, int] | None:
    """Write down where a group is to be moved, and return it; None where it is being moved elsewhere.

    In the logs `forth` it is not moved back, though it has come past the target since that was chosen: it
    stays where it is. Of those the view has the positions.
    """
    cursors = {at.log: at.cursor for at in view.positions if at.log in forth}
    settled = {log: max(target, cursors.get(log, target)) for log, target in to.items()}
    there = under_way(view.settings)
    if there is not None:  # no cursor has moved since but towards a target
        return settled if there == settled else None
    change.settings["seek"] = {"to": sorted(settled.items()), "at": now}
    return settled


def end_leases(view: View, change: Change, to: Targets, now: float, *, owned: bool) -> int:
    """Take what lies at or past the targets out of leases: of those given back, and where `owned` of all.

    A worker that settles it later changes nothing. Returns how many records its owners still hold.
    """
    if under_way(view.settings) != dict(to):
        return 0
    left = 0
    for lease in {lease.id: lease for lease in (*view.leases.values(), *view.returned)}.values():
        past = [span for span in lease.spans if span.hi > to.get(span.lo >> 40, span.hi)]
        if not past:
            continue
        if lease.owner and not owned:
            left += sum(span.hi - max(span.lo, to[span.lo >> 40]) for span in past)
            continue
        _cut(change, lease, past, to, now)
        if lease.keys:
            kept = [keys_of(each) for each in change.leases if each.id == lease.id]
            free(keys_of(lease).difference(*kept), view, change, now)
    return left


def _cut(change: Change, lease: Lease, past: Iterable[Span], to: Targets, now: float) -> None:
    cuts = []
    for span in past:
        lo, hi = max(span.lo, to[span.lo >> 40]), span.hi
        cuts.append((lo, hi))
        note = "rewound: taken from its worker" if lease.owner else None
        change.journal.append(
            JournalEntry(
                lo, hi, lease.owner or None, lease.child, lease.since, now, "rewound", span.retries, note
            )
        )
    keep_or_return(change, lease, subtract(lease.spans, cuts), release=False)


def rewind(view: View, change: Change, to: Targets, lo: int, hi: int, now: float) -> bool:
    """Make history of what is known of lo <= p < hi, a slice past a target; False: the seek is over."""
    if under_way(view.settings) != dict(to):
        return False
    change.rewound.append((lo, hi))
    done = through(view.settings) | {lo >> 40: hi}
    change.settings["seek"] = {**view.settings["seek"], "through": sorted(done.items())}
    change.journal.append(JournalEntry(lo, hi, None, 0, now, now, "rewound", 0, "rewound: to be done again"))
    return True


def finish(view: View, change: Change, to: Targets, now: float) -> bool | None:
    """Move the cursors; False where that was done before, None where a target is further on than is seen.

    What lies between a cursor and such a target is ended, as by a purge, step by step: where None is
    returned, the cursors have moved as far as they could, and the seek is not over.
    """
    if under_way(view.settings) != dict(to):
        return False
    end_leases(view, change, to, now, owned=False)  # what has come late in a gap meanwhile
    there = [_move_on(view, change, at, to[at.log], now) for at in view.positions if at.log in to]
    if not all(there):
        return None
    back = {}
    for at in view.positions:
        target = to.get(at.log, at.cursor)
        if target < at.cursor:
            back[target] = at.cursor
            change.starts.append((at.log, target))
            change.cursors.append((at.log, target))
    change.settings["seek"] = None
    if back:
        change.generation = view.generation + 1
        change.settings["rewinds"] = rewound(view.settings.get("rewinds", ()), back, change.generation)
    return True


def _move_on(view: View, change: Change, at: Position, target: int, now: float) -> bool:
    """Move a cursor towards a target further on; return whether it is there."""
    if target <= at.cursor:
        return True
    passed, cursor = pass_over(view, change, at._replace(stop=None), target)
    if at.end <= at.cursor:  # there is nothing on the way
        passed, cursor = [Span(at.cursor, target)], target
        change.cursors.append((at.log, target))
    note = "purged: the group was moved on"
    change.journal += [
        JournalEntry(span.lo, span.hi, None, 0, now, now, "purged", 0, note) for span in passed
    ]
    return cursor == target


def rewound(rewinds: Iterable[Any], back: Mapping[int, int], generation: int) -> list[list[int]]:
    """Return from where on records are of which generation, and how far the group had come by then.

    Parameters:
        back: where a seek leads back to, and where the group was, of each log that it leads back in.
    """
    kept, ends = [], dict(back)
    targets = {target >> 40: target for target in back}
    for first, number, end in rewinds:
        target = targets.get(first >> 40)
        if target is None or first < target:
            kept.append([first, number, end])
        else:
            ends[target] = max(ends[target], end)
    return sorted([*kept, *([target, generation, end] for target, end in ends.items())])


def came_past(rewinds: Iterable[Any], pos: int) -> bool:
    """Say whether the group had come past a record before it was moved back to it: it is done again."""
    return any(first <= pos < end for first, _, end in rewinds)


def generation_at(rewinds: Iterable[Any], pos: int) -> int:
    """Return which generation of the group runs a record: how often it was moved back before it (H8).

    It is told by position: what lies below a seek's target, and is run again for another reason, makes the
    calls that it made before.
    """
    log = pos >> 40
    return max((number for first, number, _ in rewinds if first <= pos and first >> 40 == log), default=0)
