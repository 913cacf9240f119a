"""The record kept outside the database: one line for each run that came to its end."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

VARIABLE = "RESPOOL_DEMO_RECORD"
_open: dict[str, int] = {}


def note(version: str, path: str) -> None:
    """Append a line in one write, so that neither a kill nor another process can tear it."""
    target = os.environ[VARIABLE]
    if target not in _open:
        _open[target] = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(_open[target], f"{version}\t{os.getpid()}\t{path}\n".encode("utf-8", "surrogateescape"))


def runs(record: Path, version: str) -> Counter[str]:
    """Return how often each file was processed by a version."""
    found: Counter[str] = Counter()
    for line in record.read_text("utf-8", "surrogateescape").splitlines():
        ran, _pid, path = line.split("\t", 2)
        if ran == version:
            found[path] += 1
    return found
