"""`respool lag`: the one table to look at first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .common import json_option

if TYPE_CHECKING:
    from ..delivery.model import Lease
    from ..engines.base import Counts, Group
    from .target import Target

_SHOWN = {"scheduled": "sched", "retry": "retry", "dead": "dead", "limited": "limited"}
_WAITS = ("pending", "returned", "due", "scheduled", "retry", "limited", "leased")  # the last by the dead
HELD = 10.0  # seconds that others' transactions may hold numbers before it is worth saying
_FIGURES = (
    *("reads", "name", "app", "group", "pending", "lanes", "returned", "leased", "running", "due"),
    *(
        "due_capped",
        *_SHOWN,
        "gaps",
        "blocked",
        "held_keys",
        "stalled",
        "unknown",
        "unknown_tasks",
        "oldest_waiting",
    ),
    *("oldest_running", "running_task", "next_due", "workers", "held", "lost", "error"),
)  # what a line of --json has
LOOK = 100_000  # parked records that are looked at to tell which are due


@click.command()
@click.option("--queue", metavar="NAME", help="Only this queue or stream.")
@click.option("--group", metavar="NAME", help="Only groups of this name.")
@json_option
def command(queue: str | None, group: str | None, as_json: bool) -> None:
    """Show what waits, runs and failed, by queue and group.

    \b
    pending  not handed to a worker yet; of a replay, also what it will leave out
             (as skipped, see respool groups list): a worker sees it as it comes
    due      ready to run again: given back by a worker, redriven, or with its
             delay over (a column only where there are some)
    sched    waits until it is due: sent with a countdown or eta
    retry    raised, and waits until it is due to run again
    limited  waits for a rate_limit or max_concurrency of its task, queue or key
             (a column only where there are some)
    unknown  no worker so far has had its task: kept for the first that has it
             (a column only where there are some)
    leased   taken by a worker: being run, or about to be
    dead     dead letters: failed for good, see respool dead list
    waiting  how long the oldest of pending and due has waited since it was sent,
             or was due
    running  how long the oldest run has been going on, and of which task
    workers  how many serve it

    A · stands for none, a – for nothing to tell. A ? stands for what cannot be read: why is said below the
    table, and the exit code is 1. `respool check` counts by the same words, and has all
    that is parked, which is sched, retry, limited, unknown, dead and those due again, in one column.

    \b
    respool -A shop lag
    respool --url sqlite:///shop.db lag --json
    """
    from ..delivery.storms import gauges
    from ..errors import UnknownName
    from ..why import how_held, how_to_serve, served_as
    from .output import counted, note, say_unread
    from .target import open_target

    target = open_target()
    chosen = {s.id for s in target.named(queue, "queue", "stream")} if queue else set(target.streams)
    groups = [each for each in target.groups if each.stream in chosen]
    if group is not None and not any(each.name == group for each in groups):
        raise UnknownName("group", group, {each.name for each in groups})
    groups = [each for each in groups if group in (None, each.name)]
    table = lag_table(target, groups)
    table.show(as_json, "No queues and no groups yet: send a call first, for instance respool -A shop call …")
    if as_json:
        say_unread([("", data["error"]) for data in table.data], as_json)
        return
    for loss in target.engine.losses():
        note(loss)
    unread: list[tuple[str, str | None]] = []
    for each, data in zip(groups, table.data, strict=True):
        stream = target.streams[each.stream]
        served = served_as(stream, each)
        if data["error"] is not None:
            unread.append((served, data["error"]))
            continue
        if data["unknown"]:
            tasks = ", ".join(data["unknown_tasks"])
            waiting = f"{counted(data['unknown'], 'call')} of tasks that no worker has had so far"
            note(f"{served}: {waiting}, kept for the first that has them: {tasks}")
        if (stopped := how_held(stream, each)) is not None:
            note(stopped)
        waits = sum(data[name] for name in _WAITS)
        if waits and not data["workers"] and target.moved is None:
            note(f"{served}: no worker serves it; {how_to_serve(stream, each, target.app)}")
        if len(data["lanes"]) > 1 and any(data["lanes"].values()):
            lanes = ", ".join(f"{priority}: {number:,}" for priority, number in data["lanes"].items())
            note(f"{served}: pending by priority: {lanes}")
        for name, gauge in gauges(each.settings).items():
            if gauge.state != "closed":
                limited = counted(data["limited"], "call")
                note(f"{served}: {name} is stopped for {gauge.why}; {limited} limited; see: respool tasks")
        if data["lost"]:
            note(f"{served}: has lost {counted(data['lost'], 'record')}, trimmed before they were done")
        _note_gaps(served, data["gaps"])
        if data["blocked"]:
            note(f"{served}: {counted(data['blocked'], 'call')} waiting for an earlier one of the same key")
        if data["held_keys"]:
            hold = "holds up its key" if data["held_keys"] == 1 else "hold up their keys"
            letters, do = counted(data["held_keys"], "dead letter"), _what_to_do(target, each)
            note(f"{served}: {letters} {hold}, and what comes of it waits: {do}")
        if data["stalled"]:
            note(f"{served}: no more may wait so in {data['stalled']} of its partitions; what follows waits")
        if data["due_capped"]:
            note(f"{served}: due was counted among the first {LOOK:,} that are parked")
    say_unread(unread, as_json)


def _what_to_do(target: Target, group: Group) -> str:
    from ..why import dead_commands, held_keys

    dead = held_keys(target.engine, group)
    one = dead_commands(target.engine, dead[0].pos) if len(dead) == 1 else []
    return one[0] if one else "see: respool dead list"


def _note_gaps(served: str, gaps: dict[str, Any] | None) -> None:
    """Say that transactions of somebody's hold numbers: at once where the group waits for them (G4)."""
    from .output import age, counted, note

    if gaps is None or (gaps["ranges"] < gaps["most"] and gaps["age"] < HELD):
        return
    waits = "; it waits, for there is no room for more" if gaps["ranges"] >= gaps["most"] else ""
    note(
        f"{served}: {counted(gaps['numbers'], 'number')} in {gaps['ranges']:,} of at most {gaps['most']:,} "
        f"gaps may yet come, from transactions that are open since {age(gaps['age'])}{waits}; "
        "pg_stat_activity shows who is in one for so long"
    )


def lag_table(target: Target, groups: list[Group]) -> Any:
    """Return the table, for the demo as well."""
    from .output import UNREAD, Column, Table, age, number

    found = [(group, _data_or_error(target, group)) for group in groups]
    read = [data for _, data in found if data["error"] is None]
    again = any(data["returned"] + data["due"] for data in read)
    seldom = [name for name in ("limited", "unknown") if any(data[name] for data in read)]
    table = Table(
        Column("queue", least=16),
        Column("group", least=10),
        Column("pending", right=True),
        *([Column("due", right=True)] if again else []),
        *(Column(title, right=True, drop=drop) for title, drop in (("sched", 4), ("retry", 3))),
        *(Column(name, right=True) for name in seldom),
        Column("leased", right=True, drop=2),
        Column("dead", right=True),
        Column("waiting", right=True),
        Column("running", least=14, drop=1),
        Column("workers", right=True, drop=5),
    )
    for group, data in found:
        if data["error"] is not None:
            named = (target.shown(target.streams[group.stream]), group.name)
            table.add((*named, *[UNREAD] * (len(table.columns) - 3), number(data["workers"])), data)
            continue
        running = (
            f"{age(data['oldest_running'])} {data['running_task']}"
            if data["running_task"] is not None
            else "–"
        )
        cells = [
            target.shown(target.streams[group.stream]),
            group.name,
            number(data["pending"]),
            *([number(data["returned"] + data["due"])] if again else []),
        ]
        cells += [number(data[name]) for name in ("scheduled", "retry")]
        cells += [number(data[name]) for name in (*seldom, "leased", "dead")]
        table.add((*cells, age(data["oldest_waiting"]), running, number(data["workers"])), data)
    return table


class _Run(NamedTuple):
    since: float
    pos: int


def _data_or_error(target: Target, group: Group) -> dict[str, Any]:
    """Return a group's figures; where its queue or stream alone cannot be read, why: its figures are None."""
    from ..delivery.seek import held
    from ..errors import OF_ONE_STREAM

    try:
        return _data(target, group)
    except OF_ONE_STREAM as error:
        stream = target.streams[group.stream]
        return {
            **dict.fromkeys(_FIGURES),
            "reads": stream.kind,
            "name": stream.name,
            "app": group.app,
            "group": group.name,
            "workers": len(target.serving(group)),
            "held": held(group.settings),
            "error": str(error),
        }


def _data(target: Target, group: Group) -> dict[str, Any]:
    from ..clock import now as wall_clock
    from ..delivery.lapse import LOST
    from ..delivery.seek import held

    stream, counts = target.streams[group.stream], target.engine.counts(group)
    leases: list[Lease] = target.engine.leases(group)
    runs = _runs(target, group, leases)
    oldest = min(runs, default=None)
    now = wall_clock()
    due = _due(target, group, counts, now)
    waiting = min(
        (at for at in (_oldest_waiting(target, counts.oldest_pending, leases), due.since) if at is not None),
        default=None,
    )
    unknown = counts.parked.get("unknown", 0)
    return {
        "reads": stream.kind,
        "name": stream.name,
        "app": group.app,
        "group": group.name,
        "pending": counts.pending,
        "lanes": _lanes(target, group),
        "returned": counts.returned,
        "leased": counts.leased,
        "running": len(runs),
        "due": sum(due.number.values()),
        "due_capped": due.capped,
        **{reason: counts.parked.get(reason, 0) - due.number.get(reason, 0) for reason in _SHOWN},
        "limited": counts.parked.get("limited", 0),
        "gaps": _gaps(target, group, now),
        "blocked": counts.parked.get("blocked", 0),
        "stalled": _stalled(target, group, counts),
        "held_keys": _held_keys(target, group, counts),
        "unknown": unknown,
        "unknown_tasks": sorted(target.engine.unknown_tasks(group.id)) if unknown else [],
        "oldest_waiting": None if waiting is None else max(now - waiting, 0.0),
        "oldest_running": None if oldest is None else max(now - oldest.since, 0.0),
        "running_task": None if oldest is None else target.task_at(oldest.pos),
        "next_due": None if counts.next_due is None else max(counts.next_due - now, 0.0),
        "workers": len(target.serving(group)),
        "held": held(group.settings),
        "lost": target.engine.counters(group.id).get(LOST, 0),
        "error": None,
    }


def _gaps(target: Target, group: Group, now: float) -> dict[str, Any] | None:
    found = target.engine.gaps(group.id)
    if found is None:
        return None
    age = max(now - found.since, 0.0)
    return {"numbers": found.numbers, "ranges": found.ranges, "most": found.most, "age": age}


def _held_keys(target: Target, group: Group, counts: Counts) -> int:
    """Return how many dead letters hold up their keys, of the first that there are."""
    from ..engines.things import is_ordered
    from ..why import held_keys

    if not counts.parked.get("dead") or not is_ordered(target.streams[group.stream], group):
        return 0
    return len(held_keys(target.engine, group))


def _stalled(target: Target, group: Group, counts: Counts) -> int:
    """Return in how many partitions so many records wait for their keys that the cursor waits as well (H13).

    As many are blocked as may be; or more than may be stand before the next whose key is free: then nothing
    is granted, and none of them is blocked, which is told while nothing is leased.
    """
    from ..delivery.order import ROOM
    from ..delivery.seek import held
    from ..engines.base import ParkedFilter
    from ..engines.things import is_ordered

    if not is_ordered(target.streams[group.stream], group):
        return 0
    number: dict[int, int] = {}
    blocked = counts.parked.get("blocked", 0)
    if blocked >= ROOM:
        after = -1
        while page := target.engine.parked_after(ParkedFilter((), ("blocked",)), group.id, after, 10_000):
            after = page[-1][0]
            for pos, _ in page:
                number[pos >> 40] = number.get(pos >> 40, 0) + 1
    full = {log for log, each in number.items() if each >= ROOM}
    idle = not counts.leased and held(group.settings) is None
    if idle and counts.pending + blocked > ROOM and not _may_go(target, group):
        full |= {at.log for at in target.engine.positions(group) if at.end > at.cursor}
    return len(full)


def _may_go(target: Target, group: Group) -> bool:
    """Say whether a claim of an ordered group would be granted anything now."""
    from ..clock import now as wall_clock
    from ..delivery.claim import Request, claim
    from ..delivery.order import Claimant
    from ..engines.base import Reads

    who, now = Claimant(0, 0, 1), wall_clock()
    reads = Reads(group.id, (), True, 1, 8, now, (), ordered=who)
    request = Request(1, 0, 0, 0, now, ordered=who)
    return bool(target.engine.look(reads, lambda view, change: claim(view, change, request) is not None))


def _lanes(target: Target, group: Group) -> dict[int, int]:
    """Return how many records are pending, by the priorities in use, the first first."""
    pending: dict[int, int] = {}
    for at in target.engine.positions(group):
        end = at.end if at.stop is None else min(at.end, at.stop)
        pending[at.priority] = pending.get(at.priority, 0) + max(end - at.cursor, 0)
    return dict(sorted(pending.items(), reverse=True))


class _Due(NamedTuple):
    number: dict[str, int]  # by the reason for which they were parked
    since: float | None
    capped: bool


def _due(target: Target, group: Group, counts: Counts, now: float) -> _Due:
    """Count the parked records that are due, and wait for nothing but a worker."""
    from ..engines.base import ParkedFilter

    if counts.next_due is None or counts.next_due > now:  # as nearly always where a worker serves it
        return _Due({}, None, False)
    found = target.engine.parked(ParkedFilter([group.id], ("scheduled", "retry")), LOOK)
    number: dict[str, int] = {}
    for _, parked in found:
        if parked.due is not None and parked.due <= now:
            number[parked.reason] = number.get(parked.reason, 0) + 1
    return _Due(number, counts.next_due, len(found) == LOOK)


def _runs(target: Target, group: Group, leases: list[Lease]) -> list[_Run]:
    """A worker says what it runs, not for which group: its leases tell."""
    from ..delivery.spans import find

    held = {(lease.owner, span) for lease in leases for span in lease.spans}
    return [
        _Run(since, pos)
        for worker in target.serving(group)
        for pos, since, _ in worker.running
        if find([span for owner, span in held if owner == worker.id], pos)
    ]


def _oldest_waiting(target: Target, pending: float | None, leases: list[Lease]) -> float | None:
    """Look at the first record of each range that was given back: they, too, wait."""
    firsts = [min(span.lo for span in lease.spans) for lease in leases if not lease.owner]
    times = [r.time for pos in firsts for r in target.engine.briefs(pos, pos + 1, None, None, None, 0)]
    return min([*times, *([] if pending is None else [pending])], default=None)
