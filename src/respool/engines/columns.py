"""What a group knows, as the engines in SQL keep it: rows and packed columns, and back."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from ..delivery.model import (
    LIMITED,
    WAITING,
    JournalEntry,
    Lease,
    Limits,
    NewCall,
    Outcome,
    Position,
)
from ..delivery.spans import Span, count
from ..errors import PartlyAppended, RespoolError
from .things import Counts

ENDINGS = ("success", "failure", "revoked")
_ENDING_NUMBER = {name: number for number, name in enumerate(ENDINGS)}
_ENDS = ("done", "skipped", "purged", "trimmed", "rewound")
"""What a journal entry can say of a record that is in no other place; no clock decides among them."""
FIRST_BUCKET = -1 << 63  # before the number of any
_pack = msgspec.msgpack.Encoder().encode
_MICRO = 1_000_000
_EVER = 1 << 62  # microseconds: before and after all there is
unpack_spans = msgspec.msgpack.Decoder(list[Span]).decode
_unpack_bodies = msgspec.msgpack.Decoder(dict[int, bytes]).decode
_unpack_admitted = msgspec.msgpack.Decoder(dict[int, list[tuple[int, int]]]).decode


def lease_of(row: Any) -> Lease:
    """Return a lease from its row."""
    id, owner, child, spans, bodies, since, admitted, keys = row
    return Lease(
        id,
        owner,
        child,
        unpack_spans(spans),
        _unpack_bodies(bodies) if bodies else {},
        since,
        _unpack_admitted(admitted) if admitted else {},
        keys or b"",
    )


def lease_row(group: int, lease: Lease) -> tuple[Any, ...]:
    """Return what is bound to write a lease."""
    return (
        lease.id,
        group,
        lease.owner,
        lease.child,
        _pack(lease.spans),
        _pack(lease.bodies) if lease.bodies else None,
        lease.since,
        _pack(lease.admitted) if lease.admitted else None,
        lease.keys or None,
    )


def spans_of(rows: Iterable[Any]) -> Iterable[Span]:
    """Yield the spans of many leases, of which only those were read."""
    return (span for (packed,) in rows for span in unpack_spans(packed))


def slots_held(holders: Iterable[Any]) -> Counter[int]:
    """Return how many leases have a slot of which buckets, from (lease, what it was let in by)."""
    return Counter(one for _, packed in holders for one in _unpack_admitted(packed))


def with_a_slot_free(waiting: Iterable[Any], held: Mapping[int, int]) -> list[int]:
    """Return the buckets of which a slot is waited for and is free, from (bucket, waited so, slots)."""
    return [one for one, waits, slots in waiting if waits and (slots is None or held.get(one, 0) < slots)]


def add_holders(limits: Limits, holders: Iterable[Any]) -> None:
    """Enter which leases have slots of which buckets."""
    for lease, packed in holders:
        for one in _unpack_admitted(packed):
            limits.holders.setdefault(one, set()).add(lease)


def positions_of(rows: Iterable[Any]) -> list[Position]:
    """Return how far a group is in each log."""
    return [Position(log, cursor, end, stop, (), priority) for log, cursor, end, stop, priority in rows]


def outcome_of(row: Any) -> Outcome:
    """Return an outcome from its row."""
    pos, ending, value, at, until = row
    return Outcome(pos, ENDINGS[ending], value, at, until)  # type: ignore[arg-type]


def outcome_row(outcome: Outcome) -> tuple[Any, ...]:
    """Return the columns of an outcome, less its group."""
    return (outcome[0], _ENDING_NUMBER[outcome[1]], *outcome[2:])


def journal_rows(entries: Sequence[JournalEntry]) -> list[tuple[Any, ...]]:
    """Return the columns of journal entries, less their group, numbered in their order."""
    ns = time.time_ns()
    return [(entry[0], ns + i, *entry[1:]) for i, entry in enumerate(entries)]


def how_it_ended(ends: Collection[str]) -> str | None:
    """Return what the journal says of a record that is in no other place; None: nothing."""
    return next((how for how in _ENDS if how in ends), None)


def counts_of(
    pending: int, oldest: int | None, leases: Iterable[Lease], parked: Mapping[str, int], due: float | None
) -> Counts:
    """Return a group's counts.

    Parameters:
        oldest: the time of the oldest pending record, in microseconds.
    """
    owned = returned = limited = 0
    for lease in leases:
        if lease.owner == WAITING and lease.child == LIMITED:
            limited += count(lease.spans)
        elif not lease.owner:  # nobody's, or waiting for more
            returned += count(lease.spans)
        else:
            owned += count(lease.spans)
    by_reason = dict(parked)
    if limited:
        by_reason["limited"] = by_reason.get("limited", 0) + limited
    return Counts(pending, owned, returned, by_reason, oldest / 1e6 if oldest else None, due)


def in_micros(since: float | None, until: float | None) -> tuple[int, int]:
    """Return a window in time as times are stored: in microseconds."""
    low = -_EVER if since is None else int(since * _MICRO)
    return low, _EVER if until is None else int(until * _MICRO)


def append_in_parts(
    rows: Sequence[NewCall], parts: Iterable[Sequence[int]], append: Callable[[list[NewCall]], object]
) -> None:
    """Append rows part by part, each a statement of its own, given as places among the rows.

    Raises: PartlyAppended where parts before the one that fails are stored: of all of them it cannot be said
        that nothing was sent (P1).
    """
    stored: list[int] = []
    for part in parts:
        try:
            append([rows[n] for n in part])
        except PartlyAppended as error:
            places = [*stored, *(part[n] for n in error.places)]
            raise PartlyAppended(error.error, len(places), places) from error.error
        except RespoolError as error:
            if not stored:
                raise
            raise PartlyAppended(error, len(stored), stored) from error
        stored += part


def places_by_log(calls: Iterable[NewCall]) -> list[list[int]]:
    """Return where the calls of each log are among these, in their order."""
    sorted_: dict[int, list[int]] = {}
    for n, call in enumerate(calls):
        sorted_.setdefault(call.log, []).append(n)
    return list(sorted_.values())


def by_log(calls: Iterable[NewCall]) -> dict[int, list[NewCall]]:
    """Return calls by the log that they go to, in their order."""
    sorted_: dict[int, list[NewCall]] = {}
    for call in calls:
        sorted_.setdefault(call.log, []).append(call)
    return sorted_
