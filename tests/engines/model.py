"""A naive model of logs and groups: lists and dicts, one record at a time.

It knows nothing of spans, cursors, views or changes. What an engine and the delivery core make of the same
events is compared with it, record by record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from respool.delivery.death import Cause, Suspect
from respool.delivery.lapse import LOST
from respool.delivery.model import LIMITED, WAITING, Lease, NewCall, Outcome, Parked, Settlement, Verdict
from respool.delivery.spans import Span
from respool.engines.base import Counts
from respool.record import first_pos, log_of


class Entry(NamedTuple):
    """What the journal says of one record, times left out."""

    how: str
    retries: int
    owner: int | None
    child: int


TERMINAL = ("done", "purged", "skipped", "trimmed", "rewound")
"""How a record can end that leaves nothing but the journal to tell of it."""


LIVE = ("rewound", "retry", "scheduled", "redriven", "lost", "unknown", "blocked", "limited", "returned")
"""What the journal can say of a record that is not ended by it."""


@dataclass
class Item:
    """One record in one group."""

    place: str = "pending"  # pending, leased, parked, done
    lease: int = 0
    retries: int = 0
    deliveries: int = 0
    redrives: int = 0
    alone: bool = False
    until: float = 0.0
    body: bytes | None = None
    parked: Parked | None = None
    outcome: Outcome | None = None
    progress: bytes | None = None
    journal: list[Entry] = field(default_factory=list)
    key: int | None = None  # in an ordered group

    def note(self, how: str, owner: int | None = None, child: int = 0) -> None:
        self.journal.append(Entry(how, self.retries, owner, child))

    def park(
        self,
        pos: int,
        reason: Any,
        due: float | None,
        task: str,
        error: bytes | None,
        at: float,
        *,
        holds: bool = False,
    ) -> None:
        self.place, self.until = "parked", 0.0
        self.parked = Parked(
            pos,
            reason,
            due,
            task,
            self.retries,
            self.deliveries,
            self.redrives,
            self.alone,
            self.body,
            error,
            at,
            key=-self.key if self.key and reason == "dead" and not holds else self.key,
        )

    @property
    def open(self) -> bool:
        """Whether it holds up what comes after it of its key."""
        return self.place == "leased" or (
            self.parked is not None and self.parked.key is not None and self.parked.key > 0
        )

    def last_word(self) -> str | None:
        """Return how it ended, as far as the journal alone can tell."""
        return next((entry.how for entry in reversed(self.journal) if entry.how in TERMINAL), None)


class LogModel:
    """The records of some logs, by position.

    With `holes`, a known id leaves one where others follow, unless it is that of a run's member: not the
    first of it.
    """

    def __init__(self, logs: Iterable[int], *, holes: bool) -> None:
        self.holes = holes
        self.ends = {log: first_pos(log) for log in logs}
        self.rows: dict[int, tuple[str, bytes, bytes | str, float]] = {}
        self.ids: dict[bytes | str, int] = {}
        self.keys: dict[int, int] = {}

    def append(self, calls: Sequence[NewCall]) -> list[int]:
        """Append calls of any logs, those of one log together; return the positions that are new."""
        before = dict(self.ends)
        for log in dict.fromkeys(call.log for call in calls):
            pos = self.ends[log]
            for call in (c for c in calls if c.log == log and not self._is_member(c.id)):
                is_new = call.id not in self.ids
                if is_new:
                    self._put(pos, call.task, call.body, call.id, call.time)
                    if call.key is not None:
                        self.keys[pos] = call.key
                pos += is_new or self.holes
        return [pos for log, end in self.ends.items() for pos in range(before[log], end)]

    def _is_member(self, id: bytes | str) -> bool:
        return isinstance(id, bytes) and id in self.ids and not id.endswith(b"\0\0\0")

    def append_run(self, log: int, task: str, bodies: Sequence[bytes], head: bytes, now: float) -> list[int]:
        if head in self.ids:
            return []
        base = self.ends[log]
        for seq, body in enumerate(bodies):
            id = head[:13] + seq.to_bytes(3, "big")
            self._put(base + seq, task, body, id, now)
        return list(range(base, base + len(bodies)))

    def _put(self, pos: int, task: str, body: bytes, id: bytes | str, time: float) -> None:
        self.rows[pos] = (task, body, id, int(time * 1_000_000) / 1_000_000)
        self.ids[id] = pos
        self.ends[log_of(pos)] = pos + 1


class Offer(NamedTuple):
    """What a claim may choose from."""

    due: set[int]
    returned: set[int]
    new: set[int]
    alone: set[int]  # of these, to be granted singly
    waiting: frozenset[int] = frozenset()  # of these, for more to run with: not granted without any others


class GroupModel:
    """One group: each record in one place."""

    def __init__(
        self,
        bounds: dict[int, tuple[int, int | None]],
        lanes: dict[int, int],
        log: LogModel | None = None,
    ) -> None:
        self.log = log  # where the group is ordered
        self.keys = None if log is None else log.keys
        self.bounds = bounds  # log -> first position, one past the last
        self.lanes = lanes  # log -> priority, where it is not the middle
        self.passed: Counter[tuple[Any, int]] = Counter()  # by who claims, and lane: claims in a row
        self.items: dict[int, Item] = {}
        self.owners: dict[int, tuple[int | None, int]] = {}  # lease -> owner, child
        self.since: dict[int, float] = {}  # of those that wait: until when
        self.counted: Counter[str] = Counter()

    def add(self, positions: Iterable[int]) -> None:
        """Take in records that were appended."""
        for pos in positions:
            if self.reads(pos):
                self.items[pos] = Item(key=None if self.keys is None else self.keys.get(pos))

    def reads(self, pos: int) -> bool:
        first, stop = self.bounds.get(log_of(pos), (pos + 1, None))
        return pos >= first and (stop is None or pos < stop)

    def at(self, place: str) -> dict[int, Item]:
        return {pos: item for pos, item in sorted(self.items.items()) if item.place == place}

    def held(self, lease: int) -> list[int]:
        return [pos for pos, item in self.at("leased").items() if item.lease == lease]

    # Claiming

    def offer(self, now: float, tasks: Sequence[str]) -> Offer:
        due = {pos for pos, item in self.at("parked").items() if _may_go(item.parked, now, tasks)}
        returned = {
            pos
            for pos, item in self.at("leased").items()
            if not self.owners[item.lease][0]
            and not (self.is_limited(item.lease) and self.since[item.lease] > now)
        }
        alone = {pos for pos in due | returned if self.items[pos].alone}
        waiting = frozenset(pos for pos in returned if self.waits_until(self.items[pos].lease) > now)
        return Offer(due, returned, set(self.at("pending")), alone, waiting)

    def is_limited(self, lease: int) -> bool:
        return self.owners[lease] == (WAITING, LIMITED)

    def release(self) -> None:
        for lease in self.owners:
            if self.is_limited(lease):
                self.since[lease] = 0.0

    def waits_until(self, lease: int) -> float:
        return self.since[lease] if self.owners[lease][0] == WAITING else 0.0

    def lane(self, pos: int) -> int:
        return self.lanes.get(log_of(pos), 4)

    def grant(self, lease: Lease | None, offer: Offer, want: int, turn: int) -> None:
        """Check that what was granted could be, and that nobody was passed over; then move it."""
        every = offer.due | offer.returned | offer.new
        if lease is None:
            assert not every - offer.waiting, "there was work, and none was granted"
            return
        assert self.keys is None
        lanes = {self.lane(pos) for pos in every - offer.waiting}
        chosen = self.lane(lease.spans[0].lo)
        self._check_lane((lease.owner, lease.child), chosen, lanes)
        if chosen != max(lanes):
            want = max(want // 4, 1)
        offer = Offer(*({pos for pos in source if self.lane(pos) == chosen} for source in offer))
        every = offer.due | offer.returned | offer.new
        granted = list(positions_of(lease))
        assert granted, "an empty lease"
        assert len(granted) == len(set(granted)), "granted twice in one lease"
        assert set(granted) <= every, "granted what could not be"
        assert every - offer.waiting, "what waits for more was granted with nothing more"
        self._check_share(set(granted), offer, want, turn)
        for span in lease.spans:
            for pos in range(span.lo, span.hi):
                self._grant_one(pos, span[2:], lease)
        self.owners[lease.id] = (lease.owner, lease.child)
        self._tidy()

    def _check_lane(self, who: Any, chosen: int, lanes: set[int]) -> None:
        """The first lane is served, or one that it made wait; none is passed over for ever (H11)."""
        if chosen != max(lanes):
            assert self.passed[who, chosen] >= 4, "a lane was served before a higher one, and not in its turn"
        for lane in lanes:
            self.passed[who, lane] = 0 if lane == chosen else self.passed[who, lane] + 1
            assert lane == max(lanes) or self.passed[who, lane] <= 4 * 10 + 10, "a lane starves (H11)"

    def _check_share(self, granted: set[int], offer: Offer, want: int, turn: int) -> None:
        others = (offer.returned | offer.new) - offer.alone
        if granted & offer.alone:
            assert len(granted) == 1, "what is to run alone was granted with others"
            return
        assert not (offer.alone & offer.returned and turn % 2 == 0), "a suspect was passed over in its turn"
        assert len(granted) <= want
        if offer.alone:
            assert others or offer.due - offer.alone
            return
        assert len(granted) == min(want, len(offer.due) + len(offer.returned) + len(offer.new))
        for source in offer[:3]:
            assert len(granted & source) >= min(len(source), want // 3), "one source starved another (H11)"

    def _grant_one(self, pos: int, history: tuple[Any, ...], lease: Lease) -> None:
        item = self.items[pos]
        if item.place == "pending":
            first = min(p for p in self.at("pending") if log_of(p) == log_of(pos))
            assert pos == first, "granted out of order"
        assert history == (item.retries, item.deliveries, item.redrives, item.alone, item.until)
        assert lease.bodies.get(pos) == item.body
        item.place, item.lease, item.parked = "leased", lease.id, None

    # Order (P8)

    def of_key(self, key: int | None) -> list[int]:
        """Return what is open of a key, in its order."""
        return [pos for pos, item in sorted(self.items.items()) if item.open and item.key == key]

    def running(self) -> set[int]:
        """Return the keys of which somebody holds a record."""
        leased = self.at("leased").values()
        return {item.key for item in leased if item.key and self.owners[item.lease][0]}

    def grant_in_order(
        self,
        lease: Lease | None,
        offer: Offer,
        who: tuple[int, int],
        want: int,
        room: int,
        *,
        sure: bool,
    ) -> None:
        """Check that what was granted comes next of its key, and nothing else runs of it; then move it."""
        assert self.keys is not None
        if lease is None:
            could = {pos: self.items[pos] for pos in self._next(offer, who[0], room)}
            assert not could or not sure, "something could go, and nothing was granted"
            return
        granted, running = list(positions_of(lease)), self.running()
        assert granted == sorted(set(granted)), "not in the order of positions"
        alone = [pos for pos in granted if self.items[pos].alone]
        assert not alone or len(granted) == 1, "what is to run alone was granted with others"
        before: set[int] = set()
        for pos in granted:
            item = self.items[pos]
            assert pos in offer.due | offer.returned | offer.new or self._follows(item), (
                "granted what could not be"
            )
            owner = self.lease_owner_of_log(pos)
            assert owner in (None, who[0]), "two workers in one partition"
            if item.key is not None:
                assert item.key not in running, "two of one key at once"
                behind = [each for each in self.of_key(item.key) if each < pos and each not in before]
                assert not behind, "out of order"
            before.add(pos)
        real = [pos for pos in granted if self.items[pos].key or self.items[pos].place != "pending"]
        assert len(real) <= want
        for log in {log_of(pos) for pos in granted}:
            self._pass_over(log, {*granted}, running)
        for span in lease.spans:
            for pos in range(span.lo, span.hi):
                item = self.items[pos]
                assert span[2:] == (item.retries, item.deliveries, item.redrives, item.alone, item.until)
                assert lease.bodies.get(pos) == item.body
                item.place, item.lease, item.parked = "leased", lease.id, None
        self.owners[lease.id] = (lease.owner, lease.child)
        self._tidy()

    def lease_owner_of_log(self, pos: int) -> int | None:
        """Return who holds records of a partition."""
        for each, item in self.at("leased").items():
            if log_of(each) == log_of(pos) and self.owners[item.lease][0]:
                return self.owners[item.lease][0]
        return None

    def _follows(self, item: Item) -> bool:
        return item.parked is not None and item.parked.reason == "blocked"

    def _pass_over(self, log: int, granted: set[int], running: set[int]) -> None:
        """What the cursor has passed without granting it is of a key that was taken, and waits for it."""
        new = [pos for pos, item in self.items.items() if item.place == "pending" and log_of(pos) == log]
        last = max((pos for pos in new if pos in granted), default=0)
        for pos in sorted(new):
            item = self.items[pos]
            if pos < last and pos not in granted:
                assert item.key, "passed over, and of no key"
                others = [each for each in self.of_key(item.key) if each not in granted]
                before = [each for each in self.of_key(item.key) if each in granted and each < pos]
                assert item.key in running or others or before, "passed over, though its key was free"
                item.place = "to be blocked"

    def _next(self, offer: Offer, owner: int, room: int) -> list[int]:
        """Return what a worker could be granted now."""
        running = self.running()
        mine = {log for log in self.bounds if self.lease_owner_of_log(first_pos(log)) in (None, owner)}

        def may(pos: int) -> bool:
            key = self.items[pos].key
            if log_of(pos) not in mine:
                return False
            return key is None or (key not in running and not [p for p in self.of_key(key) if p < pos])

        found = [pos for pos in offer.due | offer.returned if may(pos)]
        for log in mine:
            blocked = [pos for pos, item in self.items.items() if log_of(pos) == log and self._follows(item)]
            left = room - len(blocked)
            for pos in sorted(pos for pos in offer.new if log_of(pos) == log):
                key = self.items[pos].key
                if self.log is not None and pos not in self.log.rows:
                    continue  # left empty: it goes with the next
                if not (key and (key in running or self.of_key(key))):
                    found.append(pos)
                    break
                left -= 1
                if left < 0:
                    break  # the cursor waits
        return found

    def take_in_blocked(self, parked: dict[int, Parked], now: float) -> None:
        """Take over what the core has blocked or freed since, where that is as it should be."""
        if self.keys is None:
            return
        for pos, each in parked.items():
            item = self.items[pos]
            if each.reason != "blocked" or item.parked == each:
                continue
            assert item.key, "blocked, and of no key"
            assert (item.retries, item.deliveries, item.redrives, item.alone) == each.span()[2:6]
            assert item.body == each.body
            before = [p for p in self.of_key(item.key) if p < pos]
            if each.due is None:
                assert before or item.key in self.running(), "blocked by nothing"
            item.place, item.parked, item.until = "parked", each, 0.0
        self._tidy()
        assert not [pos for pos, item in self.items.items() if item.place == "to be blocked"]

    def check_order(self) -> None:
        """P8: of a key one lease at most is held; what is free to go is not left waiting."""
        if self.keys is None:
            return
        for key in {item.key for item in self.items.values() if item.key}:
            leases = {self.items[pos].lease for pos in self.of_key(key) if self.items[pos].place == "leased"}
            owned = [lease for lease in leases if self.owners[lease][0]]
            assert len(owned) <= 1, "two hold records of one key"
            waiting = self.of_key(key)
            if waiting and all(self.is_limited(lease) for lease in leases):
                first = self.items[waiting[0]]
                assert first.parked is not None or leases
                blocked = first.parked is not None and first.parked.reason == "blocked"
                assert not blocked or first.parked.due is not None, "blocked, and by nothing"

    # Taking back

    def settle(self, settlement: Settlement) -> list[NewCall] | None:
        """Return the calls that are sent with it; None where the lease is not that owner's."""
        owner, child = self.owners.get(settlement.lease, (None, 0))
        if owner is None or owner != settlement.owner:
            self.counted["refused settlements"] += 1
            return None
        held = self.held(settlement.lease)
        ended = [pos for pos in held if any(lo <= pos < hi for lo, hi in settlement.done)]
        verdicts = {verdict.pos: verdict for verdict in settlement.verdicts}
        for pos in ended:
            self._end(pos, verdicts.get(pos), settlement, child)
        for pos, value in settlement.results:
            if pos in ended:
                self.items[pos].outcome = Outcome(pos, "success", value, settlement.ended)
        stopped = {self.items[pos].key for pos in ended if self.items[pos].key and self.items[pos].open}
        for pos in self.held(settlement.lease):
            if self.items[pos].key in stopped:
                self.items[pos].place = "to be blocked"
        self._let_wait(settlement.lease, settlement.waits, settlement.waits_as, child)
        self._let_wait(settlement.lease, settlement.limited, settlement.limited_as, LIMITED)
        if settlement.release:
            self.owners[settlement.lease] = (None, child)
        self._tidy()
        return [call for v in settlement.verdicts if v.pos in ended for call in v.calls]

    def _let_wait(self, lease: int, waits: Iterable[Span], number: int, child: int) -> None:
        untils = []
        for wait in waits:
            for pos in set(self.held(lease)) & set(range(wait.lo, wait.hi)):
                self.items[pos].lease, self.items[pos].until = number, wait.until
                self.owners[number] = (WAITING, child)
                untils.append(wait.until)
        if untils:
            self.since[number] = min(untils)

    def _end(self, pos: int, verdict: Verdict | None, settlement: Settlement, child: int) -> None:
        item = self.items[pos]
        item.place = "done"
        if verdict is None:
            item.note("done", settlement.owner, child)
            return
        at = verdict.ended or settlement.ended
        if verdict.note is not None or verdict.skipped:
            item.note((verdict.note or "skipped").partition(":")[0], settlement.owner, child)
        elif verdict.reason is None:
            item.note("done", settlement.owner, child)
        if verdict.ending is not None and not (verdict.ending == "success" and verdict.quiet):
            until = None if verdict.ttl is None else at + verdict.ttl
            item.outcome = Outcome(pos, verdict.ending, verdict.value, at, until)
        if verdict.progressed:
            item.progress = None
        self._count("skipped", verdict.skipped)
        self._count("calls dropped", verdict.dropped)
        if verdict.reason is not None:
            item.retries += verdict.retried
            item.deliveries += verdict.charge
            item.body = item.body if verdict.body is None else verdict.body
            item.park(pos, verdict.reason, verdict.due, verdict.task, verdict.error, at, holds=verdict.holds)

    def _count(self, name: str, by: int) -> None:
        if by:
            self.counted[name] += by

    def give_back(self, lease: int, positions: Iterable[int], new: int) -> int:
        back = sorted(set(positions) & set(self.held(lease)))
        for pos in back:
            self.items[pos].lease = new
            self.owners[new] = (None, self.owners[lease][1])
        self._tidy()
        return len(back)

    # Deaths

    def bury(
        self,
        lease: int,
        owner: int,
        cause: Cause,
        finished: Settlement | None,
        suspects: list[Suspect],
        now: float,
    ) -> list[NewCall] | None:
        """Return the calls that the finished runs made; None where the lease is not that owner's."""
        if owner != self.owners.get(lease, (None, 0))[0]:
            return None
        calls = (self.settle(finished) if finished else None) or []
        if lease not in self.owners:
            return calls
        child = self.owners[lease][1]
        for pos in self.held(lease):
            suspect = next((each for each in suspects if each.pos == pos), None)
            if suspect is not None and len(suspects) > 1 and suspect.max_deliveries > 1:
                self.items[pos].note("lost", owner, child)
                self.items[pos].progress = None
                self.items[pos].alone |= cause is not Cause.ORDERED  # none of a batch is to blame alone
            elif suspect is not None:
                self._blame(pos, owner, child, cause, suspect, now)
            elif not suspects and cause is Cause.WORKER:
                item = self.items[pos]
                item.deliveries += item.alone  # it had been granted singly: no other can have been it (H6)
                item.alone = True
        self.owners[lease] = (None, child)
        self._tidy()
        return calls

    def _blame(self, pos: int, owner: int, child: int, cause: Cause, suspect: Suspect, now: float) -> None:
        item = self.items[pos]
        item.progress = None
        once = suspect.max_deliveries <= 1
        charged = cause is Cause.CHILD or (cause is Cause.WORKER and item.alone)
        if once:
            item.deliveries = max(item.deliveries, 1)  # charged before it ran, as a rule (H7)
        elif charged:
            item.deliveries += 1
        item.note("lost", owner, child)
        if once or (charged and item.deliveries >= suspect.max_deliveries):
            item.outcome = Outcome(pos, "failure", suspect.error, now)
            item.park(pos, "dead", None, suspect.task, suspect.error, now)
        elif cause is Cause.WORKER:
            item.alone = True

    def charge_before(self, lease: int, owner: int, positions: Sequence[int]) -> bool:
        if self.owners.get(lease, (None, 0))[0] != owner or not set(positions) <= set(self.held(lease)):
            return False
        for pos in positions:
            self.items[pos].deliveries += 1
            self.items[pos].alone = True
        return True

    # Administration

    def redrive(
        self,
        positions: Iterable[int],
        now: float,
        interval: float,
        edits: Mapping[int, tuple[bytes, str]],
    ) -> int:
        given = 0
        for pos in positions:
            item = self.items[pos]
            if item.parked is None or item.parked.reason != "dead":
                continue
            item.note("redriven")
            item.retries = item.deliveries = 0
            item.redrives += 1
            item.alone = False
            item.outcome = None
            item.body = edits[pos][0] if pos in edits else item.body
            item.park(pos, "scheduled", now + given * interval, item.parked.task, None, now)
            given += 1
        return given

    def drop(self, positions: Iterable[int]) -> int:
        dropped = 0
        for pos in positions:
            item = self.items[pos]
            if item.parked is not None and item.parked.reason == "dead":
                item.note("dropped")
                item.place, item.parked = "done", None
                dropped += 1
        self._count("dead letters dropped", dropped)
        return dropped

    # Seeks, step by step

    def end_leases(self, to: Mapping[int, int], *, owned: bool) -> int:
        """Take what is at or past the targets out of leases; return how many records owners still hold."""
        left = 0
        for pos, item in self.at("leased").items():
            owner, child = self.owners[item.lease]
            if pos < to.get(log_of(pos), pos + 1):
                continue
            if owner and not owned:
                left += 1
                continue
            item.note("rewound", owner or None, child)
            item.place = "done"
        self._tidy()
        return left

    def rewind(self, positions: Iterable[int]) -> None:
        """Make history of what is known of records that are to be done again."""
        for pos in positions:
            if pos not in self.items:
                continue
            item = self.items[pos]
            item.journal = [e if e.how in LIVE else e._replace(how="rewound") for e in item.journal]
            item.retries = item.deliveries = item.redrives = 0
            item.alone, item.until, item.body, item.parked = False, 0.0, None, None
            item.outcome = item.progress = None
            item.note("rewound")
            item.place = "done"

    def finish_seek(self, to: Mapping[int, int], cursors: Mapping[int, int]) -> None:
        for pos, item in self.items.items():
            target, cursor = to[log_of(pos)], cursors[log_of(pos)]
            if target <= pos < cursor:
                item.place = "pending"
            elif cursor <= pos < target:
                item.note("purged")
                item.place = "done"

    def purge(self, reason: bytes, now: float) -> int:
        ended = 0
        for pos, item in self.items.items():
            returned = item.place == "leased" and not self.owners[item.lease][0]
            waiting = item.parked is not None and item.parked.reason != "dead"
            if not (item.place == "pending" or returned or waiting):
                continue
            if waiting:
                item.outcome = Outcome(pos, "revoked", reason, now)
            item.note("purged")
            item.place, item.parked = "done", None
            ended += 1
        self._tidy()
        return ended

    def lapse(self, upto: Mapping[int, int]) -> int:
        """Lose what is pending or given back below these positions."""
        lost = 0
        for pos, item in self.items.items():
            returned = item.place == "leased" and not self.owners[item.lease][0]
            if pos < upto.get(log_of(pos), 0) and (item.place == "pending" or returned):
                item.note("trimmed")
                item.place = "done"
                lost += 1
        self._tidy()
        if lost:
            self.counted[LOST] += lost
        return lost

    def expire(self, now: float) -> int:
        expired = 0
        for item in self.items.values():
            if item.outcome is not None and item.outcome.until and item.outcome.until <= now:
                item.outcome = item.outcome._replace(value=None, until=0.0)
                expired += 1
        return expired

    def _tidy(self) -> None:
        """Forget leases that hold nothing any more."""
        holding = {item.lease for item in self.items.values() if item.place == "leased"}
        for lease in set(self.owners) - holding:
            del self.owners[lease]

    # What an engine should say

    def places(self) -> dict[int, tuple[Any, ...]]:
        """Return the place of each record that is not done, with all that belongs to it."""
        found: dict[int, tuple[Any, ...]] = {}
        for pos, item in self.items.items():
            if item.place == "pending":
                found[pos] = ("pending",)
            elif item.place == "parked":
                found[pos] = ("parked", item.parked)
            elif item.place == "leased":
                history = (item.retries, item.deliveries, item.redrives, item.alone, item.until)
                found[pos] = ("leased", item.lease, *self.owners[item.lease], history, item.body)
        return found

    def counts(self, log: LogModel) -> Counts:
        held = [item.lease for item in self.at("leased").values()]
        leased = [self.owners[lease][0] for lease in held if not self.is_limited(lease)]
        limited = Counter("limited" for lease in held if self.is_limited(lease))
        parked = [item.parked for item in self.items.values() if item.parked is not None]
        oldest: dict[int, float] = {}
        for pos in self.at("pending"):
            if pos in log.rows:
                oldest.setdefault(log_of(pos), log.rows[pos][3])
        return Counts(
            len(self.at("pending")),
            len([owner for owner in leased if owner]),
            len([owner for owner in leased if not owner]),
            dict(Counter(each.reason for each in parked) + limited),
            min(oldest.values(), default=None),
            min([*(p.due for p in parked if p.due is not None), *self._waits()], default=None),
        )

    def _waits(self) -> list[float]:
        return [self.since[lease] for lease, (owner, _) in self.owners.items() if owner == WAITING]

    def unfinished(self, lo: int, hi: int) -> int:
        return sum(
            1
            for pos, item in self.items.items()
            if lo <= pos < hi and item.place != "done" and not (item.parked and item.parked.reason == "dead")
        )


def positions_of(lease: Lease) -> Iterator[int]:
    for span in lease.spans:
        yield from range(span.lo, span.hi)


def _may_go(parked: Parked | None, now: float, tasks: Sequence[str]) -> bool:
    assert parked is not None
    if parked.due is not None:
        return parked.due <= now
    return parked.reason == "unknown" and parked.task in tasks
