"""Tasks with `batch=`: batches form within a lease, run as one, and are split where one raises.

A lease of a service with such tasks is put in this order: calls of other tasks, calls that are not to run
now, batches that are full or have waited long enough, and what waits for more. That is not held here: it
goes back with the lease's settlement, to be claimed by whoever finds more, or by its time.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..clock import boottime_ns
from ..clock import now as wall_clock
from ..delivery.batching import Splitting
from ..delivery.model import Lease, Settlement, Verdict
from ..delivery.spans import Finder, Span, ranges_of, subtract
from ..errors import BatchMismatch, BlobsUnavailable, CorruptBody, NotEncodable, RecordTooLarge, Retry
from ..record import NO_META, Meta, Row
from . import page as p
from . import verdicts
from .calling import EndNow
from .host import LONGEST, UNSETTLED
from .services import Runner, Service
from .telling import tell_of_batch, whose

if TYPE_CHECKING:
    from .executor import Executor

log = logging.getLogger("respool.worker")


class Member(NamedTuple):
    """One call of a batch."""

    row: Row
    span: Span
    item: Any  # what stands for it in the function's list


class Batch:
    """Calls of one task, and of one key where it asks for that, that run together."""

    __slots__ = ("members", "runner", "until")

    def __init__(self, runner: Runner, now: float) -> None:
        self.runner = runner
        self.members: list[Member] = []
        self.until = now + runner.batch_wait

    def spans(self) -> list[Span]:
        """Return where its calls are, and until when they wait."""
        positions = (member.row[0] for member in self.members)
        return [Span(lo, hi, until=self.until) for lo, hi in ranges_of(positions)]


class Batching:
    """Runs the leases of services that have tasks with `batch=`; a part of the executor."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._plain = 0  # records at the lease's beginning that are run one by one
        self._out: list[Verdict] = []  # on those that come next, and do not run now
        self._ready: list[Batch] = []
        self._waiting: list[Batch] = []
        self._at = 0  # the place in the lease that comes next
        self._parts = 0  # times that a part of the lease was settled
        self._settled()

    def _settled(self) -> None:
        self._done: list[int] = []
        self._kept: tuple[list[Verdict], list[tuple[int, bytes]]] = ([], [])
        self._began, self._clock = wall_clock(), boottime_ns()

    # Forming

    def sort(self, service: Service, lease: Lease, rows: Sequence[Row]) -> list[Row]:
        """Sort what was claimed into batches; return the records in the order in which they will be run."""
        self._at = self._parts = 0
        caller, skip, now = self._executor.caller, self._executor.skip, wall_clock()
        first, finder = lease.spans[0], Finder(lease.spans)
        simple = len(lease.spans) == 1 and not any(first[2:]) and not lease.bodies and not skip
        plain: list[Row] = []
        out: list[tuple[Row, Verdict]] = []
        ready: list[Batch] = []
        growing: dict[tuple[Runner, Any], Batch] = {}
        only, get_runner = service.only, service.runners.get
        keyless = self._executor.keyless
        for row in rows:
            runner = only or get_runner(row[1])
            if runner is None or runner.batch is None:
                plain.append(row)
                continue
            if keyless and row[0] in keyless:
                out.append((row, verdicts.unreadable(row, keyless[row[0]], now)))
                continue
            meta: Meta = NO_META
            body: Any = row[2]
            span = first if simple else finder.find(row[0]) or first
            if not simple or row[3] is not None:
                self._executor.run.row, self._executor.run.span = row, span
                seen = caller.look(service, lease, runner, row, span, skip)
                body = caller.body_of(runner, row, span, lease) if isinstance(seen, Meta) else seen
                if isinstance(body, Verdict):
                    out.append((row, body))
                    continue
                meta = seen if isinstance(seen, Meta) else meta
            try:
                item = runner.item(body, meta)
                key = None if runner.batch_key is None else _key(runner, item)
            except EndNow:
                raise
            except BaseException as error:  # noqa: BLE001 - whatever a user's key function raises
                out.append((row, self._unfit(service, runner, row, span, error)))
                continue
            batch = growing.get((runner, key))
            if batch is None or span.alone:
                batch = Batch(runner, now)
                if not span.alone:
                    growing[runner, key] = batch
            members = batch.members
            members.append(Member(row, span, item))
            if span.until:
                batch.until = min(batch.until, span.until)
            if span.alone:
                ready.append(batch)
            elif len(members) >= runner.batch:
                ready.append(growing.pop((runner, key)))
        self._executor.run.row = None
        self._waiting = [
            batch
            for batch in growing.values()
            if self._executor.patient and batch.until > now and not self._is_tried(service, batch.runner)
        ]
        ready += [batch for batch in growing.values() if batch not in self._waiting]
        self._plain, self._out, self._ready = len(plain), [verdict for _, verdict in out], ready
        batches = (member.row for batch in (*ready, *self._waiting) for member in batch.members)
        return [*plain, *(row for row, _ in out), *batches]

    def _is_tried(self, service: Service, runner: Runner) -> bool:
        """Say whether a batch is the one call of a stopped task that is tried: nobody will run with it."""
        return runner.stormy and self._executor.storms.tries(service, runner)

    def _unfit(self, service: Service, runner: Runner, row: Row, span: Span, error: BaseException) -> Verdict:
        """Return the verdict on a call that cannot be put in any batch."""
        now = wall_clock()
        if isinstance(error, CorruptBody):
            return verdicts.unreadable(row, error, now)
        verdict = verdicts.failed(runner, row, span, error, now, now, random.random())
        ex = self._executor
        of = whose(service.stream, service.group, runner.name)
        tell_of_batch(ex.engine, ex.caller.retries, of, [verdict], 1)
        return verdict

    # Running a lease

    def run(self, service: Service, lease: Lease) -> Settlement:
        """Run a lease whose records `sort` has put in order; return what is left to settle at its end."""
        self._settled()
        through = self._run_what_is_ready(service, lease) and not self._ready
        said, results = self._kept
        if through and (self._done or not self._parts):
            done = self._all_but_what_waits(lease)
        else:  # where all that was run is settled, nothing may be left of the lease
            done = ranges_of(self._done)
        settlement = Settlement(
            lease.id, self._executor.worker, done, said, sorted(results), self._began, wall_clock(),
            release=True, records=len(self._done),
        )  # fmt: skip
        if self._waiting:
            settlement.waits = [span for batch in self._waiting for span in batch.spans()]
            settlement.waits_as = self._executor.next_lease()
        return settlement

    def _all_but_what_waits(self, lease: Lease) -> list[tuple[int, int]]:
        """Return what is done of a lease that was gone through: positions without a record are, too (K1)."""
        left = [(span.lo, span.hi) for span in self._executor.limited]
        left += ranges_of(member.row[0] for batch in self._waiting for member in batch.members)
        return [(span.lo, span.hi) for span in subtract(lease.spans, left)]

    def _run_what_is_ready(self, service: Service, lease: Lease) -> bool:
        """Run all that waits for no more; False where something was not to be started any more."""
        ex, words = self._executor, self._executor.slot.words
        ex.run.begin_lease(service, lease.id, ex.worker)
        if self._plain:
            self._settle(service, lease)
            part = ex.run_lease(service, lease, self._plain)
            self._kept = part.verdicts, part.results
            self._done, self._began = [pos for lo, hi in part.done for pos in range(lo, hi)], part.started
            if words[p.FINISHED] < self._plain:
                return False
        self._at, self._plain = self._at + self._plain, 0
        if self._out:
            if not self._start(len(self._out)):
                return False
            out, self._out = self._out, []
            self._keep(service, lease, [verdict.pos for verdict in out], out, [])
            self._end(len(out), sum(map(verdicts.is_no_work, out)))
        began, ran = boottime_ns(), 0
        while self._ready:
            batch = self._ready[0]
            if not self._run_batch(service, lease, batch):
                return False
            ran += len(batch.members)
            del self._ready[0]
            if boottime_ns() - began > LONGEST:
                break
        ex.sizers[service.group.id].ran(ran, (boottime_ns() - began) / 1e9)
        return True

    def _start(self, size: int) -> bool:
        """Say that the next `size` records are started, as one, and then look whether they may be (H3)."""
        ex, words = self._executor, self._executor.slot.words
        words[p.FINISHED] = self._at
        words[p.TOGETHER] = words[p.STARTED] = self._at + size
        late = boottime_ns() > words[p.DEADLINE]
        if self._at + size > words[p.BOUND] or (late and not ex.prove_alive()):
            words[p.STARTED] = self._at
            words[p.TOGETHER] = 0
            return False
        return True

    def _end(self, size: int, left_out: int = 0) -> None:
        """Say that what `_start` began is at its end; `left_out` of the records were nobody's work."""
        ex, words = self._executor, self._executor.slot.words
        self._at += size
        words[p.FINISHED] = self._at
        words[p.TOGETHER] = 0
        ex.done += size - left_out
        words[p.DONE] = ex.done

    def _keep(
        self,
        service: Service,
        lease: Lease,
        positions: Sequence[int],
        said: list[Verdict],
        results: list[tuple[int, bytes]],
    ) -> None:
        """Take down how the next records ended, where whoever comes after us finds it (H2)."""
        slot = self._executor.slot
        fits = (not results or slot.add_results(results)) and all(slot.add(verdict) for verdict in said)
        self._done += positions
        self._kept[0].extend(said)
        self._kept[1].extend(results)
        finished = slot.words[p.FINISHED] + len(positions)
        if fits:
            slot.words[p.FINISHED] = finished
        if not fits or boottime_ns() - self._clock >= UNSETTLED:
            self._settle(service, lease)
            slot.words[p.FINISHED] = finished

    def _settle(self, service: Service, lease: Lease) -> None:
        """Settle what is finished."""
        if self._done:
            done, (said, results) = ranges_of(self._done), self._kept
            self._executor.settle_part(
                service, lease, done, len(self._done), (said, sorted(results)), self._began
            )
            self._parts += 1
        self._settled()

    # Running a batch

    def _run_batch(self, service: Service, lease: Lease, batch: Batch) -> bool:
        """Run a batch, or its parts where it raises; False where it was not to be started any more."""
        words = self._executor.slot.words
        size, once = len(batch.members), batch.runner.max_deliveries == 1
        if once:  # claimed and charged before it runs, and settled at once (H7)
            self._settle(service, lease)
        if not self._start(size):
            return False
        if once and not self._executor.charge(service, lease, [member.row[0] for member in batch.members]):
            words[p.BOUND] = 0  # the lease is lost: nothing more of it is ours to run
            words[p.STARTED] = self._at
            words[p.TOGETHER] = 0
            return False
        splitting, last = Splitting(size), None
        while splitting.part is not None:
            lo, hi = splitting.part
            words[p.TOGETHER] = self._at + hi
            said, results, error = self._run_part(batch.runner, batch.members[lo:hi], splitting)
            last = error or last
            if splitting.left is not None and last is not None:
                more = batch.members[splitting.left[0] :]
                said += _put_off(batch.runner, more, last, counted=not splitting.progress)
            decided = splitting.part[0] if splitting.part is not None else size
            if once:
                for verdict in said:
                    verdict.charge = -1 if verdict.reason is not None else 0  # and the run has ended
            positions = [member.row[0] for member in batch.members[lo:decided]]
            if positions:
                self._keep(service, lease, positions, said, results)
        if once:
            self._settle(service, lease)
        self._end(size)
        return True

    def _run_part(
        self, runner: Runner, members: Sequence[Member], splitting: Splitting
    ) -> tuple[list[Verdict], list[tuple[int, bytes]], BaseException | None]:
        """Call the function with some of a batch; return verdicts, results, and what it raised."""
        ex, run, began, chance = self._executor, self._executor.run, wall_clock(), random.random()
        run.begin_batch([(member.row, member.span) for member in members])
        raised: BaseException | None = None
        items: Sequence[Any] | None = None
        try:
            value = ex.caller.perform(runner, lambda: (([member.item for member in members],), {}))
            items = _checked(runner, value, len(members))
        except EndNow:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever a task raises is its outcome
            raised = error
        ex.leave_if_forked()
        calls, dropped, _ = run.end()
        run.end_batch()
        if runner.stormy:
            ex.storms.note_batch(run.service.group.id, runner, raised, items or (), len(members))
        said: list[Verdict] = []
        results: list[tuple[int, bytes]] = []
        if raised is None:
            splitting.succeeded()
            self._take_items(runner, members, items, (said, results), (began, chance))
        elif isinstance(raised, Retry | BatchMismatch) or runner.max_deliveries == 1:
            splitting.succeeded()  # it was not an item's fault, or may not run again: no use in splitting
            said = _failed(runner, members, raised, (began, chance))
        elif splitting.failed():
            said = _failed(runner, members, raised, (began, chance))
        else:
            return [], [], raised  # what it has sent so far, its parts will send
        if calls or dropped:
            _send_with(said, results, members[0].row[0], runner, calls, dropped)
        of = whose(run.service.stream, run.service.group, runner.name)
        tell_of_batch(ex.engine, ex.caller.retries, of, said, len(members))
        return said, results, raised

    def _take_items(
        self,
        runner: Runner,
        members: Sequence[Member],
        items: Sequence[Any] | None,
        into: tuple[list[Verdict], list[tuple[int, bytes]]],
        ran: tuple[float, float],
    ) -> None:
        """Take down what each call's item says."""
        (said, results), (began, chance) = into, ran
        encode, large = self._executor.caller.encode, self._executor.caller.large
        for member, item in zip(members, items or (), strict=items is not None):
            failure: BaseException | None = None
            if isinstance(item, BaseException):
                failure = item
            elif item is None or runner.ignores:
                continue
            else:
                try:
                    encoded, offloaded = encode(item, "the result"), False
                    if len(encoded) > runner.over:
                        encoded, offloaded = large.result(runner, encoded, excludes=False)
                except (NotEncodable, RecordTooLarge, BlobsUnavailable) as error:
                    failure = error
            if failure is not None:
                now = wall_clock()
                row, span = member.row, member.span
                said.append(verdicts.failed(runner, row, span, failure, began, now, chance))
            elif runner.ttl is not None or offloaded:
                pos = member.row[0]
                said.append(Verdict(pos, "success", encoded, ttl=runner.ttl, offloaded=offloaded))
            else:
                results.append((member.row[0], encoded))


def _failed(
    runner: Runner, members: Sequence[Member], error: BaseException, ran: tuple[float, float]
) -> list[Verdict]:
    """Return verdicts on calls that all failed with one error; those that are retried come back together."""
    (began, chance), now = ran, wall_clock()
    return [verdicts.failed(runner, m.row, m.span, error, began, now, chance) for m in members]


def _put_off(
    runner: Runner, members: Sequence[Member], error: BaseException, *, counted: bool
) -> list[Verdict]:
    """Return verdicts on calls of a batch of which too many parts raised: they run later, together again."""
    now, chance = wall_clock(), random.random()
    log.warning(
        "task %s: a batch raised %s in so many parts that %d calls of it are put off",
        runner.name,
        type(error).__name__,
        len(members),
    )
    return [
        verdicts.put_off(runner, m.row, m.span, error, now, now, chance, counted=counted) for m in members
    ]


def _key(runner: Runner, item: Any) -> Any:
    """Return what keeps a call's batch from others'. Raises whatever is wrong with it."""
    by = runner.batch_key
    if callable(by):
        key = by(item)
    elif isinstance(item, dict):
        key = item[by]
    else:
        key = getattr(item, by)
    hash(key)
    return key


def _checked(runner: Runner, value: Any, size: int) -> Sequence[Any] | None:
    """Return the items of a batch function's list; None where it returned nothing."""
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise BatchMismatch(
            f"{runner.name} returned {type(value).__name__} for a batch of {size}; it must return a list "
            "with one item for each call, in the order of its argument, or nothing at all"
        )
    if len(value) != size:
        raise BatchMismatch(
            f"{runner.name} returned {len(value)} items for a batch of {size}; it must return one for each "
            "call, in the order of its argument; an exception stands for a call that failed"
        )
    return value


def _send_with(
    said: list[Verdict],
    results: list[tuple[int, bytes]],
    pos: int,
    runner: Runner,
    calls: list[Any],
    dropped: int,
) -> None:
    """Have the calls that a batch made settled with its first record."""
    first = next((verdict for verdict in said if verdict.pos == pos), None)
    if first is None:
        value = results.pop(0)[1] if results and results[0][0] == pos else None
        first = Verdict(pos, "success", value, quiet=value is None, ttl=runner.ttl)
        said.append(first)
    first.calls, first.dropped = calls, dropped
