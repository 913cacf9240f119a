"""Storms: a task that fails again and again is stopped for a while, and retries keep to a share of the runs.

What is known of a task in a group, its gauge, is kept among the group's settings: it holds for all workers.
It is read and changed in the transactions that claim and settle, for tasks that ask for it and no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from .limits import SKEW
from .model import Change, Parked, View

_SLOTS = 10  # parts of a window: how finely it moves on
_KEY = "gauge:"  # before the task's name


class BreakerPolicy(NamedTuple):
    """So many failures within `window` seconds stop a task for `pause` seconds."""

    failures: int
    window: float = 60.0
    pause: float = 30.0


class BudgetPolicy(NamedTuple):
    """Of a task's runs in `window` seconds a `share` may be retries, and `floor` more."""

    share: float
    floor: int = 10
    window: float = 60.0


class Gauge(msgspec.Struct, array_like=True):
    """What is known of one task in one group."""

    state: Literal["closed", "open", "half-open"] = "closed"
    until: float = 0.0  # open: until then no call runs. Half-open: one does; then another may be tried
    why: str = ""  # the failure that opened it, for people
    since: float = 0.0
    failures: list[tuple[int, int, int]] = []  # part of a window, how many, 0
    runs: list[tuple[int, int, int]] = []  # part of a window, runs, retries among them
    next: float = 0.0  # when the next retry over the budget is due


class Report(NamedTuple):
    """What a worker has seen of a task since it reported last."""

    failed: int = 0
    succeeded: int = 0
    why: str = ""

    @property
    def runs(self) -> int:
        """How many calls were run."""
        return self.failed + self.succeeded


def read(view: View, task: str) -> Gauge:
    """Return what is known of a task."""
    value = view.settings.get(_KEY + task)
    return Gauge() if value is None else msgspec.convert(value, Gauge)


def write(change: Change, task: str, gauge: Gauge) -> None:
    """Keep what is known of a task; nothing is kept where nothing is to be said."""
    change.settings[_KEY + task] = None if gauge == Gauge() else msgspec.to_builtins(gauge)


def gauges(settings: Mapping[str, Any]) -> dict[str, Gauge]:
    """Return what a group's settings say of its tasks, by task."""
    return {
        name.removeprefix(_KEY): msgspec.convert(value, Gauge)
        for name, value in settings.items()
        if name.startswith(_KEY) and value is not None
    }


def report(gauge: Gauge, policy: BreakerPolicy, seen: Report, now: float) -> bool:
    """Take in what a worker has seen; say whether the task is free again by it.

    While it is open what comes in is of calls that had begun before: it says nothing new.
    """
    if gauge.state == "half-open":
        if seen.failed:
            _open(gauge, policy, seen.why, now)
        elif seen.succeeded:
            close(gauge)
            return True
    elif gauge.state == "closed" and seen.failed:
        gauge.failures = _added(gauge.failures, (seen.failed, 0), policy.window, now)
        if sum(count for _, count, _ in gauge.failures) >= policy.failures:
            _open(gauge, policy, seen.why, now)
    return False


def _open(gauge: Gauge, policy: BreakerPolicy, why: str, now: float) -> None:
    if gauge.state == "closed":
        gauge.since = now
    gauge.state, gauge.until, gauge.why, gauge.failures = "open", now + policy.pause, why, []


def close(gauge: Gauge) -> None:
    """Let the task's calls run again."""
    gauge.state, gauge.until, gauge.why, gauge.since, gauge.failures = "closed", 0.0, "", 0.0, []


def set_right(gauge: Gauge, policy: BreakerPolicy, now: float) -> bool:
    """Have a pause begin anew that would end later than it can: our clock was set back. Say whether it does.

    What waits for its end is to be looked at again then.
    """
    if gauge.state == "closed" or gauge.until <= now + policy.pause + SKEW:
        return False
    gauge.until = now + policy.pause
    return True


def let_go(view: View, change: Change, until: float, now: float) -> None:
    """Make due at once, of the records of a view, those that were to wait until a stopped task's time."""
    for parked in view.due:
        if waits_until(parked, until):
            change.parked.append(parked._replace(due=now))


def waits_until(parked: Parked, until: float) -> bool:
    """Say whether a record was parked, by a process that had taken it before its task was stopped."""
    return parked.reason == "limited" and parked.waits is None and parked.due == until


def may_run(gauge: Gauge, now: float) -> bool:
    """Say whether calls of the task may run, or at least one may be tried: then ask `admit`."""
    return gauge.state == "closed" or now >= gauge.until


def admit(gauge: Gauge, policy: BreakerPolicy, now: float) -> int | None:
    """Return how many calls of the task may run now, None: all. One that may be tried is given out once.

    It is given out again where nothing was heard of it for as long as a pause.
    """
    if gauge.state == "closed":
        return None
    if now < gauge.until:
        return 0
    gauge.state, gauge.until = "half-open", now + policy.pause
    return 1


def take_back(gauge: Gauge, until: float, now: float) -> bool:
    """Let another call be tried where the one that was given out has not run; say whether one may be.

    Parameters:
        until: until when that one was given out: another may have been since.
    """
    if gauge.state != "half-open" or gauge.until != until:
        return False
    gauge.until = now
    return True


# Retries


def count_runs(gauge: Gauge, policy: BudgetPolicy, seen: Report, now: float) -> None:
    """Take note of runs, of which a share may be retries."""
    _mind_the_clock(gauge, policy, now)
    gauge.runs = _added(gauge.runs, (seen.runs, 0), policy.window, now)


def spend(gauge: Gauge, policy: BudgetPolicy, now: float) -> float | None:
    """Take one retry from the budget: None where it may run now, else when it may.

    Each that is over it gets a moment of its own, at the rate that the budget allows: so none is looked at
    again and again.
    """
    _mind_the_clock(gauge, policy, now)
    gauge.runs = _added(gauge.runs, (0, 0), policy.window, now)
    allowed = policy.floor + policy.share * sum(runs for _, runs, _ in gauge.runs)
    spent = sum(retries for _, _, retries in gauge.runs)
    if gauge.next <= now and spent + 1 <= allowed + 1e-9:  # a share of 0.1 of 10 runs is one
        gauge.runs = _added(gauge.runs, (0, 1), policy.window, now)
        return None
    gauge.next = max(gauge.next, now) + policy.window / max(allowed, 1.0)
    return gauge.next


def _mind_the_clock(gauge: Gauge, policy: BudgetPolicy, now: float) -> None:
    """Forget when the next retry is due where our clock was set back: that may be hours away."""
    if gauge.runs and gauge.runs[-1][0] > _part(policy.window, now + SKEW):
        gauge.next = 0.0


def put_off_retries(
    due: list[Parked],
    names: Mapping[str, str],
    gauges: dict[str, Gauge],
    policies: dict[str, BudgetPolicy],
    change: Change,
    now: float,
) -> list[Parked]:
    """Return those due that may run; retries over their task's budget are parked until they may.

    Parameters:
        names: of the tasks that run them, by what they are recorded under: an alias, say, or an event's type.
    """
    kept = []
    for parked in due:
        name = names[parked.task]
        policy = policies.get(name)
        later = None
        if policy is not None and parked.reason == "retry":  # as `limited` it has its moment
            later = spend(gauges[name], policy, now)
        if later is None:
            kept.append(parked)
            continue
        change.parked.append(parked._replace(reason="limited", due=later))
        change.count("retries over budget")
    return kept


def _added(
    parts: list[tuple[int, int, int]], more: tuple[int, int], window: float, now: float
) -> list[tuple[int, int, int]]:
    """Return the parts of a window that ends now, with more in the last.

    Another machine's clock may be ahead, and have begun a later part: that is the last one for all.
    """
    part = _part(window, now)
    if parts and part < parts[-1][0] <= _part(window, now + SKEW):
        part = parts[-1][0]
    kept = [each for each in parts if part - _SLOTS < each[0] <= part]
    if kept and kept[-1][0] == part:
        _, first, second = kept.pop()
        more = first + more[0], second + more[1]
    return [*kept, (part, *more)] if any(more) else kept


def _part(window: float, now: float) -> int:
    return int(now / (window / _SLOTS))
