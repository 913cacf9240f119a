"""A process of the processes pool: imports the app, says hello, and runs leases until told to stop."""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import msgspec

from ..app import App
from ..clock import boottime_ns
from ..encoding.remote import raised_in
from ..errors import AppendUnknown, DatabaseGone, EngineUnavailable, RespoolError, unsent
from ..loading import AppImportError, is_misuse, load_app
from ..location import refuse_memory
from . import page as p
from .executor import Executor
from .host import LogFile, Woken, idle, stop_signals
from .options import (
    EXIT_LATE,
    EXIT_LOST,
    EXIT_RECYCLED,
    EXIT_REFUSED,
    Hello,
    Refusal,
    Welcome,
    WorkerOptions,
    encode,
)
from .services import Service, services
from .telling import Logging, print_by_lines

log = logging.getLogger("respool.worker")
_PR_SET_PDEATHSIG = 1


def die_with(parent: int, life: int) -> None:
    """End this process when its supervisor does (H5).

    Linux kills it at once; elsewhere, and where the thread that forked was not the last to go, a thread
    sees the end of the pipe that the supervisor holds.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(EXIT_LOST)

    def watch() -> None:
        while os.read(life, 1):
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="respool-watch", daemon=True).start()


def end_when_late(slot: p.Slot, ordered: frozenset[int]) -> None:
    """End this process in the middle of an ordered group's run when its deadline is over (H5).

    The supervisor does so too, unless it is stopped itself.
    """

    def watch() -> None:
        words = slot.words
        while True:
            left = words[p.DEADLINE] - boottime_ns()
            if left <= 0 and words[p.STARTED] > words[p.FINISHED] and words[p.GROUP] in ordered:
                os._exit(EXIT_LATE)
            time.sleep(max(left / 1e9, 0.05))

    threading.Thread(target=watch, name="respool-deadline", daemon=True).start()


class Child:
    """The process's side of the conversation with the supervisor."""

    def __init__(self, control: socket.socket, log_file: LogFile | None, logs: Logging) -> None:
        self.control, self._log_file, self._logs = control, log_file, logs
        self._reader = control.makefile("rb")
        self._watched = False

    def say(self, message: msgspec.Struct) -> None:
        """Send one line to the supervisor."""
        self.control.sendall(encode(message) + b"\n")

    def load(self) -> tuple[App, list[Service]] | None:
        """Import the app and open its log; None where that failed, which is then said."""
        try:
            self._check_log()
            app = load_app(self.options.app, self.options.url)
            self._logs.hand_over()
            refuse_memory(app.location, f"app {app.name}")  # each process would have a log of its own
            self._check_log()  # opening it would make an empty one, or lead into another
            served = services(app, self.options.queues, self.options.group)
            self._check_log()  # it may have been deleted just before it was opened, and so made anew
            return app, served
        except AppImportError as error:
            traceback.print_exception(error.__cause__ or error)
            self.say(Refusal(str(error), usage=is_misuse(error)))
        except RespoolError as error:
            self.say(Refusal(unsent(error), usage=is_misuse(error)))
        return None

    def _check_log(self) -> None:
        if self._log_file is not None:
            self._log_file.check()

    def run(self) -> int:
        """Serve until told to stop; return the exit status."""
        line = self._reader.readline()
        if not line:
            return EXIT_LOST
        self.options = msgspec.json.decode(line, type=WorkerOptions)
        loaded = self.load()
        if loaded is None:
            return EXIT_REFUSED
        app, served = loaded
        self.say(_hello(app, served))
        line = self._reader.readline()
        if not line:
            return EXIT_LOST
        welcome = msgspec.json.decode(line, type=Welcome)
        raised_in(welcome.name)
        self.control.setblocking(False)
        file = p.WorkerFile(Path(welcome.file), 0)
        file.hold()
        self.slot = file.slot(welcome.index)
        self.slot.words[p.PID] = os.getpid()
        executor = Executor(
            app.engine, served, welcome.worker, welcome.index, self.slot, self, app.settings["outbox_hold"]
        )
        signal.signal(signal.SIGUSR1, executor.caller.on_soft_limit)
        ordered = frozenset(service.group.id for service in served if service.ordered)
        if ordered:
            end_when_late(self.slot, ordered)
        try:
            return self._serve(app, executor)
        finally:
            executor.close()

    def _serve(self, app: App, executor: Executor) -> int:
        limit = executor.limit = self.options.max_tasks_per_child
        logs = [log for service in executor.services for log in service.stream.logs]
        kind = hash(tuple(service.group.id for service in executor.services)) & 0xFFFF_FFFF_FFFF_FFFF
        sleeper = app.engine.sleeper(logs, kind, (self.control.fileno(),))
        executor.patient = not self.options.burst
        woken = Woken.BY_TIME
        while not executor.stopping:
            worked = executor.work(woken)
            woken = Woken.BY_TIME
            if limit is not None and executor.done >= limit:
                return EXIT_RECYCLED
            if (not worked or executor.exhausted) and not executor.stopping:
                self.busy(False)
                poll = app.settings["poll_interval"]
                woken = idle(
                    app.engine, executor.services, sleeper, poll, patient=True, resting=executor.resting
                )
                if woken is Woken.BY_TIME:  # else it is looked at when there is nothing to do
                    self._drain()
        return 0

    def _drain(self) -> None:
        """Take what the supervisor sent to wake us; what it wants stands in the slot."""
        try:
            self.control.recv(4096)
        except BlockingIOError:
            return

    # Host

    def _poke(self) -> None:
        try:
            self.control.send(b"\n")
        except BlockingIOError:
            return  # it has plenty to read

    def limited(self) -> None:
        """Ask the supervisor to look: a record with a time limit was begun."""
        self._poke()

    def busy(self, busy: bool) -> None:
        """Tell the supervisor whether there is work, for when it looks."""
        self.slot.words[p.BUSY] = busy
        self._watched = self._watched and busy

    def watch(self) -> None:
        """Wake the supervisor, once for as long as there is work: it looks often then."""
        if not self._watched:
            self._watched = True
            self._poke()

    def between_leases(self) -> None:
        """Nothing: the supervisor does what is to be done besides."""

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than until the supervisor says something."""
        select.select([self.control], [], [], seconds)
        self._drain()


def _hello(app: App, served: list[Service]) -> Hello:
    runners = {name: runner for service in served for name, runner in service.runners.items()}
    runners.update({service.only.name: service.only for service in served if service.only})
    names = ("beat", "worker_ttl", "poll_interval", "append_timeout")
    return Hello(
        os.getpid(),
        app.name,
        app.url,
        app.location.shown,
        {name: app.settings[name] for name in names},
        app.location.options.get("durability", app.settings["durability"]),
        [(service.group.id, service.shown, list(service.stream.logs)) for service in served],
        sorted(runners),
        [(service.group.id, service.deliveries) for service in served],
        [service.group.id for service in served if service.ordered],
        [(service.group.id, service.dead_ttls) for service in served if service.dead_ttls],
        app.settings["blobs"],
        app.settings["blob_timeout"],
    )


def _ignore(*_: Any) -> None:
    """Take a signal without acting on it: the supervisor decides when we stop.

    A handler rather than SIG_IGN, which the programs that tasks start would inherit.
    """


def _obey() -> None:
    """A process that a task forks ends when it is told to: multiprocessing.Pool relies on it."""
    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is _ignore:
            signal.signal(number, usual.get(number, signal.SIG_DFL))


def main() -> None:
    """Run a child as the supervisor starts it: control socket, life pipe, its pid, the log file."""
    control, life, parent = (int(argument) for argument in sys.argv[1:4])
    for number in stop_signals():
        signal.signal(number, _ignore)
    os.register_at_fork(after_in_child=_obey)
    die_with(parent, life)
    os.set_inheritable(control, False)
    os.set_inheritable(life, False)
    logs = Logging(sys.stderr, "child")
    print_by_lines()
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    log_file = LogFile(*sys.argv[4:6]) if len(sys.argv) > 4 else None
    child = Child(socket.socket(fileno=control), log_file, logs)
    try:
        status = child.run()
    except (EngineUnavailable, AppendUnknown, DatabaseGone) as error:  # its supervisor sees to another
        log.error("the process ends: %s", unsent(error))
        status = EXIT_LOST
    except Exception:  # the last line of defence: say what happened, and let the supervisor clear up
        log.exception("the process ends because of an error that is not the task's")
        status = EXIT_LOST
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # threads that tasks have left behind must not keep it alive


if __name__ == "__main__":
    main()
