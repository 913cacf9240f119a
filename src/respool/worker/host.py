"""What the two pools share: idling, waking others, and the numbers that describe this machine."""

from __future__ import annotations

import functools
import os
import signal
import socket
import time
from collections.abc import Collection, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from ..clock import now as wall_clock
from ..delivery.claim import Request, claim
from ..delivery.model import Change, Verdict, View
from ..delivery.order import Claimant
from ..delivery.seek import held
from ..delivery.spans import ranges_of
from ..engines.base import Counts, Engine, Group, Reads, Worker
from ..engines.moving import told
from ..errors import (
    OF_ONE_STREAM,
    DatabaseGone,
    EngineUnavailable,
    LogMoved,
    RespoolError,
    StreamBroken,
    unsent,
)
from .holds import held_back
from .resting import Resting
from .services import Service

RARELY = 20.0  # seconds between two looks of who hears the bell: a ring is lost only with who would ring
LEAST_WAIT = 0.02  # seconds between looks at a group that has a rate
UNSETTLED = 10_000_000  # ns of finished work that may be unsettled (H1, H2)
LONGEST = (
    100_000_000  # ns after which the rest of a lease goes back; what has priority may have come meanwhile
)
PATIENCE = (0.05, 0.1, 0.2, 0.5, 1.0)  # seconds between tries while the engine cannot be reached
HELD = 0.2  # seconds between two looks while so much waits for limits that the cursor does, too


@functools.cache
def boot_id() -> str:
    """Return what identifies this machine since it started: pids and locks mean nothing beyond it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:  # not Linux: the start of the clock that counts from there, to ten seconds
        return f"{socket.gethostname()}-{round((time.time() - time.monotonic()) / 10)}"


@functools.cache
def pid_space() -> str:
    """Return what process ids are counted in: on one machine each container may have its own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return ""


@functools.cache
def version() -> str:
    """Return the version of Respool that runs here."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("respool")
    except PackageNotFoundError:
        return "unknown"


class LogFile(NamedTuple):
    """A log's file, and what tells it from any other that takes its place. Text, to be handed on."""

    path: str
    identity: str

    @classmethod
    def at(cls, path: str | None) -> LogFile | None:
        """Return the file at a path as it is now; None for an engine without one."""
        return None if path is None else cls(path, _identity(path))

    def check(self) -> None:
        """Raise DatabaseGone where the path leads to another file now, or to none."""
        if _identity(self.path) != self.identity:
            raise DatabaseGone(f"{self.path} was deleted or replaced while in use; no new one is made")


def _identity(path: str) -> str:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return f"{found.st_dev}:{found.st_ino}"


def running_info(positions: Sequence[int], since: float) -> list[list[Any]]:
    """Return what a beat says of that which runs: first position, since when, one past the last.

    Not of which task it is: that is in the log, which may be elsewhere, and away. A beat waits for no more
    than the state (P5); whoever wants to know looks there.
    """
    return [[lo, "", since, hi] for lo, hi in ranges_of(positions)]


def is_gone(worker: Worker) -> bool:
    """Say whether a registered worker's process is known not to exist: only on its own machine can it be."""
    if worker.boot != boot_id() or worker.info.get("pids", pid_space()) != pid_space():
        return False
    try:
        os.kill(worker.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's
        return False
    return False


def stop_signals() -> list[int]:
    """Return the signals that stop a worker: also that of a terminal that is closed, but under `nohup`."""
    heeds = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if heeds else [])]


def farewell(engine: Any, groups: Sequence[Any], handled: int, seconds: float) -> str:
    """Say what a worker has done, and what it leaves in the groups that it served."""
    noun = "record" if any(group.kind == "subscription" for group in groups) else "call"
    done = f"stopped after {seconds:.1f} s; worked through {handled:,} {noun}{'' if handled == 1 else 's'}"
    left = dict.fromkeys(("pending", "leased", "scheduled", "retry", "unknown", "dead"), 0)
    unseen = []
    try:
        for group in groups:
            try:
                counts = engine.counts(group)
            except OF_ONE_STREAM as error:
                unseen.append(f"of group {group.name}, what is left cannot be seen: {error}")
                continue
            left["pending"] += counts.pending + counts.returned
            left["leased"] += counts.leased
            for reason, number in counts.parked.items():
                left[reason] = left.get(reason, 0) + number
        stopped = held_back(engine, groups) if any(left.values()) else []
    except RespoolError as error:
        return f"{done}; what is left cannot be seen: {error}"
    shown = ", ".join(f"{number:,} {reason}" for reason, number in left.items() if number)
    return "; ".join([f"{done}; left: {shown or 'nothing'}", *stopped, *unseen])


def has_work(engine: Any, service: Service, now: float) -> bool:
    """Say whether a claim would find anything, without the lock that others may want."""
    tasks = tuple(service.runners)
    if service.claimant is None:
        return bool(engine.has_work(service.group.id, now, tasks))
    return _may_go(engine, service.group.id, service.claimant, service.turn, now, tasks)


def _stands_still(engine: Engine, group: Group, counts: Counts, now: float) -> bool:
    """Say whether nothing of an ordered group may go, and nothing was taken since it was counted.

    Who holds a key while we look may have given it back by then, and what follows may go.
    """
    cursors = [(at.log, at.cursor) for at in engine.positions(group)]
    if _may_go(engine, group.id, (0, 0), 0, now, ()):
        return False
    again = [(at.log, at.cursor) for at in engine.positions(group)]
    return engine.counts(group) == counts and again == cursors


def _may_go(
    engine: Any, group: int, claimant: tuple[int, int], turn: int, now: float, tasks: Sequence[str]
) -> bool:
    """Try a claim of an ordered group, without writing it: what may go depends on what others hold."""
    who = Claimant(*claimant, 1, turn)
    request = Request(1, who.owner, who.child, 0, now, turn, ordered=who)

    def decide(view: View, change: Change) -> bool:
        return claim(view, change, request) is not None or bool(change.parked)

    return bool(engine.look(Reads(group, (), True, 1, 8, now, tasks, ordered=who), decide))


class Woken(Enum):
    """Why an idle worker goes on."""

    BY_TIME = "time"  # or by somebody who wants something else
    BY_BELL = "bell"
    BY_WORK = "work"  # it was there before it lay down


def idle(
    engine: Any,
    services: Sequence[Service],
    sleeper: Any,
    poll: float,
    *,
    patient: bool = False,
    resting: Resting | None = None,
) -> Woken:
    """Sleep until there may be something to do, or somebody wants something; say which.

    Parameters:
        patient: where the sleeper is sure to hear the bell, look far less often than every `poll` seconds,
            and come back only when there is something.
        resting: the services that rest.
    """
    resting = Resting(alone=len(services) == 1) if resting is None else resting
    while True:
        sleeper.prepare()
        wait = max(poll, RARELY) if patient and getattr(sleeper, "hears", False) else poll
        now, paced = wall_clock(), False
        try:
            for service in services:
                if resting and (left := resting.left(service.group.id)) is not None:
                    wait = min(wait, left)
                    continue
                if service.limiter is not None and service.limiter.full:
                    paced = True  # what is new is not to be claimed; what is given back is looked for
                    wait = min(wait, HELD)
                elif _has_work(engine, service, now, resting):
                    if service.rate is None:
                        sleeper.cancel()
                        return Woken.BY_WORK
                    paced, wait = True, min(wait, max(1 / service.rate, LEAST_WAIT))
                    continue  # it waits for tokens, and so does what becomes due meanwhile
                # What was due before, and is no work, may not be claimed: its group is paused, or it is for
                # others, who are rung for.
                due = engine.next_due(service.group.id, now)
                if due is not None:
                    wait = min(wait, max(due - now, 0.0))
                if resting and (left := resting.left(service.group.id)) is not None:
                    wait = min(wait, left)
        except EngineUnavailable:
            # The executor looks again after that, and says what is wrong.
            return Woken.BY_BELL if sleeper.sleep(poll) else Woken.BY_TIME
        until = time.monotonic() + wait
        if sleeper.sleep(wait):
            return Woken.BY_BELL
        if patient and getattr(sleeper, "stood_aside", False):
            continue
        if paced or not patient or time.monotonic() < until:
            return Woken.BY_TIME


def _has_work(engine: Any, service: Service, now: float, resting: Resting) -> bool:
    return resting.look(service.group.id, service.shown, lambda: has_work(engine, service, now))


def ring_for(engine: Engine, verdicts: Sequence[Verdict]) -> None:
    """Wake sleeping workers whom settled verdicts concern: by calls that were sent, or what is parked."""
    for called in {call.log for verdict in verdicts for call in verdict.calls}:
        engine.ring(called)
    for parked in {verdict.pos >> 40 for verdict in verdicts if _concerns_others(verdict)}:
        engine.ring(parked)


def _concerns_others(verdict: Verdict) -> bool:
    """Say whether sleeping workers should know: it is due before they look again, or they know its task."""
    if verdict.due is None:
        return verdict.reason == "unknown"
    return verdict.due < wall_clock() + RARELY


def refuse_moved(engine: Any, *, waits: bool = True) -> None:
    """Raise LogMoved where the log was moved elsewhere; if we do not wait, also where it is being moved."""
    mark = engine.mark()
    if mark is not None and mark.is_source and (mark.phase == "moved" or not waits):
        raise LogMoved(unsent(told(mark, engine.shown)))


def all_done(
    engine: Any, groups: Sequence[Any], ordered: Collection[int], unread: list[RespoolError] | None = None
) -> bool:
    """Say whether `--burst` has nothing to wait for: pending, taken, due, to be retried, or over a limit.

    In an ordered group what is pending may wait for its key, and so for somebody to act. Calls of a task that
    its breaker has stopped are not waited for: nobody knows how long that would be. Nor is what a broken log
    may hold: why it is one is added to `unread`.
    """
    now = wall_clock()
    for group in groups:
        try:
            counts = engine.counts(group)
        except StreamBroken as error:
            if unread is not None:
                unread.append(error)
            continue
        waits = counts.parked.get("retry", 0) or engine.limited(group.id, 1)
        pending = counts.pending and (
            group.id not in ordered or not _stands_still(engine, group, counts, now)
        )
        if pending or counts.leased or counts.returned or waits:
            if any(each.id == group.id and held(each.settings) for each in engine.groups()):
                continue  # it is granted nothing
            return False
        if counts.next_due is not None and counts.next_due <= now:
            return False
    return True
