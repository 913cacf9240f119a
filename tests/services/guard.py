"""What ends a service whose owner ended first.

Servers started for a test run must not outlive it, even where the process that started them was killed
and had no chance to stop them. So each such process (the owner) has a guard: a small process that is told
which servers and folders there are, waits for the owner's end, and then ends and removes what is left.

This file runs by itself (`python -I -S guard.py OWNER`) and so imports nothing of this package.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

PATIENCE = 5.0  # seconds a server has to end by itself before it is killed


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it, parents first.

    A server's children need not be in its process group (PostgreSQL's are not): all processes are read.
    """
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat(int(entry))
            if fields is not None:
                children.setdefault(int(fields[1]), []).append(int(entry))
    found = [pid]
    for parent in found:  # grows while it is read
        found.extend(children.get(parent, ()))
    return found


def started(pid: int) -> int | None:
    """Return when a process started, in ticks since the machine did; None where there is no such process.

    With the pid this names one process for good: pids are used again. One that has ended but was not waited
    for counts as gone.
    """
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the third (the state) on: the second, a name, may hold all."""
    try:
        text = Path("/proc", str(pid), "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def end(pid: int, gentle: int, patience: float = PATIENCE) -> bool:
    """End a process and its descendants: first by a signal to it alone, then by killing all that are left.

    Held processes (SIGSTOP) are let go on, else they could not end. Returns whether all of them are gone.
    """
    handles = _handles(family(pid))
    try:
        if pid in handles:
            _send(handles[pid], gentle)
            for handle in handles.values():
                _send(handle, signal.SIGCONT)
            _gone(handles, patience)
        for handle in handles.values():
            _send(handle, signal.SIGKILL)
        return _gone(handles, patience)
    finally:
        for handle in handles.values():
            os.close(handle)


def _handles(pids: list[int]) -> dict[int, int]:
    """Return a descriptor for each process that is there: it never names another, as a pid may."""
    handles = {}
    for pid in pids:
        try:
            handles[pid] = os.pidfd_open(pid)
        except ProcessLookupError:  # ended meanwhile: nothing to be done
            continue
    return handles


def _send(handle: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:  # it has ended, which is what a signal could lead to at most
        return


def _gone(handles: dict[int, int], patience: float) -> bool:
    """Wait until all have ended; return whether they have."""
    deadline = time.monotonic() + patience
    poll, waiting = select.poll(), set(handles.values())
    for handle in waiting:
        poll.register(handle, select.POLLIN)
    while waiting and (left := deadline - time.monotonic()) > 0:
        for handle, _ in poll.poll(left * 1000):
            poll.unregister(handle)
            waiting.discard(handle)
    return not waiting


class Guard:
    """The owner's side: tells the guard what there is, and ends it when there is nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: set[str] = set()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def hold(self, folder: Path, pid: int | None = None, gentle: int = signal.SIGKILL) -> None:
        """Have a folder removed, and a server ended, in case this process ends first."""
        with self._lock:
            if (
                self._owner != os.getpid()
            ):  # the first time, or this is a fork: what its parent holds is not its
                self._held, self._process, self._owner = set(), None, os.getpid()
            self._held.add(str(folder))
            start = None if pid is None else started(pid)
            self._tell({"folder": str(folder), "pid": pid, "start": start, "gentle": int(gentle)})

    def release(self, folder: Path) -> None:
        """Forget a folder and its server: they are gone."""
        with self._lock:
            if self._owner != os.getpid() or str(folder) not in self._held:
                return
            self._held.discard(str(folder))
            if self._held:
                self._tell({"folder": str(folder), "gone": True})
            elif self._process is not None:
                self._process.communicate("null\n", timeout=PATIENCE)
                self._process = None

    def _tell(self, what: dict[str, object]) -> None:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the owner
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()


def main(owner: int) -> None:
    """Wait for the owner's end, or for its word that nothing is left."""
    held: dict[str, dict[str, int | None]] = {}
    text = b""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    try:
        handle = os.pidfd_open(owner)
    except ProcessLookupError:  # what it wrote before it ended is still to be read
        handle = -1
    else:
        poll.register(handle, select.POLLIN)
    while True:
        ready = [fd for fd, _ in poll.poll(0 if handle == -1 else None)]
        if 0 in ready:
            more = os.read(0, 65536)
            if not more:
                poll.unregister(0)
            text += more
            *lines, text = text.split(b"\n")
            for line in lines:
                told = json.loads(line)
                if told is None:
                    return
                if told.get("gone"):
                    held.pop(told["folder"], None)
                else:
                    held[told["folder"]] = told
        elif handle in ready or handle == -1:  # and nothing more to read
            break
    for folder, told in held.items():
        pid = told["pid"]
        if pid is not None and told["start"] is not None and started(pid) == told["start"]:
            end(pid, told["gentle"] or signal.SIGKILL)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(int(sys.argv[1]))
