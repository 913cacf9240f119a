"""What two groups made of the same calls: call by call, page by page, while they run too."""

from __future__ import annotations

import difflib
import math
import pprint
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ..aliases import with_aliases
from ..clock import now as wall_clock
from ..encoding.codec import codec_for
from ..encoding.refusals import brief
from ..encoding.remote import error_summary
from ..engines import public_id
from ..engines.base import Engine, Group, Status, Stream
from ..errors import ConfigError, RespoolError
from ..places import Places
from ..record import id_text
from ..reference import is_reference, same_payload
from .edits import edits_in

PAGE = 500  # positions whose values are in memory at once
Verdict = Literal[
    "same", "different", "only_a", "only_b", "failed_a", "failed_b", "failed_both", "unfinished"
]
TOLD: tuple[Verdict, ...] = ("failed_b", "different", "failed_a")
"""What a sample is of: what is new and fails first, what was failing and does not last."""
Comparator = Callable[[Any, Any], Any]
Load = Callable[[bytes], Any]


class Side(NamedTuple):
    """What a call came to in one group; `absent`: it was left out or revoked, or its value is not kept."""

    kind: Literal["value", "failure", "waiting", "absent"]
    stored: bytes | None = None  # the value or the error, as stored


class Tolerance(NamedTuple):
    """How far numbers may lie apart and still be the same."""

    absolute: float = 0.0
    relative: float = 0.0


@dataclass(slots=True)
class Difference:
    """A call that the groups made different things of."""

    id: str
    task: str
    verdict: Verdict
    a: Any  # the value, or the error as text
    b: Any
    position: int

    def diff(self, names: tuple[str, str]) -> list[str]:
        """Return the difference as lines of a diff."""
        left, right = (_lines(each) for each in (self.a, self.b))
        return list(difflib.unified_diff(left, right, *names, lineterm="", n=2))


@dataclass(slots=True)
class Comparison:
    """How the calls of two groups compare."""

    stream: Stream = field(repr=False)
    a: Group = field(repr=False)
    b: Group = field(repr=False)
    counts: dict[Verdict, int] = field(default_factory=dict)
    tasks: dict[str, dict[Verdict, int]] = field(default_factory=dict)
    sample: list[Difference] = field(default_factory=list, repr=False)
    differences: int = 0

    def count(self, verdict: Verdict) -> int:
        """Return how many calls came to this."""
        return self.counts.get(verdict, 0)

    @property
    def compared(self) -> int:
        """How many calls are finished in both groups."""
        names: tuple[Verdict, ...] = ("same", "different", "failed_a", "failed_b", "failed_both")
        return sum(map(self.count, names))

    @property
    def share(self) -> float:
        """Which part of those compared differs: another value, or failed in one of them only."""
        apart = self.count("different") + self.count("failed_a") + self.count("failed_b")
        return apart / self.compared if self.compared else 0.0


def compare(
    source: Any,
    stream: Stream,
    a: Group,
    b: Group,
    *,
    tasks: Sequence[str] | None = None,
    since: float | None = None,
    until: float | None = None,
    tolerance: Tolerance = Tolerance(),  # noqa: B008 - it is immutable
    comparator: Comparator | None = None,
    sample: int = 10,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compare what two groups of a queue made of the same calls; neither is changed, and both may go on.

    A call that was redriven with an edit has nothing to compare in that group: it had other arguments.

    Parameters:
        source: an App or an engine. tasks, since, until: only these calls.
        tolerance: how far numbers may lie apart, also within lists and dicts.
        comparator: says of two values whether they are the same; instead of `tolerance`.
        sample: how many differences to keep, drawn evenly from all of a kind: what failed in b only comes
            first, and of each other kind there is one where there is room for it.

    Raises: ConfigError where the comparator raises: with the call, and both values.

    >>> compare(app, queue, main, v2).share < 0.01  # doctest: +SKIP
    """
    engine: Engine = getattr(source, "engine", source)
    tasks = None if tasks is None else with_aliases(source, tasks)
    load: Load | None = source.payloads.load if engine is not source else None
    result, sampled = Comparison(stream, a, b), _Sample(sample)
    judge = _Judge(tolerance, comparator, load)
    for pos, left, right, task in _each(engine, stream, a, b, tasks, since, until, progress):
        verdict = judge.verdict(engine, pos, left, right)
        result.counts[verdict] = result.counts.get(verdict, 0) + 1
        by_task = result.tasks.setdefault(task, {})
        by_task[verdict] = by_task.get(verdict, 0) + 1
        if verdict in TOLD:
            result.differences += 1
            if (place := sampled.place(verdict)) is not None:
                shown = judge.shown(left), judge.shown(right)
                sampled.keep(place, Difference(_id(engine, pos), task, verdict, *shown, pos))
    result.sample = sampled.chosen()
    return result


class _Sample:
    """Differences drawn evenly from all of each kind, those first that matter most."""

    def __init__(self, most: int) -> None:
        self._most, self._draw = most, random.Random(0)
        self._seen: dict[Verdict, int] = dict.fromkeys(TOLD, 0)
        self._kept: dict[Verdict, list[Difference]] = {verdict: [] for verdict in TOLD}

    def place(self, verdict: Verdict) -> int | None:
        """Return where the next one of a kind goes, None where it is not drawn."""
        self._seen[verdict] += 1
        place = self._seen[verdict] - 1
        if place >= self._most:
            place = self._draw.randrange(self._seen[verdict])
        return place if place < self._most else None

    def keep(self, place: int, found: Difference) -> None:
        """Put one there."""
        self._kept[found.verdict][place : place + 1] = [found]

    def chosen(self) -> list[Difference]:
        """Return as many as asked for: kind by kind, one of each if there is room, in order of position."""
        kinds = [verdict for verdict in TOLD if self._kept[verdict]]
        sizes: dict[Verdict, int] = dict.fromkeys(kinds[: self._most], 1)
        for verdict in sizes:
            sizes[verdict] += min(self._most - sum(sizes.values()), len(self._kept[verdict]) - 1)
        return [
            found
            for verdict, size in sizes.items()
            for found in sorted(self._kept[verdict][:size], key=lambda each: each.position)
        ]


def _each(
    engine: Engine,
    stream: Stream,
    a: Group,
    b: Group,
    tasks: Sequence[str] | None,
    since: float | None,
    until: float | None,
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[int, Side, Side, str]]:
    """Yield (position, in a, in b, task) of the calls that either group has to do with."""
    ranges = list(_ranges(engine, stream, a, b, since, until))
    total, done = sum(hi - lo for lo, hi in ranges), 0
    for first, end in ranges:
        for lo in range(first, end, PAGE):
            hi = min(lo + PAGE, end)
            chosen = {each.pos: each.task for each in engine.briefs(lo, hi, None, since, until, 0)}
            sides = _sides(engine, a, lo, hi), _sides(engine, b, lo, hi)
            for pos, task in chosen.items():
                left, right = sides[0](pos), sides[1](pos)
                both_absent = left.kind == right.kind == "absent"
                if not both_absent and (tasks is None or task in tasks):
                    yield pos, left, right, task
            done += hi - lo
            if progress is not None:
                progress(done, total)


def _ranges(
    engine: Engine, stream: Stream, a: Group, b: Group, since: float | None, until: float | None
) -> Iterator[tuple[int, int]]:
    """Yield what at least one of the groups has read, log by log."""
    windows = {log: (lo, hi) for log, lo, hi in engine.window(stream, since, until)}
    left = {at.log: at for at in engine.group_bounds(a)}
    right = {at.log: at for at in engine.group_bounds(b)}
    for log in windows.keys() & left.keys() & right.keys():
        low, high = windows[log]
        lo = max(low, min(left[log].start, right[log].start))
        hi = min(high, max(left[log].cursor, right[log].cursor))
        if lo < hi:
            yield lo, hi


def _sides(engine: Engine, group: Group, lo: int, hi: int) -> Callable[[int], Side]:
    """Return what says what a call of a page came to in a group."""
    places = Places(engine.group_page(group, lo, hi))
    values = {outcome.pos: outcome for outcome in engine.outcomes(group.id, lo, hi)}
    now = wall_clock()

    def side(pos: int) -> Side:
        status: Status = places.status(pos)
        outcome = values.get(pos)
        if status.place in ("pending", "leased"):
            return Side("waiting")
        if status.parked is not None and status.parked.reason != "dead":
            return Side("waiting")
        if edits_in(engine, group, places, pos):
            return Side("absent")
        if outcome is not None:
            if outcome.ending == "failure":
                return Side("failure", outcome.value)
            gone = outcome.ending == "revoked" or outcome.expired(now)
            return Side("absent") if gone else Side("value", outcome.value)
        return Side("value") if status.place == "done" and status.how == "done" else Side("absent")

    return side


class _Judge:
    """Says whether two outcomes are the same."""

    def __init__(self, tolerance: Tolerance, comparator: Comparator | None, load: Load | None) -> None:
        self._tolerance, self._comparator, self._load = tolerance, comparator, load
        self._decode = codec_for("msgpack").decode

    def verdict(self, engine: Engine, pos: int, a: Side, b: Side) -> Verdict:
        """Return what a call came to in both."""
        if a.kind == "absent" or b.kind == "absent":
            other = b if a.kind == "absent" else a
            if other.kind == "waiting":
                return "unfinished"
            return "only_b" if other is b else "only_a"
        if a.kind == "waiting" or b.kind == "waiting":
            return "unfinished"
        if a.kind == "failure" or b.kind == "failure":
            return "failed_both" if a.kind == b.kind else "failed_a" if a.kind == "failure" else "failed_b"
        if self._comparator is None and _same_bytes(a.stored, b.stored):
            return "same"
        return "same" if self._are_same(engine, pos, self._value(a), self._value(b)) else "different"

    def _are_same(self, engine: Engine, pos: int, a: Any, b: Any) -> bool:
        if self._comparator is None:
            return equal(a, b, self._tolerance)
        try:
            said = self._comparator(a, b)
        except Exception as error:  # a user's code may raise anything
            raise ConfigError(
                f"the comparator raised {type(error).__name__}: {error}; for call {_id(engine, pos)}, with "
                f"{brief(a, 200)} and {brief(b, 200)}"
            ) from error
        if said is None:
            raise ConfigError("the comparator returned None; it must say whether the values are the same")
        return bool(said)

    def _value(self, side: Side) -> Any:
        stored: Any = side.stored
        if stored is None:
            return None
        if is_reference(stored):
            if self._load is None:
                return f"(in the blob store: {same_payload(stored)[-32:].hex()})"
            stored = self._load(stored)
        return self._decode(stored)

    def shown(self, side: Side) -> Any:
        """Return the value, or an error as text."""
        if side.kind == "value":
            try:
                return self._value(side)
            except RespoolError as error:
                return f"(cannot be read: {error})"
        kind, message = error_summary(side.stored) if side.stored is not None else ("an error", "not kept")
        return f"{kind}: {message}" if message else kind


def _same_bytes(a: bytes | None, b: bytes | None) -> bool:
    if a is None or b is None:
        return a is b
    return same_payload(a) == same_payload(b)


def equal(a: Any, b: Any, tolerance: Tolerance) -> bool:
    """Say whether two values are the same, numbers within a tolerance, in whatever they are nested.

    >>> equal({"x": [1.0, 2]}, {"x": [1.001, 2]}, Tolerance(absolute=0.01))
    True
    """
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        if a == b or (a != a and b != b):
            return True
        return math.isclose(a, b, rel_tol=tolerance.relative, abs_tol=tolerance.absolute)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(equal(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(equal(x, y, tolerance) for x, y in zip(a, b, strict=True))
    return bool(type(a) is type(b) and a == b)


def _lines(value: Any) -> list[str]:
    if isinstance(value, str):
        return value.splitlines() or [""]
    return pprint.pformat(value, width=80, sort_dicts=True).splitlines()


def _id(engine: Engine, pos: int) -> str:
    found = engine.briefs(pos, pos + 1, None, None, None, 0)
    return id_text(public_id(found[0].id)) if found else "(record gone)"
