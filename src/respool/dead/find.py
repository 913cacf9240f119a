"""Finding dead letters: by where they are, what failed them, when, and what their records say."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from ..aliases import with_aliases
from ..delivery.model import JournalEntry, Parked
from ..delivery.spans import joined
from ..encoding.remote import StoredError, stored_error
from ..engines import public_id
from ..engines.base import Engine, Group, ParkedFilter, Record, Stream
from ..errors import ConfigError, CorruptBody, UnknownCall, UnknownName
from ..record import id_text, log_of, parse_id, read_meta
from ..units import utc

SCAN = 50_000  # positions counted in one statement
SLICE = 1000  # dead letters looked at, or changed in one transaction

Source = Any
"""An App, for its own dead letters, or an engine, for those of all apps."""


class DeadFilter(NamedTuple):
    """Which dead letters. What is None or empty leaves the choice open."""

    queue: str | None = None  # or stream
    group: str | None = None
    task: str | None = None
    ids: Sequence[str] = ()
    error: str | None = None  # the type's name, with or without its module; * stands for anything
    message: str | None = None  # a regular expression, found anywhere in the error's message
    since: float | None = None  # died since <= at < until, in seconds since 1970
    until: float | None = None
    key: str | None = None
    headers: Mapping[str, str] | None = None  # all of these
    aliases: Sequence[str] = ()  # other names of the task; an App knows them by itself

    @property
    def looks_inside(self) -> bool:
        """Whether the errors or the records themselves decide."""
        return any(each is not None for each in (self.error, self.message, self.key, self.headers))


ANY = DeadFilter()
_TEXTS = ("queue", "group", "task", "error", "message", "key")


def checked(chosen: DeadFilter) -> DeadFilter:
    """Return what was chosen. Raises ConfigError for a value of another type, which would find nothing."""
    for name in _TEXTS:
        value = getattr(chosen, name)
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"dead_letters: {name}={value!r:.80} is not text")
    if isinstance(chosen.ids, str | bytes | Mapping) or not isinstance(chosen.ids, Collection):
        raise ConfigError(f"dead_letters: ids={chosen.ids!r:.80} is no list of ids")
    if chosen.headers is not None and not isinstance(chosen.headers, Mapping):
        raise ConfigError(f"dead_letters: headers={chosen.headers!r:.80} is no dict of text by name")
    return chosen


class DeadLetter(NamedTuple):
    """A parked record that nothing runs by itself, and where it is."""

    stream: Stream
    group: Group
    parked: Parked
    engine: Engine

    def __repr__(self) -> str:
        died = utc(self.died).astimezone().isoformat(" ", "seconds")
        reads = f"{self.stream.kind} {self.stream.name}, group {self.group.name}"
        what = f"{self.error.type}: {self.error.message}" if self.error.message else self.error.type
        return f"<DeadLetter {self.task or 'event'} of {reads}, {died}: {' '.join(what.split())[:200]}>"

    @property
    def task(self) -> str:
        """The task, or the type of an event."""
        return self.parked.task

    @property
    def id(self) -> str:
        """The call's id."""
        return id_text(public_id(self.record.id))

    @property
    def record(self) -> Record:
        """The call as it was recorded; it is kept for as long as it is a dead letter. Raises UnknownCall."""
        for record in self.engine.records(self.parked.pos, self.parked.pos + 1, 1):
            return record
        raise UnknownCall("the record of this dead letter was purged since")

    @property
    def died(self) -> float:
        """When it died, in seconds since 1970."""
        return self.parked.at

    @property
    def error(self) -> StoredError:
        """What it died of: `type`, `message`, `traceback`, and the `worker` it ran on."""
        return read_error(self.parked.error)

    def history(self) -> list[JournalEntry]:
        """Return what happened to it, the oldest first: runs, retries, redrives."""
        return self.engine.journal(self.group.id, self.parked.pos)


def read_error(error: bytes | None) -> StoredError:
    """Return an error as it was stored; a damaged one says so."""
    if error is None:
        return StoredError("", "", "", "")
    try:
        return stored_error(error)
    except CorruptBody as damaged:
        return StoredError("CorruptBody", str(damaged), "", "")


def sides(source: Source, app: str | None) -> tuple[Engine, str | None]:
    """Return the engine, and the app that listings keep to."""
    return (source.engine, source.name) if hasattr(source, "engine") else (source, app)


def asked(source: Source, app: str | None, chosen: DeadFilter) -> tuple[Engine, str | None, DeadFilter]:
    """Return the same, and the filter with the names that its task's calls may be recorded under."""
    if chosen.task is not None and not chosen.aliases:
        aliases = tuple(name for name in with_aliases(source, [chosen.task]) if name != chosen.task)
        chosen = chosen._replace(aliases=aliases)
    return *sides(source, app), chosen


def dead_letters(
    source: Source, chosen: DeadFilter = ANY, limit: int = 100, *, app: str | None = None
) -> list[DeadLetter]:
    """Return the oldest dead letters that match, at most `limit`.

    Parameters:
        source: an App, for its own, or an engine, for those of all apps, or of the one named `app`.

    Raises: UnknownName for a queue or group that does not exist; ConfigError for a pattern that is none.
    """
    engine, app, chosen = asked(source, app, chosen)
    if chosen.looks_inside:
        found = (
            DeadLetter(stream, group, parked, engine)
            for stream, group, page in dead_pages(engine, app, chosen)
            for parked in page
        )
        return heapq.nsmallest(limit, found, key=lambda each: (each.parked.at, each.parked.pos))
    groups = {group.id: (stream, group) for stream, group in _groups(engine, app, chosen)}
    positions = _positions(engine, app, chosen)
    if not groups or positions == []:
        return []
    wanted = _parked_filter(chosen, positions)._replace(groups=list(groups))
    return [DeadLetter(*groups[id], parked, engine) for id, parked in engine.parked(wanted, limit)]


def count_dead(source: Source, chosen: DeadFilter = ANY, *, app: str | None = None) -> dict[str, int]:
    """Return how many dead letters match, by task; events without a type by stream and group."""
    engine, app, chosen = asked(source, app, chosen)
    counts: dict[str, int] = {}
    for stream, group, tasks in _tasks(engine, app, chosen):
        for task in tasks:
            name = called(stream, group, task)
            counts[name] = counts.get(name, 0) + 1
    return counts


def called(stream: Stream, group: Group, task: str) -> str:
    """Return what a dead letter is called: its task, or its event's type; where it has none, whose it is."""
    return task or f"{stream.kind} {stream.name}, group {group.name}"


def _tasks(
    engine: Engine, app: str | None, chosen: DeadFilter
) -> Iterator[tuple[Stream, Group, Sequence[str]]]:
    """Yield the tasks of those that match, page by page; nothing is read of each that is not needed."""
    if chosen.looks_inside:
        for stream, group, page in dead_pages(engine, app, chosen):
            yield stream, group, [parked.task for parked in page]
        return
    positions = _positions(engine, app, chosen)
    wanted = _parked_filter(chosen, positions)
    for stream, group in _groups(engine, app, chosen) if positions != [] else ():
        after = -1
        while found := engine.parked_after(wanted, group.id, after, SLICE):
            after = found[-1][0]
            yield stream, group, [task for _, task in found]


def dead_pages(
    engine: Engine, app: str | None, chosen: DeadFilter
) -> Iterator[tuple[Stream, Group, list[Parked]]]:
    """Yield the dead letters that match, by group and position: what dies again is not met again."""
    positions = _positions(engine, app, chosen)
    wanted, matches = _parked_filter(chosen, positions), _matcher(engine, chosen)
    for stream, group in _groups(engine, app, chosen) if positions != [] else ():
        after = -1
        while page := engine.parked_page(wanted, group.id, after, SLICE):
            after = page[-1].pos
            kept = matches(page)
            if kept:
                yield stream, group, kept


def _parked_filter(chosen: DeadFilter, positions: list[int] | None) -> ParkedFilter:
    tasks = () if chosen.task is None else (chosen.task, *chosen.aliases)
    return ParkedFilter((), ("dead",), tasks, positions or (), chosen.since, chosen.until)


def _matcher(engine: Engine, chosen: DeadFilter) -> Callable[[list[Parked]], list[Parked]]:
    """Return what picks those of a page whose error and record are as asked for."""
    pattern = _pattern(chosen.message)

    def by_error(parked: Parked) -> bool:
        kind, message = read_error(parked.error)[:2]
        named = chosen.error is None or _is_called(kind, chosen.error)
        return named and (pattern is None or pattern.search(message) is not None)

    def matches(page: list[Parked]) -> list[Parked]:
        if chosen.error is not None or pattern is not None:
            page = [parked for parked in page if by_error(parked)]
        if (chosen.key is not None or chosen.headers) and page:
            right = _by_record(engine, page, chosen)
            page = [parked for parked in page if parked.pos in right]
        return page

    return matches


def _pattern(message: str | None) -> re.Pattern[str] | None:
    if message is None:
        return None
    try:
        return re.compile(message)
    except re.error as error:
        raise ConfigError(f"message: {message!r} is no regular expression: {error}") from error


def _is_called(kind: str, wanted: str) -> bool:
    return fnmatchcase(kind, wanted) or fnmatchcase(kind.rpartition(".")[2], wanted)


def _by_record(engine: Engine, page: list[Parked], chosen: DeadFilter) -> set[int]:
    """Return the positions of those whose records have the key and the headers."""
    right = set()
    for pos, _, _, packed in engine.rows(joined(parked.span()._replace(retries=0) for parked in page)):
        if packed is None:
            continue
        meta = read_meta(packed)
        has = meta.headers or {}
        if chosen.key in (None, meta.key) and all(
            has.get(name) == value for name, value in (chosen.headers or {}).items()
        ):
            right.add(pos)
    return right


def _positions(engine: Engine, app: str | None, chosen: DeadFilter) -> list[int] | None:
    """Return where the records with the ids given are; None where none were given."""
    if not chosen.ids:
        return None
    spaces = [app] if app else sorted({s.app for s in engine.streams() if s.app})
    spaces += [f"stream:{s.name}" for s in engine.streams() if s.kind == "stream"]
    found = []
    for text in chosen.ids:
        here = {pos for space in spaces if (pos := engine.find(space, parse_id(text))) is not None}
        if not here:
            raise UnknownCall(f"no call {text}: never appended, or past retention")
        found += sorted(here)
    return found


def _groups(engine: Engine, app: str | None, chosen: DeadFilter) -> list[tuple[Stream, Group]]:
    streams = {s.id: s for s in engine.streams()}
    here = [(streams[g.stream], g) for g in engine.groups() if app in (None, g.app)]
    if chosen.queue is not None:
        names = {stream.name for stream, _ in here}
        here = [(stream, group) for stream, group in here if stream.name == chosen.queue]
        if not here:
            raise UnknownName("queue", chosen.queue, names)
    if chosen.group is not None:
        names = {group.name for _, group in here}
        here = [(stream, group) for stream, group in here if group.name == chosen.group]
        if not here:
            raise UnknownName("group", chosen.group, names)
    return here


def refuse_unknown_task(engine: Engine, tasks: Iterable[str], name: str, streams: Iterable[Stream]) -> None:
    """Raise UnknownName, which suggests the near one, where neither the code nor a record has a task.

    It reads the streams from end to end: for where nothing was found.
    """
    known = {*tasks}
    if name in known:
        return
    for stream in streams:
        for _, first, end in engine.bounds(stream):
            for lo in range(first, end, SCAN):
                known.update(engine.task_counts(lo, min(lo + SCAN, end), None, None))
    known.discard("")  # events without a type
    if known and name not in known:
        raise UnknownName("task", name, known)


def logs_of(positions: Sequence[int]) -> set[int]:
    """Return the logs that some positions lie in."""
    return {log_of(pos) for pos in positions}
