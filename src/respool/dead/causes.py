"""Why dead letters died: those with like tracebacks are one cause."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import lru_cache

from ..encoding.remote import StoredError
from .find import ANY, DeadFilter, Source, asked, called, dead_pages, read_error

_FRAME = re.compile(
    r'^ *File "(?P<file>[^"]*)", line \d+, in (?P<name>.*)\n(?: {4}(?P<code>.*)\n)?', re.MULTILINE
)
_OURS = (f"{os.sep}respool{os.sep}worker{os.sep}", f"{os.sep}respool{os.sep}encoding{os.sep}signature.py")
_LIBRARY = re.compile(r"^<|[/\\](site|dist)-packages[/\\]|[/\\]lib[/\\]python3\.\d+[/\\]", re.IGNORECASE)
"""Files of Python's own library, and of what is installed: an error says more of the code that calls them."""
_VARYING = re.compile(r"0x[0-9a-f]+|\d+|'[^']*'|\"[^\"]*\"", re.IGNORECASE)

Frame = tuple[str, str, str]
"""A file, a function in it, and the line of code: without its number, which changes as the file does."""


@dataclass(slots=True)
class Cause:
    """Dead letters that died of the same thing."""

    error: str  # the type's name
    where: str  # the innermost frame of one's own: "shop.py, in fetch: raise OutOfStock(article)"
    count: int = 0
    tasks: dict[str, int] = field(default_factory=dict)
    groups: set[str] = field(default_factory=set)
    first: float = 0.0  # when the first and the last of them died, in seconds since 1970
    last: float = 0.0
    message: str = ""  # of the last
    position: int = 0  # of the last
    traceback: str = field(default="", repr=False)  # of the last


def causes(source: Source, chosen: DeadFilter = ANY, *, app: str | None = None) -> list[Cause]:
    """Return what dead letters died of, the most frequent first.

    Two are alike whose errors have the same type and came by the same lines of code; where there is no
    traceback, the same message but for numbers and what stands in quotes.

    >>> causes(app, DeadFilter(task="fetch"))  # doctest: +SKIP
    """
    engine, app, chosen = asked(source, app, chosen)
    found: dict[object, Cause] = {}
    for stream, group, page in dead_pages(engine, app, chosen):
        for parked in page:
            error = read_error(parked.error)
            frames = _frames(error.traceback)
            alike = (error.type, frames or _VARYING.sub("#", error.message))
            cause = found.get(alike)
            if cause is None:
                cause = found[alike] = Cause(error.type, _where(frames), first=parked.at)
            cause.count += 1
            name = called(stream, group, parked.task)
            cause.tasks[name] = cause.tasks.get(name, 0) + 1
            cause.groups.add(group.name)
            cause.first = min(cause.first, parked.at)
            if parked.at >= cause.last:
                _take_last(cause, error, parked.at, parked.pos)
    return sorted(found.values(), key=lambda cause: (-cause.count, cause.error, cause.where))


def _take_last(cause: Cause, error: StoredError, at: float, pos: int) -> None:
    cause.last, cause.position = at, pos
    cause.message, cause.traceback = error.message, error.traceback


@lru_cache(maxsize=256)
def _frames(traceback: str) -> tuple[Frame, ...]:
    """Return the user's frames of a traceback, of what caused it too."""
    return tuple(
        (match["file"], match["name"], (match["code"] or "").strip())
        for match in _FRAME.finditer(traceback)
        if not any(ours in match["file"] for ours in _OURS)
    )


def _where(frames: tuple[Frame, ...]) -> str:
    if not frames:
        return ""
    own = [frame for frame in frames if not _LIBRARY.search(frame[0])]
    file, name, code = (own or frames)[-1]
    return f"{os.path.basename(file)}, in {name}" + (f": {code}" if code else "")
