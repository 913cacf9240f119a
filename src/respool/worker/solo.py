"""The solo pool: one process that claims, runs and settles. For debuggers and small machines.

A thread beats, with single statements only (H1); all else happens between runs, in the main thread. A
time limit's kill needs a second process: here only soft limits work.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
import threading
import time
from contextlib import nullcontext
from typing import Any

from ..app import App
from ..clock import boottime_ns
from ..clock import now as wall_clock
from ..delivery.death import Cause
from ..encoding.remote import raised_in
from ..engines.base import Engine, Registration
from ..errors import DatabaseGone, LogMoved, RespoolError, unsent
from . import page as p
from .aftermath import Aftermath
from .calling import EndNow
from .executor import Executor
from .holds import Holds
from .host import (
    Woken,
    all_done,
    boot_id,
    farewell,
    idle,
    pid_space,
    refuse_moved,
    running_info,
    stop_signals,
    version,
)
from .housekeeping import keep_house
from .options import EXIT_LATE, WorkerOptions
from .retaining import Retainer
from .rules import told
from .services import Service
from .sweeping import Sweeper
from .takeover import Watch, new_file

log = logging.getLogger("respool.worker")


class Solo:
    """A worker in this process."""

    def __init__(self, app: App, served: list[Service], options: WorkerOptions) -> None:
        self.app, self.services, self.options = app, served, options
        self.engine: Engine = app.engine
        self.name = options.name or f"{platform.node()}-{os.getpid()}"
        refuse_moved(self.engine, waits=not options.burst)
        self.deliveries = {service.group.id: service.deliveries for service in served}
        self._told = told(app.settings, self.deliveries)  # for whoever finds us dead
        registration = Registration(
            app.name, self.name, socket.gethostname(), boot_id(), os.getpid(), wall_clock(), self._info(None)
        )
        self.worker = self.engine.register(registration)
        self.file = new_file(self.engine, self.worker, 1)
        self.slot = self.file.slot(0)
        self._watch = Watch(self.engine, boot_id(), app.settings, self.deliveries)
        store = app.payloads.store
        self._sweeper = None if store is None else Sweeper(lambda: nullcontext(self.engine), store)
        self._retainer = Retainer()
        self._holds = Holds(self.engine, [service.group for service in served])
        self._stop = threading.Event()
        self._attend = threading.Event()  # there is a limit to look at, or the end
        self._beaten = 0
        self._looked = 0
        self._signals = 0
        self._deposed = False
        self._unread: list[RespoolError] = []  # why a burst ends though there may be more to do
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)

    def run(self) -> int:
        """Work until told to stop; return the exit status."""
        self._beat()
        before_us = raised_in(self.name)
        began = time.monotonic()
        executor = Executor(
            self.engine, self.services, self.worker, 0, self.slot, self, self.app.settings["outbox_hold"]
        )
        handlers: dict[int, Any] = dict.fromkeys(stop_signals(), self._on_signal)
        handlers[signal.SIGUSR1] = executor.caller.on_soft_limit
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        beating = threading.Thread(
            target=self._keep_beating, args=(executor,), name="respool-beat", daemon=True
        )
        beating.start()
        try:
            self._serve(executor)
        except EndNow:
            log.info("ending the running tasks; they go back and will be run again")
        finally:
            self._stop.set()
            self._attend.set()
            beating.join()
            executor.close()
            raised_in(before_us)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._finish()
        groups = [service.group for service in self.services]
        log.info("%s", farewell(self.engine, groups, executor.done, time.monotonic() - began))
        return 1 if self._deposed or self._unread else 0

    def _serve(self, executor: Executor) -> None:
        logs = [log_ for service in self.services for log_ in service.stream.logs]
        kind = hash(tuple(service.group.id for service in self.services)) & 0xFFFF_FFFF_FFFF_FFFF
        sleeper = self.engine.sleeper(logs, kind, (self._wake_read,))
        executor.patient = not self.options.burst
        groups = [service.group for service in self.services]
        ordered = [service.group.id for service in self.services if service.ordered]
        limit = executor.limit = self.options.max_tasks_per_child
        woken = Woken.BY_TIME
        while not executor.stopping:
            self.between_leases()
            worked = executor.work(woken)
            woken = Woken.BY_TIME
            if limit is not None and executor.done >= limit:
                log.info("ending after %d tasks", executor.done)
                break
            if worked:
                continue
            self._unread.clear()
            if self.options.burst and all_done(self.engine, groups, ordered, self._unread):
                break
            poll = 0.05 if self.options.burst else self.app.settings["poll_interval"]
            woken = idle(self.engine, self.services, sleeper, poll, resting=executor.resting)
        sleeper.close()

    def _finish(self) -> None:
        if self._sweeper is not None:
            self._sweeper.join(1.0)  # what it does not finish, another sweep does
        Aftermath(self.engine, self.worker, self.deliveries).of_child(
            0, self.slot.last_words(), Cause.ORDERED, "the worker stopped"
        )
        if not self._deposed:
            try:
                self.engine.drop_worker(self.worker)
            except RespoolError as error:  # the next worker will find that we are gone
                log.error("%s", error)
        self.file.close(remove=True)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _on_signal(self, number: int, frame: Any) -> None:
        if number == signal.SIGHUP and self._signals:
            return  # a shell passes it on: twice is no "at once"
        self._signals += 1
        if self._signals == 2:
            raise EndNow
        if self._signals > 2:
            return  # it is ending
        log.info("stopping after the task that runs; once more to end it now")
        self.slot.words[p.STOP] = 1
        self.slot.words[p.BOUND] = 0
        os.write(self._wake_write, b"\n")

    # The beating thread

    def _keep_beating(self, executor: Executor) -> None:
        next_beat = time.monotonic()
        while True:
            wait = max(next_beat - time.monotonic(), 0.0)
            self._attend.wait(min(wait, 0.02) if self.slot.words[p.SOFT_AT] else wait)
            self._attend.clear()
            if self._stop.is_set():
                return
            soft = self.slot.words[p.SOFT_AT]
            if soft and executor.caller.is_over(soft) and self.slot.words[p.SOFT_FOR] != soft:
                self.slot.words[p.SOFT_FOR] = soft
                os.kill(os.getpid(), signal.SIGUSR1)
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + self.app.settings["beat"]
                self._beat()
                self._end_ordered_run()

    def _end_ordered_run(self) -> None:
        """End this process where it runs a call of an ordered group, and its deadline is over (H5)."""
        words = self.slot.words
        ordered = {service.group.id for service in self.services if service.ordered}
        late = boottime_ns() > words[p.DEADLINE] and words[p.STARTED] > words[p.FINISHED]
        if late and words[p.GROUP] in ordered:
            log.error(
                "ending: it could not be said in time that this worker lives; its call's key may be taken"
            )
            os._exit(EXIT_LATE)

    def _beat(self) -> None:
        sent = boottime_ns()
        try:
            beat = self.engine.beat(
                self.worker, self._signals > 0, self._info(self.slot.snapshot()), synced=True
            )
        except (DatabaseGone, LogMoved) as error:
            log.error("%s", error)
            beat = None
        except RespoolError as error:  # an outage, whatever it is: nobody has declared us dead
            log.error("cannot beat: %s", unsent(error))
            return
        if beat is None:
            self._deposed = True
            self.slot.words[p.STOP] = 1
            self.slot.words[p.BOUND] = 0
            return
        self._beaten = beat
        self.slot.words[p.DEADLINE] = sent + int(self.app.settings["worker_ttl"] * 0.8e9)

    def _info(self, seen: p.Snapshot | None) -> dict[str, Any]:
        running: list[list[Any]] = []
        if seen is not None and seen.running:
            running = running_info(seen.running, wall_clock() - (boottime_ns() / 1e9 - seen.began))
        return {
            "groups": [service.group.id for service in self.services],
            "pids": pid_space(),
            "running": running,
            "children": [{"pid": os.getpid(), "index": 0}],
            "pool": "solo",
            "concurrency": 1,
            "version": version(),
            **self._told,
        }

    # Host

    def limited(self) -> None:
        """Have the beating thread look at the limits from now on."""
        self._attend.set()

    def busy(self, busy: bool) -> None:
        """Nothing: there is nobody to tell."""

    def watch(self) -> None:
        """Nothing: there is nobody to give the rest to."""

    def between_leases(self) -> None:
        """Once after each beat, do what a supervisor would do beside the tasks."""
        if self._looked != self._beaten:
            self._looked = self._beaten
            try:
                self._look_around()
            except (DatabaseGone, LogMoved):
                raise
            except RespoolError as error:  # nobody waits for that, and it is tried again
                log.error("cannot look after the log: %s", unsent(error))

    def _look_around(self) -> None:
        self._watch.look(self.worker, beaten=True)
        self.engine.tidy()
        self._holds.look()
        refuse_moved(self.engine, waits=not self.options.burst)
        if self._sweeper is not None:
            self._sweeper.start(self.engine)
        ttls = {service.group.id: service.dead_ttls for service in self.services}
        keep_house(self.engine, [service.group for service in self.services], ttls, self._retainer)

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than until the worker is to stop."""
        self._stop.wait(seconds)
