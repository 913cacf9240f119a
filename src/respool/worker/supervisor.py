"""The supervisor: starts the children, beats, watches what they run, clears up when one dies.

It imports none of the user's code: what it must know of the app its first child tells it. So nothing
that a task or an app does can keep it from beating (P5).
"""

from __future__ import annotations

import logging
import os
import platform
import select
import signal
import socket
import time
from contextlib import closing
from typing import Any

from ..blobs import store_of
from ..clock import boottime_ns
from ..clock import now as wall_clock
from ..delivery.death import Cause
from ..engines import open_engine
from ..engines.base import Registration
from ..errors import (
    AppendUnknown,
    DatabaseGone,
    EngineUnavailable,
    LogMoved,
    RespoolError,
    StreamUnavailable,
    unsent,
)
from ..loading import is_misuse
from ..location import Location, parse_url
from . import importing
from . import page as p
from .aftermath import Aftermath, how_it_died
from .attending import Attendant, end_ordered_run, keep_limits
from .host import (
    LogFile,
    all_done,
    boot_id,
    farewell,
    pid_space,
    refuse_moved,
    running_info,
    stop_signals,
    version,
)
from .housekeeping import House
from .options import EXIT_LATE, EXIT_LOST, EXIT_RECYCLED, EXIT_REFUSED, Hello, Refusal, Welcome, WorkerOptions
from .outage import Outage
from .page import WorkerFile
from .process import ChildProcess
from .replacing import Replacements, Restarts
from .rules import told
from .sweeping import Sweeper
from .takeover import Watch, new_file
from .telling import named

log = logging.getLogger("respool.worker")

BUSY_TICK = 0.02  # seconds between looks at children that work, once they have asked for it
WAIT = 0.25  # seconds that a write waits for a lock: meanwhile no time limit is kept, and no death noticed
AGAIN = 0.5  # seconds before what could not be written is tried again
MOST_CHILDREN = 255  # numbered from 0; the last number is for leases of our own


class Deposed(Exception):
    """This worker was declared dead: its leases are others' now."""


class Supervisor:
    """One worker: a supervisor and its children."""

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        self.count = min(options.concurrency or os.cpu_count() or 1, MOST_CHILDREN)
        self.name = options.name or f"{platform.node()}-{os.getpid()}"
        self.children: dict[int, ChildProcess] = {}
        self.engine: Any = None  # for what is written beside running tasks, and tried again
        self._patient: Any = None  # the same log, for what is better waited for
        self.worker = 0
        self._file: WorkerFile | None = None
        self._replacements = Replacements()
        self._restarts = Restarts()
        self._signals = 0
        self._status = 0  # that it ends with
        self._draining = False
        self._cold = False  # nothing is waited for any more
        self._deadline_to_kill: float | None = None
        self._told: dict[str, Any] = {}  # for whoever finds us dead
        self._dirty = True
        self._synced = -1
        self._outage = Outage()
        self._complaint = ""  # what housekeeping met last
        self._bury_at = self._settle_at = 0.0
        self._left_over = True  # our file stays for whoever comes after us, unless we leave nothing behind
        self._began = time.monotonic()
        self._handled = 0  # records that children worked through which are gone now
        self.on_started: Any = lambda hello: None

    # Starting

    def run(self) -> int:
        """Work until told to stop; return the command's exit status."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        old = {number: signal.signal(number, self._on_signal) for number in stop_signals()}
        old[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)  # it ends our sleep
        signal.set_wakeup_fd(wake_write)
        self._wake = wake_read
        try:
            while True:
                pause = 0.0
                try:
                    self._restarts.started()
                    return self._session()
                except Deposed:
                    pause = self._restarts.pause()
                    when = f" in {pause:g} s" if pause else ""
                    log.error(
                        "this worker was declared dead while it could not beat; it starts again as another%s",
                        when,
                    )
                    self._left_over = False
                except DatabaseGone as error:
                    log.error("%s", error)
                    self._left_over = False
                    pause = self._restarts.pause()
                    self._wait_for_file()
                except RespoolError as error:
                    log.error("Error: %s", unsent(error))
                    return 2 if is_misuse(error) else 1
                finally:
                    self._end_session()
                if self._draining:
                    return 1
                if not self._rest(pause):
                    log.info("stopped before it started again")
                    return 0
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in old.items():
                signal.signal(number, handler)
            os.close(wake_read)
            os.close(wake_write)

    def _on_signal(self, number: int, frame: Any) -> None:
        if number != signal.SIGHUP or not self._signals:  # a shell passes it on: twice is no "at once"
            self._signals += 1

    def _rest(self, seconds: float) -> bool:
        """Wait before the next start; False where we are told to stop."""
        until = time.monotonic() + seconds
        while not self._signals and (left := until - time.monotonic()) > 0:
            if select.select([self._wake], [], [], left)[0]:
                os.read(self._wake, 4096)
        return not self._signals

    def _session(self) -> int:
        try:
            first = ChildProcess(0, self.options)
        except OSError as error:
            log.error("Error: no process can be started: %s", error)
            return 1
        self.children[0] = first
        hello = importing.first_message(first, self._wake, lambda: self._signals > 0)
        if not isinstance(hello, Hello):
            return self._refused(hello, first)
        self._open(hello)
        self.on_started(hello)
        self._welcome(first)
        for index in range(1, self.count):
            self._spawn(index)
        return self._loop()

    def _refused(self, said: Refusal | None, child: ChildProcess) -> int:
        if said is not None:
            log.error("Error: %s", said.error)
            return 2 if said.usage else 1
        status = child.process.poll()
        if self._signals:
            log.info("stopped before the app was imported")
            return 0
        how = f"not imported within {importing.TIMEOUT:g} s; {importing.ADVICE}"
        how = how if status is None else how_it_died(status)
        log.error("Error: the app could not be started: %s", how)
        return 1

    def _open(self, hello: Hello) -> None:
        self.hello = hello
        self._told = told(hello.settings, dict(hello.deliveries))
        self._left_over = True
        location = parse_url(hello.url)
        timeout = hello.settings["append_timeout"]
        self._patient = open_engine(location, hello.durability, timeout)
        self.engine = open_engine(location, hello.durability, min(timeout, WAIT))
        self._log_file = LogFile.at(location.path)
        refuse_moved(self.engine, waits=not self.options.burst)
        self.groups = [group for group in self.engine.groups() if group.id in {s[0] for s in hello.services}]
        self._logs = sorted({log for service in hello.services for log in service[2]})
        registration = Registration(
            hello.app, self.name, socket.gethostname(), boot_id(), os.getpid(), wall_clock(), self._info()
        )
        self.worker = self._patient.register(registration)
        self._attendant = Attendant(self.engine, self.worker)
        self._file = new_file(self.engine, self.worker, self.count)
        self._slots = [self._file.slot(index) for index in range(self.count)]
        # It writes only where a worker died, right after a beat of ours: there is hardly ever a lock. But a
        # takeover that gives up half-way loses the dead one's last words.
        self._watch = Watch(self._patient, boot_id(), hello.settings, dict(hello.deliveries))
        self._house = House(
            self.engine, self.groups, dict(hello.dead_ttls), self._file, self._make_sweeper(location)
        )
        self._deadline = 0
        self._beat_at = 0.0
        self._beat()

    def _make_sweeper(self, location: Location) -> Sweeper | None:
        hello, timeout = self.hello, self.hello.settings["append_timeout"]
        store = store_of(location, hello.blobs, hello.blob_timeout, hello.durability)
        if store is None:
            return None
        return Sweeper(lambda: closing(open_engine(location, hello.durability, timeout)), store)

    def _spawn(self, index: int) -> None:
        try:
            self.children[index] = ChildProcess(index, self.options, self._log_file)
        except OSError as error:  # too many processes or files, or no memory: for now
            self._replacements.plan_again(index, error)

    def _welcome(self, child: ChildProcess) -> None:
        assert self._file is not None
        child.welcome(
            Welcome(self.worker, str(self._file.path), child.index, self.options.burst, self.name),
            self._slots[child.index],
            self._deadline,
        )

    def _end_session(self) -> None:
        for child in self.children.values():
            child.kill()
        for child in self.children.values():
            child.process.wait()
            child.close()
        self.children.clear()
        self._replacements.clear()
        if self._file is not None:
            self._file.close(remove=not self._left_over)
            self._file = None
        for engine in (self.engine, self._patient):
            if engine is not None:
                engine.close()
        self.engine = self._patient = None

    def _wait_for_file(self) -> None:
        """The file is gone: wait until one is there again, or until told to stop."""
        path = parse_url(self.hello.url).path
        while not self._signals:
            select.select([self._wake], [], [], 1.0)
            if path is None or os.path.exists(path):
                return

    # The loop

    def _loop(self) -> int:
        while True:
            self._wait()
            self._obey_signals()
            self._hear()
            importing.end_those_that_hang(self.children.values())
            self._bury_the_dead()
            if self._draining and not self.children:
                return self._finish()
            self._look_after_all()
            now = time.monotonic()
            if now >= self._beat_at:
                self._beat()
            if self.options.burst and not self._draining and self._nothing_left():
                self._drain()
            if not self._draining:
                for index in self._replacements.due(now):
                    self._spawn(index)

    def _wait(self) -> None:
        """Sleep until the next beat, a message, a signal; shortly while a child works."""
        now = time.monotonic()
        until = self._beat_at
        if any(child.busy for child in self.children.values()):
            until = min(until, now + BUSY_TICK)
        elif self.options.burst:
            until = min(until, now + 0.1)
        if self._deadline_to_kill is not None:
            until = min(until, self._deadline_to_kill)
        for at in self._replacements.times():
            until = min(until, at)
        alive = [child for child in self.children.values() if child.process.returncode is None]
        if len(alive) < len(self.children):
            until = min(until, self._bury_at)
        watched: list[Any] = [self._wake, *(child.control for child in alive)]
        ready, _, _ = select.select(watched, [], [], max(until - time.monotonic(), 0))
        if self._wake in ready:
            os.read(self._wake, 4096)
        self._ready = ready

    def _obey_signals(self) -> None:
        if self._signals and not self._draining:
            log.info("stopping: running tasks finish%s; once more to end them now", self._grace_shown())
            self._drain()
        elif self._signals > 1 or (
            self._deadline_to_kill is not None and time.monotonic() >= self._deadline_to_kill
        ):
            self._deadline_to_kill = None
            self._signals = 1
            self._cold = True
            log.info("ending the running tasks; they go back and will be run again")
            for child in self.children.values():
                child.kill()

    def _grace_shown(self) -> str:
        return "" if self.options.grace is None else f" for at most {self.options.grace:g} s"

    def _drain(self) -> None:
        self._draining = True
        if self.options.grace is not None:
            self._deadline_to_kill = time.monotonic() + self.options.grace
        self._replacements.clear()
        for child in self.children.values():
            child.stop()
        self._beat()  # says that we are draining: nobody is blamed for what follows (H6)

    def _nothing_left(self) -> bool:
        ready = all(child.ready and not child.busy for child in self.children.values())
        unread: list[RespoolError] = []
        done = (
            ready and bool(self.children) and all_done(self.engine, self.groups, self.hello.ordered, unread)
        )
        if done and unread:
            self._status = 1  # what it may hold was not run; which one it is, is said at the end
        return done

    def _hear(self) -> None:
        for child in list(self.children.values()):
            if child.control not in self._ready:
                continue
            message = child.receive()
            if isinstance(message, Hello):
                if self._draining:
                    child.stop()
                else:
                    self._welcome(child)
                self._replacements.came_up()
            elif isinstance(message, Refusal):
                log.error("a new process cannot start: %s", message.error)

    def _finish(self) -> int:
        if self._gives_up():
            log.info("stopped; what is left cannot be seen")
            return self._status
        try:
            if not self._patient.leases_of(self.worker):
                self._patient.drop_worker(self.worker)
                self._left_over = False
        except RespoolError as error:  # the next worker will find that we are gone
            log.error("%s", error)
        seconds = time.monotonic() - self._began
        log.info("%s", farewell(self.engine, self.groups, self._handled, seconds))
        return self._status

    # Beating

    def _beat(self) -> None:
        """Say that we live, to the others by the engine and to the children by their deadline (H5)."""
        sent = boottime_ns()
        self._beat_at = time.monotonic() + self.hello.settings["beat"]
        busy = any(child.busy for child in self.children.values())
        try:
            # A beat that is synced makes durable what was claimed and settled since the last (S4).
            written = self._attendant.written + sum(
                child.slot.words[p.LEASES] for child in self.children.values() if child.slot
            )
            synced = busy or self._dirty or written != self._synced
            beat = self.engine.beat(self.worker, self._draining, self._info(), synced=synced)
        except (DatabaseGone, LogMoved):
            raise
        except RespoolError as error:  # whatever it is: what runs goes on, and is not ended for a beat
            self._beat_at = min(self._beat_at, time.monotonic() + AGAIN)
            self._unreachable("beat", error)
            return
        if beat is None:
            raise Deposed
        self._dirty = busy
        self._synced = written
        self._deadline = sent + int(self.hello.settings["worker_ttl"] * 0.8e9)
        for child in self.children.values():
            if child.slot is not None:
                child.slot.words[p.DEADLINE] = self._deadline
        try:
            self._look_after_the_log(worked=synced)
        except (EngineUnavailable, AppendUnknown) as error:
            self._unreachable("look after the log", error)
            return
        self._outage.over()

    def _look_after_the_log(self, *, worked: bool) -> None:
        """Do what nobody waits for, and nothing that goes wrong there ends a worker: it is tried again."""
        try:
            self._watch.look(self.worker, beaten=True)
            if self._house.tidy(worked=worked):
                self._obey_mark()
                self._house.go_round()
                self._complaint = ""
        except (EngineUnavailable, AppendUnknown, DatabaseGone):
            raise
        except RespoolError as error:
            if str(error) != self._complaint:
                log.error("cannot look after the log, which is tried again: %s", unsent(error))
            self._complaint = str(error)

    def _unreachable(self, what: str, error: RespoolError) -> None:
        self._outage.noted(what, error, patience=self.hello.settings["beat"])

    def _obey_mark(self) -> None:
        """End this worker where the log was moved elsewhere; what it runs, if anything, finishes."""
        try:
            refuse_moved(self.engine, waits=not self.options.burst)
        except LogMoved as moved:
            if not self._draining:
                log.error("Error: %s", moved)
                self._status = 1
                self._drain()

    def _info(self) -> dict[str, Any]:
        """What others see of this worker as of its last beat."""
        running, children = [], []
        for child in self.children.values():
            if child.slot is None:
                continue
            words = child.slot.words
            children.append({"pid": child.pid, "index": child.index, "done": words[p.DONE]})
            seen = child.slot.snapshot()
            if seen is not None and seen.running:
                since = wall_clock() - (boottime_ns() / 1e9 - seen.began)
                running += running_info(seen.running, since)
        return {
            "groups": [service[0] for service in self.hello.services],
            "pids": pid_space(),
            "running": running,
            "children": children,
            "pool": self.options.pool,
            "concurrency": self.count,
            "version": version(),
            **self._told,
        }

    # Watching

    def _look_after_all(self) -> None:
        busy = [child for child in self.children.values() if child.busy and child.process.returncode is None]
        late = boottime_ns() > self._deadline
        for child in busy:  # all of them before any write, which may have to wait
            keep_limits(child)
            if late:
                end_ordered_run(child, self.hello.ordered)
        if time.monotonic() < self._settle_at:
            return
        for child in busy:
            try:
                self._attendant.settle(child)
            except (EngineUnavailable, AppendUnknown) as error:
                self._unreachable("settle", error)
                self._settle_at = time.monotonic() + AGAIN
                return

    # Death

    def _bury_the_dead(self) -> None:
        ended = [(child, child.process.poll()) for child in self.children.values()]
        if time.monotonic() < self._bury_at:
            return
        for child, status in ended:
            if status is not None:
                try:
                    self._clear_up(child, status)
                except (EngineUnavailable, AppendUnknown) as error:
                    self._unreachable("clear up after a process", error)
                    self._bury_at = time.monotonic() + AGAIN
                    if not self._gives_up():
                        if isinstance(error, StreamUnavailable):
                            continue  # what the others held is of queues that can be used
                        return
                    log.error("what a process held is left to the worker that comes next: %s", error)
                del self.children[child.index]
                child.close()

    def _gives_up(self) -> bool:
        """Say whether this worker ends though the engine is out of reach: whoever finds it dead clears up."""
        waited = self._outage.lasts()
        if not self._draining or waited is None:
            return False
        return self._cold or waited > self.hello.settings["append_timeout"]

    def _clear_up(self, child: ChildProcess, status: int) -> None:
        aftermath = Aftermath(self.engine, self.worker, dict(self.hello.deliveries))
        seen = child.slot.last_words() if child.slot is not None else None
        first_time, child.noticed = not child.noticed, True  # we come again where the engine is out of reach
        limit = child.over_limit
        if limit is not None and seen is not None and seen.running == limit[0] and not child.limit_kept:
            if first_time:
                what, seconds = named(self.engine, limit[0]), limit[1]
                log.warning("%s ran longer than %g s, its time_limit: its process was killed", what, seconds)
            aftermath.time_limit(seen, *limit)
            child.limit_kept = True
        ours = child.ordered or self._draining or child.over_limit is not None or status == EXIT_LATE
        # With these it ends itself, but never in the middle of a run.
        clean = status in (0, EXIT_RECYCLED, EXIT_LOST, EXIT_REFUSED) and (seen is None or not seen.running)
        cause = Cause.ORDERED if ours or clean else Cause.CHILD
        how = "its worker was told to stop" if cause is Cause.ORDERED and not clean else how_it_died(status)
        if cause is Cause.CHILD and first_time:
            running = [] if seen is None else seen.running
            what = f", running {named(self.engine, running)}" if running else ""
            log.warning("child %d (pid %d)%s: %s", child.index, child.pid, what, how)
        aftermath.of_child(child.index, seen, cause, how)
        if child.slot is not None:
            self._handled += child.slot.words[p.DONE]
            if (
                seen is not None and seen.running and not seen.together
            ):  # in the midst of a lease, not counted yet
                self._handled += len(seen.through)
            if limit is not None and child.limit_kept:
                self._handled += len(limit[0])
            child.slot.clear()
        if not self._draining:
            self._replacements.plan(child, status)
