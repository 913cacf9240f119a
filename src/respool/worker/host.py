"""What the two pools share: idling, and the numbers that describe this machine."""

from __future__ import annotations

import functools
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..clock import now as wall_clock
from ..errors import EngineUnavailable
from .services import Service

HOUSEKEEPING = 5.0  # seconds between two rounds of housekeeping, unless there was more to do than …
HOUSEKEEPING_SHARE = 0.1  # … a round may take
STEP = 5000  # records or values in one transaction


@functools.cache
def boot_id() -> str:
    """Return what identifies this machine since it started: pids and locks mean nothing beyond it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:  # not Linux: the start of the clock that counts from there, to ten seconds
        return f"{socket.gethostname()}-{round((time.time() - time.monotonic()) / 10)}"


@functools.cache
def version() -> str:
    """Return the version of Respool that runs here."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("respool")
    except PackageNotFoundError:
        return "unknown"


def idle(engine: Any, services: Sequence[Service], sleeper: Any, poll: float) -> bool:
    """Sleep until something is due or the polling interval is over, or the bell rings: then True."""
    sleeper.prepare()
    now = wall_clock()
    wait = poll
    try:
        for service in services:
            if engine.has_work(service.group.id, now, tuple(service.runners)):
                sleeper.cancel()
                return False
            due = engine.next_due(service.group.id)
            if due is not None:
                wait = min(wait, max(due - now, 0.0))
    except EngineUnavailable:
        wait = poll  # the executor looks again after that, and says what is wrong
    return bool(sleeper.sleep(wait))


def all_done(engine: Any, groups: Sequence[Any]) -> bool:
    """Say whether `--burst` has nothing to wait for: nothing pending, taken, due, or to be retried."""
    now = wall_clock()
    for group in groups:
        counts = engine.counts(group)
        if counts.pending or counts.leased or counts.returned or counts.parked.get("retry"):
            return False
        if counts.next_due is not None and counts.next_due <= now:
            return False
    return True


def keep_house(engine: Any, groups: Sequence[Any]) -> bool:
    """Do, in small steps and for a short while, what nobody waits for: drop old values and old records.

    Returns: whether there is more to do, so that the next round should not wait.
    """
    now, until = wall_clock(), time.monotonic() + HOUSEKEEPING_SHARE
    while engine.expire_outcomes(now, STEP) == STEP:
        if time.monotonic() >= until:
            return True
    served = {group.stream for group in groups}
    for stream in engine.streams():
        retention = stream.settings.get("retention")
        if stream.id in served and retention is not None:
            while engine.trim(stream, now - retention, STEP):
                if time.monotonic() >= until:
                    return True
    return False
