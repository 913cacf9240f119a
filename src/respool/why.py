"""Why a call is not finished yet, in words, and which command would start a worker for it."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

from .clock import now as wall_clock
from .delivery.model import LIMITED, WAITING, Bucket, Lease, Parked
from .delivery.seek import held
from .delivery.storms import gauges
from .engines import public_id
from .engines.base import Engine, Group, ParkedFilter, Stream, Worker
from .engines.moving import told
from .engines.things import is_ordered
from .errors import unsent
from .keys import key_hash
from .location import without_password
from .record import first_pos, id_text, log_of
from .units import utc

if TYPE_CHECKING:
    from .app import App

SILENT = 3.0  # seconds without a beat, of which there is one a second, after which that is worth saying …
LOOK = 1_000  # dead letters that are looked at for the one that holds up a key
GONE = 10.0  # … and after which a worker is not counted on
_HELD = {
    "paused": "{served} is paused; to have it go on: respool groups resume {group} --queue {queue}",
    "seek": "{served} is being moved; left in the middle? respool seek {group} --queue {queue} --resume",
}
_named: dict[str, tuple[str, str | None]] = {}  # by an App's name: what named it on the command line


def remember_spec(app: str, spec: str, url: str | None) -> None:
    """Note what a command line called the App of this name: a command that is suggested says the same."""
    _named[app] = (spec, url)


def served_as(stream: Stream, group: Group) -> str:
    """Name what a worker serves: `shop/default`, `shop/default (group v2)`, `stream visits (group audit)`."""
    if stream.kind == "queue":
        name = f"{stream.app}/{stream.name}"
        return name if group.name == "main" else f"{name} (group {group.name})"
    return f"stream {stream.name} (group {group.name})"


def worker_command(group: Group) -> str:
    """Return the command that starts a worker for a group; `-A …` where nothing here names its App."""
    spec, url = _named.get(group.app) or (_spec_of(group.app), None)
    words = ["respool", "-A", shlex.quote(spec) if spec else "…"]
    words += ["--url", shlex.quote(without_password(url))] if url else []
    words.append("worker")
    if group.kind not in ("main", "subscription"):  # those are served without being named
        words += ["--group", shlex.quote(group.name)]
    return " ".join(words)


def how_to_serve(stream: Stream, group: Group, app: App | None = None) -> str:
    """Say which command starts a worker for a group, or what must be written first for one to serve it.

    Without the App's code, a group of a stream that was made by a command is taken to lack its subscription.
    """
    if stream.kind == "queue" or _is_subscribed(stream, group, app):
        return f"start one: {worker_command(group)}"
    lacks = "its app needs a subscription" if app is None else f"app {app.name} has no subscription"
    decorator = f"@{variable(stream.name)}.subscribe(group={group.name!r})"
    return f"{lacks} of that name; write one on its stream {stream.name!r}: {decorator}"


def how_held(stream: Stream, group: Group) -> str | None:
    """Say that a group is granted nothing, and what has it go on; None where it is not held."""
    stopped = held(group.settings)
    if stopped is None:
        return None
    return _HELD[stopped].format(
        served=served_as(stream, group), group=shlex.quote(group.name), queue=shlex.quote(stream.name)
    )


def _is_subscribed(stream: Stream, group: Group, app: App | None) -> bool:
    if app is None or app.name != group.app:
        return group.kind == "subscription"
    subscription = app.subscriptions.get(group.name)
    return subscription is not None and subscription.stream.name == stream.name


def variable(stream: str) -> str:
    """Return what a stream may be called in code."""
    return stream if stream.isidentifier() else "stream"


def _spec_of(app: str) -> str | None:
    """Find the module that has the App of this name, first one in which a task of it was written."""
    app_class = getattr(sys.modules.get("respool.app"), "App", None)
    if app_class is None:
        return None
    found: dict[str, str] = {}
    home: set[str] = set()
    for place, module in list(sys.modules.items()):
        # By type: a lazy object, like Django's settings, is set up by whoever asks for its class.
        names = list(getattr(module, "__dict__", {}).items())
        apps = {k: v for k, v in names if issubclass(type(v), app_class)}
        for name, each in apps.items():
            if each.name == app:
                several = len({id(value) for value in apps.values()}) > 1
                found.setdefault(
                    place, f"{_place(place, module)}:{name}" if several else _place(place, module)
                )
                home.update(task.fn.__module__ for task in each.tasks.values())
    chosen = next((place for place in found if place in home), next(iter(found), None))
    return None if chosen is None else found[chosen]


def _place(name: str, module: Any) -> str:
    file = getattr(module, "__file__", None)
    return os.path.basename(file) if name == "__main__" and file else name


def explain_waiting(engine: Engine, stream: Stream, group: Group, pos: int, app: App | None = None) -> str:
    """Say what an unfinished record waits for: no worker, so many before it, running since, due when."""
    mark = engine.mark()
    if mark is not None and mark.is_source:
        return unsent(told(mark, engine.shown))
    known = [w for w in engine.workers() if group.id in w.info.get("groups", ())]
    workers = [w for w in known if wall_clock() - w.beaten < GONE]
    served = served_as(stream, group)
    status = engine.status(group, pos)
    now = next((each for each in engine.groups() if each.id == group.id), None)
    if now is not None and (stopped := how_held(stream, now)) is not None:
        return stopped
    nobody = "" if workers else f"no worker serves {served}{_last(known)}; {how_to_serve(stream, group, app)}"
    if status.parked is not None:
        if status.parked.waits is not None:
            return _limited(engine, status.parked, nobody)
        if status.parked.reason == "blocked" and status.parked.due is None:
            return _blocked(engine, group, status.parked, nobody)
        return _parked(status.parked, served, nobody)
    holder = (
        _held_key(engine, group, pos) if status.place == "pending" and is_ordered(stream, group) else None
    )
    if holder is not None:
        return holder
    if nobody:
        return nobody
    if status.lease is not None and status.lease.owner == WAITING:
        return _waits(engine, status.lease, now or group, pos)
    for worker in workers:
        for lo, since, hi in worker.running:
            if lo <= pos < hi:
                silent = wall_clock() - worker.beaten
                gone = f", which has been silent for {silent:.1f} s" if silent > SILENT else ""
                return f"running for {max(wall_clock() - since, 0):.1f} s in worker {worker.name}{gone}"
    if status.place == "pending":
        before = sum(pos - at.cursor for at in engine.positions(group) if at.log == pos >> 40)
        kind = "call" if stream.kind == "queue" else "event"
        ahead = f"1 {kind} is" if before == 1 else f"{before:,} {kind}s are"
        serve = "1 worker serves" if len(workers) == 1 else f"{len(workers)} workers serve"
        return f"{ahead} before it in {served}, {serve} it"
    return f"a worker of {served} has taken it and not begun it yet"


def _last(silent: list[Worker]) -> str:
    if not silent:
        return ""
    last = max(silent, key=lambda worker: worker.beaten)
    return f" (worker {last.name} has been silent for {wall_clock() - last.beaten:.0f} s)"


def _waits(engine: Engine, lease: Lease, group: Group, pos: int) -> str:
    """Say why a record waits that nobody holds; the group is as it is now, with what stopped its tasks."""
    left = max(lease.since - wall_clock(), 0.0)
    if lease.child != LIMITED:
        return f"it waits for more calls to run with, {left:.1f} s more at most"
    tasks = {each.task for each in engine.briefs(pos, pos + 1, None, None, None, 0)}
    stopped = {task: gauge.why for task, gauge in gauges(group.settings).items() if gauge.state != "closed"}
    raised = next((why for task, why in stopped.items() if task in tasks and why), "")
    whose = "its task" if tasks & stopped.keys() else "its task, or that of an earlier one of its key,"
    return f"{whose} is stopped by its breaker for {left:.1f} s more{raised and f'; raised last: {raised}'}"


def limit_shown(one: Bucket) -> str:
    """Say what a bucket lets in: "10/s", "2 at a time", both."""
    said = [] if one.rate is None else [rate_shown(one.rate)]
    said += [] if one.slots is None else [f"{one.slots} at a time"]
    return ", ".join(said)


def rate_shown(a_second: float) -> str:
    """Write a rate as it may be declared."""
    for unit, seconds in (("s", 1), ("m", 60), ("h", 3600)):
        if a_second * seconds >= 1:
            return f"{a_second * seconds:g}/{unit}"
    return f"{a_second * 86400:g}/d"


def _limited(engine: Engine, parked: Parked, nobody: str) -> str:
    beside = f"; {nobody}" if nobody else ""
    for one in engine.buckets([parked.waits or 0]):
        key = f", key {one.key!r}" if one.key else ""
        return f"it waits for its limit: {one.rule}{key}, {limit_shown(one)}{beside}"
    return f"it waits for its limit{beside}"


def _blocked(engine: Engine, group: Group, parked: Parked, nobody: str) -> str:
    """Say which dead letter holds up a key, where one of the first there are does; else that one does."""
    dead = None if parked.key is None else _dead_of_key(engine, group, parked.pos, parked.key)
    if dead is not None:
        return dead
    return f"an earlier one of its key is not finished{f'; {nobody}' if nobody else ''}"


def _held_key(engine: Engine, group: Group, pos: int) -> str | None:
    """Say which dead letter holds up the key of a record that no claim has come upon yet; None: none does."""
    for record in engine.records(pos, pos + 1, 1):
        if record.meta.key is not None:
            return _dead_of_key(engine, group, pos, key_hash(record.meta.key))
    return None


def _dead_of_key(engine: Engine, group: Group, pos: int, key: int) -> str | None:
    before = first_pos(log_of(pos)) - 1
    for dead in engine.parked_page(ParkedFilter((), ("dead",)), group.id, before, LOOK):
        if dead.key == key and before < dead.pos < pos:
            for given in dead_commands(engine, dead.pos):
                return f"a dead letter of its key holds it up: {given}"
    return None


def dead_commands(engine: Engine, pos: int) -> list[str]:
    """Return the commands that give back or drop the dead letter at a position, if its record is there."""
    given = [f"--id {shlex.quote(id_text(public_id(each.id)))}" for each in engine.records(pos, pos + 1, 1)]
    return [f"respool dead redrive {id}, or respool dead drop {id}" for id in given]


def held_keys(engine: Engine, group: Group) -> list[Parked]:
    """Return the dead letters of an ordered group that hold up their keys, among its first `LOOK`."""
    page = engine.parked_page(ParkedFilter((), ("dead",)), group.id, -1, LOOK)
    return [dead for dead in page if dead.key is not None and dead.key > 0]


def _parked(parked: Parked, served: str, nobody: str) -> str:
    if parked.reason == "unknown":
        return f"no worker that serves {served} knows the task {parked.task!r}"
    beside = f"; {nobody}" if nobody else ""
    if parked.due is not None and parked.due <= wall_clock():
        return nobody or f"it is due, and waits for a worker of {served} to take it"
    if parked.due is not None:
        due = utc(parked.due).astimezone()
        return f"it is parked ({parked.reason}) until {due.isoformat(sep=' ', timespec='seconds')}{beside}"
    return f"it is parked ({parked.reason}){beside}"
