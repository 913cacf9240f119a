"""How long processes take until they have the app: who hangs at import is named, and in the end replaced."""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Callable, Iterable
from typing import Any

from .options import Hello, Refusal
from .process import ChildProcess

log = logging.getLogger("respool.worker")

LONG = 30.0  # seconds after which it is said that an import takes long
TIMEOUT = 300.0  # seconds after which a process that does not have the app yet is killed
ADVICE = "connect to services when they are first used, with time limits, rather than at import"


def first_message(child: ChildProcess, wake: int, told: Callable[[], bool]) -> Hello | Refusal | None:
    """Wait for the first process to say something; None where it ends, is too late, or we are told to stop.

    Parameters:
        wake: a descriptor that is written to by each signal.
        told: says whether we were told to stop.
    """
    while not told() and time.monotonic() < child.started + TIMEOUT:
        until = child.started + (TIMEOUT if child.late else LONG)
        watched: list[Any] = [child.control, wake]
        ready, _, _ = select.select(watched, [], [], max(until - time.monotonic(), 0.0))
        if wake in ready:
            os.read(wake, 4096)
        message = child.receive()
        if message is not None:
            return message
        if child.process.poll() is not None:
            return child.receive()
        _say_late(child)
    return None


def end_those_that_hang(children: Iterable[ChildProcess]) -> None:
    """Say which processes take long to import the app; kill those that take too long, to be replaced."""
    for child in children:
        if child.ready or child.ordered or child.process.returncode is not None:
            continue
        _say_late(child)
        if time.monotonic() >= child.started + TIMEOUT:
            log.error(
                "child %d (pid %d) did not import the app within %g s and is killed: %s",
                child.index,
                child.pid,
                TIMEOUT,
                ADVICE,
            )
            child.stop()  # without the app it has nothing to finish: that kills it


def _say_late(child: ChildProcess) -> None:
    """Say once that a process takes long."""
    if child.late or time.monotonic() < child.started + LONG:
        return
    child.late = True
    log.warning(
        "child %d (pid %d) has been importing the app for %g s, and runs nothing until it has it; after %g s "
        "it is killed. What it waits for is shown by: py-spy dump --pid %d",
        child.index,
        child.pid,
        LONG,
        TIMEOUT,
        child.pid,
    )
