"""What a claim grants of an ordered group: what is open of keys that are free, and what is new.

What order means stands in `order.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from .model import Change, Lease, Parked, Position, View
from .order import firsts, is_stopped, key_map, keys_of, packed_keys, stopped_keys
from .spans import Span, joined

if TYPE_CHECKING:
    from .claim import Request


class _Item:
    """One open record that could be granted."""

    __slots__ = ("alone", "body", "key", "parked", "pos", "source", "span")

    def __init__(self, span: Span, key: int, parked: Parked | None, source: Lease | None) -> None:
        self.span, self.key, self.parked, self.source = span, key, parked, source
        self.pos, self.alone = span.lo, span.alone
        self.body = parked.body if parked is not None else source.bodies.get(span.lo) if source else None


class _Grant:
    """A lease in the making."""

    def __init__(self, view: View, change: Change, request: Request, room: int) -> None:
        assert view.order is not None
        self.view, self.change, self.request, self.order = view, change, request, view.order
        self.room = room
        self.spans: list[Span] = []
        self.keys: dict[int, int] = {}
        self.bodies: dict[int, bytes] = {}
        self.taken: dict[int, set[int]] = {}  # by returned lease
        gone = {*change.dropped_leases, *(lease.id for lease in change.leases)}
        now = [lease for lease in self.order.leases if lease.id not in gone]
        stopped = [lease for lease in self.order.stopped if lease.id not in gone]
        for lease in change.leases:
            (stopped if is_stopped(lease, request.now) else now).append(lease)
        self.returned = [lease for lease in now if not lease.owner]
        self.held = set().union(*(keys_of(lease) for lease in now if lease.owner))
        self._stopped, self.stopped = stopped, stopped_keys(stopped)
        self.open: dict[int, int] = {}  # by key: open records that this lease does not have
        self.parked_now = {parked.pos: parked for parked in change.parked}

    def size(self) -> int:
        return len(self.keys)

    @cached_property
    def firsts(self) -> dict[int, int]:
        """The first position of each key that waits with its task, and all after it."""
        return firsts(pair for lease in self._stopped for pair in key_map(lease).items())

    # What is open

    def chains(self) -> list[list[_Item]]:
        """Return what could be granted of what is open: of each key, in order, as far as it may go now.

        Those whose first is due come first, the earliest before the others, then what was given back.
        """
        logs = {*self.order.claimed}
        items: dict[int, list[_Item]] = {}
        alone_in_order: list[list[_Item]] = []
        for lease in self.returned:
            keys = key_map(lease) if lease.keys else {}
            for span in lease.spans:
                if span.lo >> 40 in logs:
                    for pos in range(span.lo, span.hi):
                        item = _Item(span.part(pos, pos + 1), keys.get(pos, 0), None, lease)
                        if item.key:
                            items.setdefault(item.key, []).append(item)
                        else:
                            alone_in_order.append([item])
        due = {parked.pos for parked in self.view.due}
        for parked in self.view.due:
            if parked.pos >> 40 in logs:
                key = parked.key or 0
                if key:
                    items.setdefault(key, [])
                else:
                    alone_in_order.append([_Item(parked.span(), 0, parked, None)])
        for parked in self.parked_now.values():
            if parked.key and parked.reason == "blocked" and parked.due and parked.pos >> 40 in logs:
                items.setdefault(parked.key, [])  # became due in this very transaction
        for key, chain in items.items():
            for parked in self.waiting(key):
                chain.append(_Item(parked.span(), key, parked, None))
            chain.sort(key=lambda item: item.pos)
        now = {parked.key for parked in self.parked_now.values() if parked.key and parked.key > 0}
        self.open = {key: len(self.waiting(key)) for key in {*self.order.waiting, *now}}
        self.open |= {key: len(chain) for key, chain in items.items()}
        free = [self._free(key, chain, due) for key, chain in items.items()]
        found = [chain for chain in (*alone_in_order, *free) if chain]
        return sorted(found, key=lambda chain: (chain[0].parked is None, _due(chain[0]), chain[0].pos))

    def waiting(self, key: int) -> list[Parked]:
        """Return what is parked of a key, with what this transaction parks."""
        rows = {parked.pos: parked for parked in self.order.waiting.get(key, ())}
        rows |= {pos: parked for pos, parked in self.parked_now.items() if parked.key == key}
        return [rows[pos] for pos in sorted(rows)]

    def _free(self, key: int, chain: list[_Item], due: set[int]) -> list[_Item]:
        """Return those of a key's open records that may go, in order; block what is due and may not."""
        stop = 0
        if key not in self.held:
            first = self.firsts[key] if key in self.stopped else math.inf
            while stop < len(chain) and chain[stop].pos < first and self._may_go(chain[stop], due):
                stop += 1
        for item in chain[stop:]:
            if item.parked is not None and item.pos in due:
                self.change.parked.append(item.parked._replace(reason="blocked", due=None))
        return chain[:stop]

    def _may_go(self, item: _Item, due: set[int]) -> bool:
        """Say whether one may go where nothing of its free key is open before it, but for what goes along."""
        parked = item.parked
        if parked is None or parked.reason == "blocked":
            return True
        return item.pos in due and item.pos not in self.parked_now

    # Taking

    def take_open(self, chains: list[list[_Item]], want: int) -> None:
        """Take from the chains, in their order, up to so many records."""
        while chains and want > 0:
            chain = chains[0]
            while chain and want > 0 and not chain[0].alone:
                self.take(chain.pop(0))
                want -= 1
            if not chain or chain[0].alone:
                chains.pop(0)

    def take(self, item: _Item) -> None:
        if item.key:
            self.open[item.key] -= 1
        self.spans.append(item.span)
        self.keys[item.pos] = item.key
        if item.body is not None:
            self.bodies[item.pos] = item.body
        if item.source is not None:
            self.taken.setdefault(item.source.id, set()).add(item.pos)
        else:
            self.change.unparked.append(item.pos)
            if item.pos in self.parked_now:
                self.change.parked[:] = [each for each in self.change.parked if each.pos != item.pos]

    def take_new(self, want: int) -> int:
        """Advance the cursors past what is granted; what lies between and may not go yet is blocked."""
        busy = self.held | {key for key, more in self.open.items() if more}
        at = {position.log: position for position in self.view.positions}
        left = want
        for log in self.order.claimed:
            if left <= 0:
                break
            left -= self._take_from(at[log], left, busy)
        return want - left

    def _take_from(self, at: Position, want: int, busy: set[int]) -> int:
        rows = self.order.ahead.get(at.log, ())
        if at.stop is not None:
            rows = [row for row in rows if row[0] < at.stop]
        if not rows or want <= 0:
            return 0
        quick = rows[:want]
        if not at.missing and quick[-1][0] - at.cursor == len(quick) - 1:
            keys = {pos: key or 0 for pos, key in quick}
            if busy.isdisjoint(keys.values()) and self.stopped.isdisjoint(keys.values()):
                self._grant_range(at, at.cursor, quick[-1][0] + 1, keys)
                return len(quick)
        return self._pick(at, rows, want, busy)

    def _grant_range(self, at: Position, lo: int, hi: int, keys: dict[int, int]) -> None:
        self.spans.append(Span(lo, hi))
        self.keys.update(keys)
        self.change.cursors.append((at.log, hi))

    def _pick(self, at: Position, rows: Sequence[tuple[int, int | None]], want: int, busy: set[int]) -> int:
        """Take record by record: some are of keys that are taken, or numbers are missing between (G4)."""
        room = self.room - self.order.blocked.get(at.log, 0)
        gap_room, cursor, following, taken = self.view.gap_room, at.cursor, at.cursor, 0
        blocked: list[Parked] = []
        gaps: list[tuple[int, int]] = []
        empty: list[tuple[int, int]] = []  # positions that never get a record: they go along
        for pos, key in rows:
            if pos > following:
                (gaps if at.missing else empty).append((following, pos))
            following = pos + 1
            if key and (key in busy or key in self.stopped):
                if len(blocked) == room:
                    break
                blocked.append(Parked(pos, "blocked", None, "", at=self.request.now, key=key))
                continue
            if len(gaps) > gap_room:
                break
            self.spans += [Span(lo, hi) for lo, hi in (*empty, (pos, pos + 1))]
            self.keys[pos] = key or 0
            self.change.parked += blocked
            self.change.gaps += gaps
            room, gap_room = room - len(blocked), gap_room - len(gaps)
            blocked, gaps, empty, cursor = [], [], [], following
            taken += 1
            if taken == want:
                break
        if cursor > at.cursor:
            self.change.cursors.append((at.log, cursor))
        self.view.gap_room = gap_room
        return taken

    def lease(self) -> Lease | None:
        """Return the lease, and leave the rest where it was; None where nothing could be granted."""
        if not self.spans:
            return None
        spans = joined(self.spans)
        request = self.request
        for source in self.returned:
            if source.id in self.taken:
                self._leave(source, self.taken[source.id])
        keys = packed_keys(spans, self.keys)
        lease = Lease(request.lease, request.owner, request.child, spans, self.bodies, request.now, keys=keys)
        self.change.leases.append(lease)
        return lease

    def _leave(self, source: Lease, taken: set[int]) -> None:
        change, keys = self.change, key_map(source) if source.keys else {}
        change.leases[:] = [lease for lease in change.leases if lease.id != source.id]
        rest = [
            span.part(pos, pos + 1)
            for span in source.spans
            for pos in range(span.lo, span.hi)
            if pos not in taken
        ]
        if not rest:
            change.dropped_leases.append(source.id)
            return
        spans = joined(rest)
        bodies = {pos: body for pos, body in source.bodies.items() if pos not in taken}
        known = packed_keys(spans, keys)
        change.leases.append(
            Lease(source.id, source.owner, source.child, spans, bodies, source.since, keys=known)
        )


def _due(item: _Item) -> float:
    return (item.parked.due or 0.0) if item.parked is not None else 0.0


def claim_in_order(view: View, change: Change, request: Request, want: int) -> Lease | None:
    """Grant up to `want` records of an ordered group; None where none may go now."""
    assert request.ordered is not None
    grant = _Grant(view, change, request, request.ordered.room)
    chains = grant.chains()
    alone = next((chain[0] for chain in chains if chain[0].alone), None)
    if alone is not None and request.turn % 2 == 0:
        grant.take(alone)
        return grant.lease()
    together = sum(len(chain) for chain in chains if not chain[0].alone)
    ahead = sum(len(rows) for rows in grant.order.ahead.values())
    from_open = _open_share(want, together, ahead, request.turn)
    grant.take_open(chains, from_open)
    grant.take_new(want - grant.size())
    grant.take_open(chains, want - grant.size())
    if alone is not None and not grant.spans:
        grant.take(alone)
    return grant.lease()


def _open_share(want: int, is_open: int, ahead: int, turn: int) -> int:
    """Return how much of a lease goes to what is open: two thirds, and what is new leaves (H11)."""
    if not ahead:
        return want
    if want == 1:
        return int(turn % 3 != 2)
    return max(want - want // 3, want - ahead) if is_open else 0
