"""What a process knows of its tasks' breakers and retry budgets, and what it tells the others by State."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..clock import now as wall_clock
from ..delivery import storms
from ..delivery.model import Change, Lease, Verdict, View
from ..delivery.order import key_map
from ..delivery.spans import Span, ranges_of
from ..delivery.storms import Gauge, Report
from ..engines.base import Reads
from ..errors import BlobLost, CorruptBody, Retry
from ..record import Row
from . import verdicts
from .looking import Looks
from .services import Runner, Service

if TYPE_CHECKING:
    from .executor import Executor

log = logging.getLogger("respool.worker")


class Storms:
    """Counts failures, tells them with settlements, and leaves out calls of tasks that are stopped."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._gauges: dict[tuple[int, str], Gauge] = {}  # by group and task, as read last
        self._seen: dict[tuple[int, str], Report] = {}  # not told yet
        self._trials: dict[tuple[int, str], float] = {}  # calls of the lease that are tried, each until when

    def note(self, group: int, runner: Runner, error: BaseException | None) -> None:
        """Take note of how a run ended. An error of a kind that does not stop its task is as good as none."""
        if isinstance(error, CorruptBody | BlobLost):
            return  # there was nothing to run
        seen = self._seen.get((group, runner.name), Report())
        cause = error.cause if isinstance(error, Retry) and error.cause else error
        breaker = runner.options["breaker"]
        kinds = Exception if breaker is None else breaker.errors
        if isinstance(cause, kinds) and not isinstance(cause, runner.options["throws"]):
            why = f"{type(cause).__name__}: {cause}"[:200].encode("utf-8", "backslashreplace").decode()
            seen = seen._replace(failed=seen.failed + 1, why=why)
        else:
            seen = seen._replace(succeeded=seen.succeeded + 1)
        self._seen[group, runner.name] = seen

    def note_batch(
        self, group: int, runner: Runner, error: BaseException | None, items: Sequence[Any], size: int
    ) -> None:
        """Take note of how a run of a batch ended: one that raised is one failure, else each item counts."""
        if error is not None:
            self.note(group, runner, error)
            return
        failed = [item for item in items if isinstance(item, BaseException)]
        for each in (*failed, *[None] * (size - len(failed))):
            self.note(group, runner, each)

    # In the transactions that claim and settle

    def within(self, service: Service, view: View, change: Change, now: float, *, over: bool) -> None:
        """Tell what was seen, and put off retries over their budget; part of a decision.

        Parameters:
            over: nothing more of the present lease will be run.
        """
        gauges: dict[str, Gauge] = {}
        group = service.group.id
        for name, runner in service.stormy.items():
            gauge = gauges[name] = storms.read(view, name)
            seen = self._seen.get((group, name), Report())
            breaker, budget = runner.options["breaker"], runner.options["retry_budget"]
            if breaker is not None:
                anew = storms.set_right(gauge, breaker.policy, now)
                free = storms.report(gauge, breaker.policy, seen, now)
                tried = self._trials.get((group, name)) if over else None
                if (tried is not None and storms.take_back(gauge, tried, now)) or anew or free:
                    change.released = True
            if budget is not None and seen.runs:
                storms.count_runs(gauge, budget, seen, now)
        budgets = {
            name: runner.options["retry_budget"]
            for name, runner in service.stormy.items()
            if runner.options["retry_budget"] is not None
        }
        if budgets and view.due:
            names = {parked.task: self._name(service, parked.task) for parked in view.due}
            view.due = storms.put_off_retries(view.due, names, gauges, budgets, change, now)
        for name, gauge in gauges.items():
            if gauge != storms.read(view, name):
                storms.write(change, name, gauge)
        self._next, self._over, self._released = gauges, over, change.released

    @staticmethod
    def _name(service: Service, task: str) -> str:
        """Return the name of the task that runs a call or an event: it may have come under an alias."""
        runner = service.runner(task)
        return task if runner is None else runner.name

    def told(self, service: Service) -> None:
        """The transaction was committed: what was seen is known, and what others saw."""
        group = service.group.id
        if self._released:
            self._executor.engine.ring(service.stream.logs[0], everyone=True)
        for name, gauge in self._next.items():
            self._seen.pop((group, name), None)
            if self._over:
                self._trials.pop((group, name), None)
            before = self._gauges.get((group, name), Gauge())
            if gauge.state == "open" and before.state == "closed":
                log.warning("task %s is stopped: its calls wait, for %s", name, gauge.why)
            elif gauge.state == "closed" and before.state != "closed":
                log.info("task %s runs again", name)
            self._gauges[group, name] = gauge

    # Leaving out

    def part(
        self, service: Service, lease: Lease, rows: list[Row], looks: Looks
    ) -> tuple[list[Row], list[Span]]:
        """Return the records of a lease that may run, and where those of stopped tasks are.

        And what follows one of these of its key, whatever its task (P8). They wait together, as ranges: a
        million of them cost what their claims cost.
        """
        group, now = service.group.id, wall_clock()
        if not any(self.gauge(group, runner) for runner in service.stormy.values()):
            return rows, []
        sieve = _Sieve(self, service, looks, now)
        keys = key_map(lease) if lease.keys else {}
        held: dict[int, str] = {}  # by key: the task of the first call of it that waits
        kept: list[Row] = []
        limited: dict[str, list[int]] = {}
        for row in rows:
            key = keys.get(row[0], 0)
            waits_for = held.get(key) or sieve.stops(row)
            if waits_for is None:
                kept.append(row)
                continue
            if key:
                held[key] = waits_for
            limited.setdefault(waits_for, []).append(row[0])
        spans = [
            Span(lo, hi, until=max(self._gauges[group, name].until, now))
            for name, positions in limited.items()
            for lo, hi in ranges_of(positions)
        ]
        return kept, spans

    def gauge(self, group: int, runner: Runner) -> Gauge | None:
        """Return what is known of a task where its breaker has stopped it."""
        gauge = self._gauges.get((group, runner.name))
        closed = gauge is None or gauge.state == "closed" or runner.options["breaker"] is None
        return None if closed else gauge

    def admit(self, service: Service, runner: Runner, now: float) -> int | None:
        """Ask for one call that may be tried while the task is stopped: of all workers, one gets it.

        Returns: how many calls may run; None: all.
        """
        group, policy, name = service.group.id, runner.options["breaker"].policy, runner.name

        def decide(view: View, change: Change) -> tuple[Gauge, int | None]:
            gauge = storms.read(view, name)
            room = storms.admit(gauge, policy, now)
            storms.write(change, name, gauge)
            return gauge, room

        room: int | None
        gauge, room = self._executor.transact(Reads(group, settings=True), decide)
        self._gauges[group, name] = gauge
        if room:
            self._trials[group, name] = gauge.until
            log.info("task %s is stopped; one of its calls is tried", name)
        return room

    def tries(self, service: Service, runner: Runner) -> bool:
        """Say whether what the present lease has of a task is the call that is tried."""
        return (service.group.id, runner.name) in self._trials

    def stopped(self, service: Service, runner: Runner, row: Row) -> Verdict | None:
        """Return the verdict on a call whose task was stopped after its lease was taken; None: it may run."""
        gauge = self._gauges.get((service.group.id, runner.name))
        now = wall_clock()
        if gauge is None or gauge.state != "open" or now >= gauge.until:
            return None
        return verdicts.limited(row, gauge.until, now)


class _Sieve:
    """Tells of the records of a lease, one after the other, which wait because their task is stopped."""

    def __init__(self, known: Storms, service: Service, looks: Looks, now: float) -> None:
        self._known, self._service, self._looks, self._now = known, service, looks, now
        self._room: dict[str, int | None] = {}  # by stopped task, how many of its calls may run; None: all

    def stops(self, row: Row) -> str | None:
        """Return the task that a record waits for; None: it goes through."""
        runner = self._service.runner(row[1])
        if runner is None or not runner.stormy:
            return None
        if runner.name not in self._room and not self._ask(runner, row):
            return None
        left = self._room[runner.name]
        if left:
            self._room[runner.name] = left - 1
        return runner.name if left == 0 else None

    def _ask(self, runner: Runner, row: Row) -> bool:
        """Find out how many calls of a task may run. Not with one that would not be run: False."""
        gauge = self._known.gauge(self._service.group.id, runner)
        if gauge is None:
            self._room[runner.name] = None
        elif not storms.may_run(gauge, self._now):
            self._room[runner.name] = 0
        elif self._looks.would_run(runner, row):
            self._room[runner.name] = self._known.admit(self._service, runner, self._now)
        else:
            return False
        return True
