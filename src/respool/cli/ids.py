"""Ids given by their beginning, as people copy them: which call is meant.

Most ids begin with the time at which they were made, and logs have an index on time: so a beginning is a
window. Other ids (those given by hand, those of calls that a run made long after it began) are looked for
among the newest records.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from ..engines import public_id
from ..errors import ConfigError
from ..record import id_text

if TYPE_CHECKING:
    from ..engines.base import Stream
    from ..engines.inspect import Brief
    from .target import Target

LEAST = 6  # characters: those of a time up to some hours
LOOK = 100_000  # records that are looked at
PAGE = 2_000  # positions
SHOWN = 10  # candidates
SLACK = 5.0  # seconds that the clock of who made an id may lie beside that of a record


class Candidate(NamedTuple):
    """A call whose id begins so."""

    id: str
    task: str
    time: float


def whole_id(target: Target, beginning: str) -> str | None:
    """Return the one id that begins so, None where there is none among the records looked at.

    Raises: ConfigError where there are several; it lists them.
    """
    if len(beginning) < LEAST:
        return None
    window = window_of(beginning)
    found = set(_beginning_with(target, beginning, *window)) if window is not None else set()
    found = found or set(_beginning_with(target, beginning, None, None))
    if len(found) > 1:
        raise ConfigError(_told(beginning, sorted(found, key=lambda each: (each.time, each.id))))
    return next((each.id for each in found), None)


def window_of(beginning: str) -> tuple[float, float] | None:
    """Return the times at which ids may have been made that begin so; None for those that tell no time."""
    digits = _digits(beginning)
    if digits is None:
        return None
    first, last = int(f"{digits[:12]:0<12}", 16) / 1000, int(f"{digits[:12]:f<12}", 16) / 1000
    return first - SLACK, last + SLACK


def _digits(beginning: str) -> str | None:
    """Return what a UUID may begin with, as it is shown less its dashes; None for another text."""
    digits = beginning.replace("-", "").lower()
    return digits if re.fullmatch(r"[0-9a-f]{6,32}", digits) else None


def _beginning_with(
    target: Target, beginning: str, since: float | None, until: float | None
) -> Iterator[Candidate]:
    """Yield, the newest first, one more than are shown at most."""
    left = SHOWN + 1
    digits = _digits(beginning)
    for brief in _newest(target, since, until):
        id = id_text(public_id(brief.id))
        if id.startswith(beginning) or (digits is not None and id.replace("-", "").startswith(digits)):
            yield Candidate(id, brief.task, brief.time)
            left -= 1
            if not left:
                return


def _newest(target: Target, since: float | None, until: float | None) -> Iterator[Brief]:
    """Yield records of a window, of each log as many of the newest as make `LOOK` of all."""
    ranges = [
        (lo, hi) for stream in target.streams.values() for lo, hi in _ranges(target, stream, since, until)
    ]
    for lo, hi in ranges:
        low = max(lo, hi - max(LOOK // len(ranges), 1))
        for end in range(hi, low, -PAGE):
            yield from reversed(target.engine.briefs(max(end - PAGE, low), end, None, since, until, 0))


def _ranges(
    target: Target, stream: Stream, since: float | None, until: float | None
) -> list[tuple[int, int]]:
    return [(lo, hi) for _, lo, hi in target.engine.window(stream, since, until) if lo < hi]


def _told(beginning: str, found: list[Candidate]) -> str:
    from .output import when

    lines = [f"  {each.id}  {each.task or 'event'}, sent {when(each.time)}" for each in found[:SHOWN]]
    if len(found) > SHOWN:
        lines.append("  and more")
    return "\n".join([f"{beginning} is the beginning of several ids; give more of it:", *lines])
