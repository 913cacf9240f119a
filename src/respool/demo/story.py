"""The demo's steps, without their printing: files, workers, kills, and what is found afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..app import App
from ..engines.base import Group
from ..errors import ConfigError, RespoolError
from ..record import first_pos
from .record import VARIABLE

STALLED = 60.0  # seconds without a finished call after which the demo gives up
TEXT = {".py", ".txt", ".md", ".rst", ".c", ".h", ".js", ".ts", ".html", ".css", ".toml", ".cfg", ".json",
        ".sh",         ".go", ".rs", ".java", ".yaml", ".yml", ".csv", ".xml"}  # fmt: skip
LARGEST = 1 << 20


def text_files(folder: Path, limit: int) -> list[str]:
    """Return the text files below a folder, at most `limit`. Raises ConfigError where there is none."""
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}")
    found: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(
            f for f in folders if not f.startswith(".") and f not in ("__pycache__", "site-packages")
        )
        for name in sorted(names):
            path = os.path.join(parent, name)
            if (
                os.path.splitext(name)[1] in TEXT
                and os.path.isfile(path)
                and os.path.getsize(path) <= LARGEST
            ):
                found.append(path)
                if len(found) >= limit:
                    return found
    if not found:
        raise ConfigError(f"{folder} has no text files; name another with --folder")
    return found


class DemoWorker:
    """A real worker, as `respool worker` starts it, and the means to kill it."""

    def __init__(self, app: str, url: str, record: Path, log: Path, *options: str) -> None:
        environment = {**os.environ, "RESPOOL_URL": url, VARIABLE: str(record)}
        command = [sys.executable, "-m", "respool", "-A", app, "worker", "-c", "2", *options]
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    def children(self, app: App) -> list[int]:
        """Return its children's process ids, as of its last beat."""
        for worker in app.engine.workers():
            if worker.pid == self.process.pid:
                return [child["pid"] for child in worker.info.get("children", ())]
        return []

    def kill_child(self, app: App) -> int | None:
        """Kill one of its processes with SIGKILL; return which."""
        for pid in self.children(app):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            return pid
        return None

    def kill(self) -> None:
        """Kill the worker with SIGKILL."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ask the worker to end, and wait until it has."""
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.kill()


@dataclass
class Progress:
    """How far a group is."""

    done: int
    total: int
    dead: int


def watch(
    app: App, group: Group, total: int, worker: DemoWorker, shown: Callable[[Progress], bool]
) -> Progress:
    """Follow a group until nothing is left, or until `shown`, called with each progress, says to stop.

    Raises: RespoolError where nothing has moved for a minute, or the worker has ended by itself.
    """
    moved, last = time.monotonic(), -1
    while True:
        counts = app.engine.counts(group)
        dead = counts.parked.get("dead", 0)
        waiting = sum(counts.parked.values()) - dead
        at = Progress(total - counts.pending - counts.leased - counts.returned - waiting, total, dead)
        if shown(at) or at.done >= total:
            return at
        if at.done != last:
            moved, last = time.monotonic(), at.done
        if worker.process.poll() is not None:
            raise RespoolError(
                f"the worker ended with status {worker.process.returncode}; see the log beside the database"
            )
        if time.monotonic() - moved > STALLED:
            raise RespoolError(f"nothing has moved for {STALLED:g} s; see the log beside the database")
        time.sleep(0.05)


def unprocessed(
    app: App, group: str, calls: Iterable[tuple[str, str]], processed: Collection[str]
) -> tuple[list[str], list[str]]:
    """Return the files that the outside record does not have: those that failed, and those that are lost.

    Parameters:
        calls: each file, and the id of its call. Failed is what is a dead letter; there must be no other.
    """
    failed: list[str] = []
    lost: list[str] = []
    for path, id in calls:
        if path not in processed:
            letter = app.AsyncResult(id, group).find()
            is_dead = letter.status is not None and letter.status.parked is not None
            (failed if is_dead and letter.state == "FAILURE" else lost).append(path)
    return failed, lost


def compared(app: App, ids: Iterable[str]) -> list[dict[str, Any]]:
    """Return each call's path and its outcome in both groups."""
    rows = []
    for id in ids:
        first = app.AsyncResult(id)
        second = first.of("v2")
        rows.append({"id": id, "v1": outcome(first), "v2": outcome(second)})
    return rows


def outcome(result: Any) -> Any:
    """Return what a call gave in its group: the value, or its error in a few words."""
    value = result.get(timeout=5, propagate=False)
    return f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else value


def fingerprint(app: App, group: Group, log: int) -> str:
    """Return a digest of all outcomes of a group: equal before and after, nothing was touched."""
    digest = blake2b(digest_size=16)
    for each in app.engine.outcomes(group.id, first_pos(log), first_pos(log + 1)):
        digest.update(json.dumps([each.pos, each.ending, (each.value or b"").hex(), each.at]).encode())
    return digest.hexdigest()
