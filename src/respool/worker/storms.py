"""What a process knows of its tasks' breakers and retry budgets, and what it tells the others by State."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..clock import now as wall_clock
from ..delivery import storms
from ..delivery.model import Change, Verdict, View
from ..delivery.spans import Span, ranges_of
from ..delivery.storms import Gauge, Report
from ..engines.base import Reads
from ..errors import Retry
from ..record import Row
from . import verdicts
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

    def note(self, group: int, runner: Runner, error: BaseException | None) -> None:
        """Take note of how a run ended."""
        seen = self._seen.get((group, runner.name), Report())
        cause = error.cause if isinstance(error, Retry) and error.cause else error
        breaker = runner.options["breaker"]
        kinds = Exception if breaker is None else breaker.errors
        if isinstance(cause, kinds) and not isinstance(cause, runner.options["throws"]):
            why = f"{type(cause).__name__}: {cause}"[:200].encode("utf-8", "backslashreplace").decode()
            seen = seen._replace(failed=seen.failed + 1, why=why)
        elif cause is None or breaker is None:
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

    def within(self, service: Service, view: View, change: Change, now: float) -> None:
        """Tell what was seen, and put off retries over their budget; part of a decision."""
        gauges: dict[str, Gauge] = {}
        group = service.group.id
        for name, runner in service.stormy.items():
            gauge = gauges[name] = storms.read(view, name)
            seen = self._seen.get((group, name), Report())
            breaker, budget = runner.options["breaker"], runner.options["retry_budget"]
            if breaker is not None:
                anew = storms.set_right(gauge, breaker.policy, now)
                if storms.report(gauge, breaker.policy, seen, now) or anew:
                    change.released = True
            if budget is not None and seen.runs:
                storms.count_runs(gauge, budget, seen, now)
        budgets = {
            name: runner.options["retry_budget"]
            for name, runner in service.stormy.items()
            if runner.options["retry_budget"] is not None
        }
        if budgets and view.due:
            view.due = storms.put_off_retries(view.due, gauges, budgets, change, now)
        for name, gauge in gauges.items():
            if gauge != storms.read(view, name):
                storms.write(change, name, gauge)
        self._next = gauges

    def told(self, service: Service) -> None:
        """The transaction was committed: what was seen is known, and what others saw."""
        group = service.group.id
        for name, gauge in self._next.items():
            self._seen.pop((group, name), None)
            before = self._gauges.get((group, name), Gauge())
            if gauge.state == "open" and before.state == "closed":
                log.warning("task %s is stopped: its calls wait, for %s", name, gauge.why)
            elif gauge.state == "closed" and before.state != "closed":
                log.info("task %s runs again", name)
            self._gauges[group, name] = gauge

    # Leaving out

    def part(self, service: Service, rows: list[Row]) -> tuple[list[Row], list[Span]]:
        """Return the records of a lease that may run, and where those of stopped tasks are.

        All of these wait together, as ranges: a million of them cost what their claims cost.
        """
        now, group = wall_clock(), service.group.id
        room: dict[str, int | None] = {}
        until: dict[str, float] = {}
        for name, runner in service.stormy.items():
            gauge = self._gauges.get((group, name))
            if gauge is None or gauge.state == "closed" or runner.options["breaker"] is None:
                continue
            room[name] = 0
            if storms.may_run(gauge, now) and any(self._name(service, row) == name for row in rows):
                room[name] = self._admit(service, name, runner, now)
            until[name] = max(self._gauges[group, name].until, now)
        if not room:
            return rows, []
        kept: list[Row] = []
        limited: dict[str, list[int]] = {}
        for row in rows:
            name = self._name(service, row)
            left = room.get(name)
            if left is None:
                kept.append(row)
            elif left > 0:
                room[name] = left - 1
                kept.append(row)
            else:
                limited.setdefault(name, []).append(row[0])
        spans = [
            Span(lo, hi, until=until[name])
            for name, positions in limited.items()
            for lo, hi in ranges_of(positions)
        ]
        return kept, spans

    def _name(self, service: Service, row: Row) -> str:
        runner = service.runner(row[1])
        return "" if runner is None else runner.name

    def _admit(self, service: Service, name: str, runner: Runner, now: float) -> int | None:
        """Ask for one call that may be tried while the task is stopped: of all workers, one gets it."""
        group, policy = service.group.id, runner.options["breaker"].policy

        def decide(view: View, change: Change) -> tuple[Gauge, int | None]:
            gauge = storms.read(view, name)
            room = storms.admit(gauge, policy, now)
            storms.write(change, name, gauge)
            return gauge, room

        room: int | None
        gauge, room = self._executor.transact(Reads(group, settings=True), decide)
        self._gauges[group, name] = gauge
        if room:
            log.info("task %s is stopped; one of its calls is tried", name)
        return room

    def stopped(self, service: Service, runner: Runner, row: Row) -> Verdict | None:
        """Return the verdict on a call whose task was stopped after its lease was taken; None: it may run."""
        gauge = self._gauges.get((service.group.id, runner.name))
        now = wall_clock()
        if gauge is None or gauge.state != "open" or now >= gauge.until:
            return None
        return verdicts.limited(row, gauge.until, now)
