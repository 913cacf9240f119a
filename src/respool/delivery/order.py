"""Ordered groups: no two records of one key at once or out of order, retries included (P8, H13).

A record is *open* while it is leased or parked, but for a dead letter that holds up nobody. Of a key's open
records only the first may be granted, or several to one child, which runs them one after the other. What
comes to a key that is taken is parked as `blocked`, without a due time. When a key is free again, the first
of its blocked records becomes due. A due record whose key is taken by another, as after a redrive, is parked
as blocked too: so nothing that is due is looked at for nothing.

A partition is leased to one worker at a time; its children take different keys of it side by side. A lease
knows the key of each of its records.

Here stand the keys of leases, what an engine is to read for a claim, and what a settlement means for keys;
what a claim grants stands in `granting.py`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, repeat
from types import MappingProxyType

from .model import LIMITED, WAITING, Change, Lease, Parked, Position, View
from .spans import Span, intersect, joined, subtract

ROOM = 1000  # records of a partition that may be blocked; beyond that its cursor waits, visibly
NOTHING: Mapping[int, int] = MappingProxyType({})


# The keys of a lease: for each position of its spans, in their order, four bytes; 0 where there is none.


def packed_keys(spans: Iterable[Span], keys: Mapping[int, int]) -> bytes:
    """Return what a lease stores of its records' keys."""
    return array("I", map(keys.get, _places(spans), repeat(0))).tobytes()


def key_map(lease: Lease) -> dict[int, int]:
    """Return the key of each position of a lease, 0 where there is none."""
    keys = array("I")
    keys.frombytes(lease.keys)
    return dict(zip(_places(lease.spans), keys, strict=True))


def is_stopped(lease: Lease, now: float) -> bool:
    """Say whether a lease is of tasks that are stopped: nobody's, but its keys wait with it."""
    return lease.owner == WAITING and lease.child == LIMITED and lease.since > now


def stopped_keys(leases: Iterable[Lease]) -> frozenset[int]:
    """Return the keys of leases whose tasks are stopped.

    There may be many, and for long they are the same: so they are kept from one claim to the next.
    """
    return _united(tuple(lease.keys for lease in leases))


@lru_cache(maxsize=2)
def _united(packed: tuple[bytes, ...]) -> frozenset[int]:
    keys = array("I")
    keys.frombytes(b"".join(packed))
    return frozenset(keys) - {0}


def firsts(keyed: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Return the first position of each key, of pairs (position, key)."""
    found: dict[int, int] = {}
    for pos, key in keyed:
        if key:
            found[key] = min(found.get(key, pos), pos)
    return found


def _places(spans: Iterable[Span]) -> Iterator[int]:
    return chain.from_iterable(range(span.lo, span.hi) for span in spans)


def keys_of(lease: Lease) -> set[int]:
    """Return the keys that a lease has records of."""
    keys = array("I")
    keys.frombytes(lease.keys)
    return {*keys} - {0}


# What an engine is to read for a claim


class Claimant:
    """Who claims from an ordered group, and how much at most; `prefers`: logs, the best for it first."""

    __slots__ = ("child", "owner", "prefers", "room", "turn", "want")

    def __init__(
        self, owner: int, child: int, want: int, turn: int = 0, room: int = ROOM, prefers: Sequence[int] = ()
    ) -> None:
        self.owner, self.child, self.want, self.turn, self.room = owner, child, want, turn, room
        self.prefers = prefers


def choose(
    view: View, due: Iterable[int], settled: Sequence[int], who: Claimant
) -> list[tuple[Position, bool]]:
    """Return the logs that a claim may take from, and whether siblings hold some of them; the best first.

    A log of which another worker holds records is left out. Those of which no other child holds any come
    first, those among them that the claimant prefers, then beginning with another each turn.

    Parameters:
        view: with positions, and the group's leases in its `order`.
        due: logs in which something parked may be due. settled: leases that are settled in this transaction.
    """
    assert view.order is not None
    others, shared = _held_by_others(view.order.leases, who, settled)
    given_back = {
        log
        for lease in view.order.leases
        if not lease.owner or lease.id in settled  # what is left of that may be given back
        for log in _logs(lease)
    }
    wanted = {*due, *given_back}
    logs = [at for at in view.positions if at.log not in others and (_unread(at) or at.log in wanted)]
    turn = who.turn % len(logs) if logs else 0
    liked = {log: n for n, log in enumerate(who.prefers)}
    return sorted(
        ((at, at.log in shared) for at in (*logs[turn:], *logs[:turn])),
        key=lambda chosen: (chosen[1], liked.get(chosen[0].log, len(liked))),
    )


class Filling:
    """Counts what is read for a claim, and may be granted, as far as that can be told without deciding it.

    Parameters:
        view: with all of the group's leases in its `order`.
        settled: leases that are settled in this transaction.
    """

    def __init__(self, view: View, settled: Sequence[int], who: Claimant) -> None:
        assert view.order is not None
        self._order, self._who = view.order, who
        owned = [each for each in view.order.leases if each.owner and each.id not in settled]
        self._taken = set[int]().union(*map(keys_of, owned)), stopped_keys(view.order.stopped)
        self._free = 0

    def enough(self, logs: Iterable[int]) -> bool:
        """Take in what was read of some more logs; say whether all that was read fills a lease."""
        self._free += sum(map(self._free_of, logs))
        return self._free >= self._who.want

    def _free_of(self, log: int) -> int:
        """Return how many records are of keys that are free, up to where the cursor waits for room (H13)."""
        rows = self._order.ahead.get(log, ())
        keys = {key for _, key in rows}
        busy = keys & self._order.waiting.keys()
        for taken in self._taken:
            busy |= keys & taken
        if not busy:
            return len(rows)
        free, room = 0, self._who.room - self._order.blocked.get(log, 0)
        for _, key in rows:
            if key is None or key not in busy:
                free += 1
            elif room:
                room -= 1
            else:
                break
        return free


def _held_by_others(
    leases: Iterable[Lease], who: Claimant, settled: Sequence[int]
) -> tuple[set[int], set[int]]:
    """Return the logs of which another worker holds records, and those of which a sibling does."""
    others: set[int] = set()
    shared: set[int] = set()
    for lease in leases:
        if lease.owner and lease.id not in settled:
            (shared if lease.owner == who.owner else others).update(_logs(lease))
    return others, shared


def _logs(lease: Lease) -> set[int]:
    return {span.lo >> 40 for span in lease.spans}


def _unread(at: Position) -> int:
    return max((at.end if at.stop is None else min(at.end, at.stop)) - at.cursor, 0)


def asked_keys(view: View) -> set[int]:
    """Return the keys of whose parked records a decision needs to know."""
    order = view.order
    found = {abs(parked.key) for parked in view.due if parked.key}
    for lease in (*view.leases.values(), *view.returned):
        found |= keys_of(lease)
    if order is not None:
        for lease in order.leases:
            if not lease.owner:
                found |= keys_of(lease)
        for rows in order.ahead.values():
            found.update(key for _, key in rows if key)
    return found


# Taking back


def sort_out(
    view: View,
    change: Change,
    lease: Lease,
    left: list[Span],
    since: int,
    now: float,
    limited: Sequence[Span] = (),
) -> list[Span]:
    """Decide what a settlement means for a lease's keys; return what stays in it.

    What is left of a key of which a record was parked is blocked behind that. Of keys that are free again,
    the first that waits becomes due.

    Parameters:
        since: how many records were parked in this change before the settlement.
        limited: of which the tasks are stopped: they hold up only what comes after them.
    """
    parked = change.parked[since:]
    stopped = {each.key for each in parked if each.key and each.key > 0}
    if not left and not stopped:  # the usual case
        free(keys_of(lease), view, change, now)
        return left
    keys = key_map(lease)
    if stopped:
        left = _block(change, lease, left, keys, stopped, now)
    cuts = [(span.lo, span.hi) for span in limited]
    staying = {keys[pos] for pos in _places(subtract(left, cuts))}
    stopped_at = firsts((pos, keys[pos]) for pos in _places(intersect(left, cuts)))
    free({*keys.values()} - staying - {0}, view, change, now, stopped_at)
    return left


def _block(
    change: Change, lease: Lease, spans: Iterable[Span], keys: Mapping[int, int], taken: set[int], now: float
) -> list[Span]:
    """Park as blocked what is of keys that are taken; return the rest."""
    rest: list[Span] = []
    for span in spans:
        for pos in range(span.lo, span.hi):
            one = span.part(pos, pos + 1)
            if keys[pos] not in taken:
                rest.append(one)
                continue
            history = one.retries, one.deliveries, one.redrives, one.alone
            change.parked.append(
                Parked(pos, "blocked", None, "", *history, lease.bodies.get(pos), None, now, key=keys[pos])
            )
    return joined(rest)


def free(
    keys: set[int], view: View, change: Change, now: float, stopped_at: Mapping[int, int] = NOTHING
) -> None:
    """Of keys that nobody holds any more: where the first that waits is blocked, make it due.

    Parameters:
        stopped_at: of some keys, the first position whose task is stopped: what comes after waits for it.
    """
    if not keys or (view.order is None and not change.parked):
        return
    parked_now: dict[int, dict[int, Parked]] = {}
    for parked in change.parked:
        if parked.key is not None and parked.key in keys:
            parked_now.setdefault(parked.key, {})[parked.pos] = parked
    waiting = view.order.waiting if view.order is not None else {}
    gone = {*change.unparked}
    for key in keys & {*waiting, *parked_now}:
        rows = {parked.pos: parked for parked in waiting.get(key, ()) if parked.pos not in gone}
        rows |= parked_now.get(key, {})
        first = rows[min(rows)] if rows else None
        if first is None or first.pos > stopped_at.get(key, first.pos):
            continue
        if first.reason == "blocked" and first.due is None:
            change.parked.append(first._replace(due=now))


def give_back_in_order(
    change: Change, lease: Lease, given: list[Span], left: list[Span], now: float
) -> list[Span]:
    """Return what of a part of a lease may go to others; what is of a key that the rest has is blocked."""
    keys = key_map(lease)
    staying = {keys[pos] for span in left for pos in range(span.lo, span.hi)} - {0}
    return _block(change, lease, given, keys, staying, now)
