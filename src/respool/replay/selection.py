"""Which records a replay, or a group beside `main`, runs: what was asked for, checked and made settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..aliases import with_aliases
from ..app import App
from ..engines.base import Engine, Stream
from ..errors import ConfigError, UnknownCall, UnknownName
from ..expression import Expression
from ..record import first_pos, log_of, parse_id
from ..units import rate as per_second
from ..units import share as part
from ..units import utc

STATES = ("PENDING", "SCHEDULED", "RETRY", "SUCCESS", "FAILURE", "REVOKED")
MAX_IDS = 10_000
Bounds = list[tuple[int, int, int]]
"""Log, first, one past the last position."""


class Selection(NamedTuple):
    """Which records. What is None or empty leaves the choice open.

    `where` is an expression over the record: `kwargs.amount > 100 and headers["tenant"] == "acme"`. It can
    name `args`, `kwargs`, `value` (of an event), `headers`, `key`, `task`, `time`, `id`. Of a task whose code
    is known, `kwargs` has its arguments however they were sent, `args` those sent by position.
    """

    tasks: Sequence[str] | None = None
    since: float | None = None  # seconds since 1970, since <= time < until
    until: float | None = None
    key: str | None = None
    headers: Mapping[str, str] | None = None
    where: str | None = None
    share: Any = None  # "5%", by a hash of the id: the same records each time, and in each group
    state: str | None = None  # as of `of` when the worker reads the record
    of: str = "main"
    ids: Sequence[str] = ()
    from_offset: str | int | None = None  # of each partition, or "partition:offset"
    to_offset: str | int | None = None  # itself not included

    @property
    def looks_inside(self) -> bool:
        """Whether more than tasks and bounds decides: then each record must be read to count."""
        return any(
            (self.key is not None, self.headers, self.where is not None, self.share is not None,
             self.state is not None, self.ids)
        )  # fmt: skip

    def settings(self, app: App, stream: Stream) -> dict[str, Any]:
        """Return the group's settings. Raises ConfigError, UnknownName, UnknownCall."""
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ConfigError(f"since {when(self.since)} must be before until {when(self.until)}")
        found: dict[str, Any] = {
            "tasks": None if self.tasks is None else with_aliases(app, self.tasks),
            "since": self.since,
            "until": self.until,
        }
        extra = {
            "key": self.key,
            "headers": dict(self.headers) if self.headers else None,
            "where": None if self.where is None else Expression(self.where).text,
            "places": self._places(app) or None,
            "share": None if self.share is None else part(self.share),
            "positions": self._positions(app) if self.ids else None,
            "from": None if self.from_offset is None else str(self.from_offset),
            "to": None if self.to_offset is None else str(self.to_offset),
            **self._states(app, stream),
        }
        return found | {name: value for name, value in extra.items() if value is not None}

    def _places(self, app: App) -> dict[str, dict[str, int]]:
        """Return where arguments stand that `where` asks for by name, of the tasks whose code is known.

        They are kept with the group, so that whoever runs it chooses alike.
        """
        asked = frozenset[str]() if self.where is None else Expression(self.where).arguments
        found = {}
        for name in app.tasks if self.tasks is None else with_aliases(app, self.tasks):
            names = app.tasks[name].parameters.names if name in app.tasks else []
            places = {each: names.index(each) for each in asked if each in names}
            if places:
                found[name] = places
        return found

    def _states(self, app: App, stream: Stream) -> dict[str, Any]:
        if self.state is None:
            return {}
        if self.state not in STATES:
            raise UnknownName("state", self.state, STATES)
        names = {g.name for g in app.engine.groups() if g.stream == stream.id}
        if self.of not in names:
            raise UnknownName("group", self.of, names)
        return {"state": self.state, "of": self.of}

    def _positions(self, app: App) -> list[int]:
        if len(self.ids) > MAX_IDS:
            raise ConfigError(f"{len(self.ids):,} ids; {MAX_IDS:,} is the most: choose by time or where")
        found = []
        for text in self.ids:
            pos = app.engine.find(app.name, parse_id(text))
            if pos is None:
                raise UnknownCall(f"no call {text}: never appended, or past retention")
            found.append(pos)
        return sorted(set(found))

    def bounds(self, engine: Engine, stream: Stream, settings: Mapping[str, Any]) -> Bounds:
        """Return what of each log the group has to read."""
        low = offsets(self.from_offset, stream, "from_offset")
        high = offsets(self.to_offset, stream, "to_offset")
        windows = engine.window(stream, self.since, self.until)
        positions = settings.get("positions")
        if positions is not None:
            _refuse_strangers(positions, stream, self.ids)
        found = []
        for log, lo, hi in windows:
            if positions is not None:
                here = [pos for pos in positions if log_of(pos) == log]
                lo, hi = (max(lo, here[0]), min(hi, here[-1] + 1)) if here else (lo, lo)
            lo, hi = max(lo, low.get(log, lo)), min(hi, high.get(log, hi))
            found.append((log, lo, max(lo, hi)))
        return found


def _refuse_strangers(positions: Sequence[int], stream: Stream, ids: Sequence[str]) -> None:
    if any(log_of(pos) not in stream.logs for pos in positions):
        raise ConfigError(f"not all of these calls are of {stream.kind} {stream.name}: {', '.join(ids[:5])}")


def offsets(given: str | int | None, stream: Stream, what: str) -> dict[int, int]:
    """Return positions by log, from "1000" (of each partition) or "2:1000,3:50". Raises ConfigError."""
    if given is None:
        return {}
    found = {}
    for text in str(given).split(","):
        match = re.fullmatch(r"(?:(\d+):)?(\d[\d_]*)", text.strip())
        if match is None or int(match[2]) >= 1 << 40:
            raise ConfigError(
                f"{what}: {text.strip()!r} is no offset; one looks like 1000, or 2:1000 of partition 2"
            )
        if match[1] is None:
            logs: Iterable[int] = stream.logs
        elif int(match[1]) < len(stream.logs):
            logs = (stream.logs[int(match[1])],)
        else:
            most = len(stream.logs) - 1
            raise ConfigError(
                f"{what}: {stream.kind} {stream.name} has partitions 0 to {most}, no {match[1]}"
            )
        found.update({log: first_pos(log) + int(match[2]) for log in logs})
    return found


def rate_of(given: Any) -> float | None:
    """Return a rate per second, checked."""
    return None if given is None else per_second(given)


def arguments_nobody_has(app: App, chosen: Selection) -> str:
    """Say which arguments `where` asks for that no task has, of those whose code is known; "" for none."""
    if chosen.where is None:
        return ""
    named = [name for name in (chosen.tasks or app.tasks) if name in app.tasks]
    accepted = [app.tasks[name].parameters.accepts for name in named]
    if not named or None in accepted:
        return ""
    known = sorted(frozenset[str]().union(*(each for each in accepted if each is not None)))
    asked = sorted(Expression(chosen.where).arguments.difference(known))
    if not asked:
        return ""
    who = f"task {named[0]}" if len(named) == 1 else "these tasks"
    return f"no argument of {who} is called {' or '.join(asked)}: there are {', '.join(known) or 'none'}"


def when(seconds: float) -> str:
    """Return a moment for messages, in local time."""
    return utc(seconds).astimezone().isoformat(sep=" ", timespec="seconds")
