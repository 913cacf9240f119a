"""`check`: is every record of every group in exactly one place (P2), and is the log whole?

Read in pages, each from one snapshot, so that it can be run beside workers, holds up nobody, and needs
no more memory for ten million records than for ten thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..app import App
from ..blobs import Store, unnamed
from ..delivery.model import Lease, Parked
from ..delivery.seek import held
from ..engines.base import Engine, Group, ParkedFilter, Stream
from ..errors import OF_ONE_STREAM, BlobsUnavailable, EngineError, StreamUnavailable
from ..record import log_of, offset_of
from .find import Source, sides
from .intervals import common, minus, overlaps, size, union
from .payloads import lost_payloads

if TYPE_CHECKING:
    from ..engines.inspect import Bounds, GroupPage, GroupState, LogState

PAGE = 10_000  # positions looked at together
SHOWN = 5  # examples of one kind of problem
NO_END = frozenset({"retry", "scheduled", "redriven", "lost", "unknown", "blocked", "limited", "returned"})
"""Entries of the journal after which a record is still to be run."""

Ranges = list[tuple[int, int]]
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Problems:
    """What is wrong, kind by kind: how often, and the first few places."""

    counts: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, where: Sequence[str] = (), number: int | None = None) -> None:
        """Note a kind of problem found at some places."""
        self.counts[what] = self.counts.get(what, 0) + (max(len(where), 1) if number is None else number)
        known = self.places.setdefault(what, [])
        known += where[: SHOWN - len(known)]

    def texts(self) -> list[str]:
        """Return one line for each kind."""
        return [
            f"{number:,} {what}"
            + (f": {', '.join(self.places[what])}" if self.places[what] else "")
            + (", …" if number > len(self.places[what]) > 0 else "")
            for what, number in self.counts.items()
        ]


@dataclass(slots=True)
class GroupReport:
    """Where a group's records are; `records` were counted apart from the other figures."""

    stream: Stream
    group: Group
    records: int = 0
    pending: int = 0
    leased: int = 0
    parked: dict[str, int] = field(default_factory=dict)
    done: int = 0
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """What `check` found."""

    groups: list[GroupReport] = field(default_factory=list)
    records: int = 0
    problems: list[str] = field(default_factory=list)  # of the log, the file, and what belongs to no group
    notes: list[str] = field(default_factory=list)  # what was not looked at, or was lost and is known to be

    @property
    def ok(self) -> bool:
        """Say whether nothing is wrong. Warnings do not count."""
        return not self.problems and not any(group.problems for group in self.groups)


def check(source: Source, progress: Progress | None = None, store: Store | None = None) -> Report:
    """Check the log and all groups on it.

    Parameters:
        source: an App or an engine; all apps on the log are checked.
        progress: told how many positions are done, and how many there are.
        store: where large payloads are; default: the App's.

    Returns: totals by group, and what is wrong.

    >>> check(app).ok  # doctest: +SKIP
    True
    """
    engine, _ = sides(source, None)
    report = Report(problems=[f"the file: {text}" for text in engine.damage()])
    damaged = bool(report.problems)
    try:
        _check_all(engine, report, progress)
        _check_payloads(engine, store or (source.payloads.store if isinstance(source, App) else None), report)
    except Exception as error:
        if not damaged:
            raise
        report.problems.append(f"the rest cannot be read: {error}")
    return report


def _check_all(engine: Engine, report: Report, progress: Progress | None) -> None:
    streams = {stream.id: stream for stream in engine.streams()}
    groups, logs = engine.groups(), engine.log_states()
    sizes = {state.log: state.end - state.first for state in logs}
    meter = _Meter(progress, sum(sizes.values()))
    read = [log for group in groups if group.stream in streams for log in streams[group.stream].logs]
    meter.total += sum(sizes.get(log, 0) for log in read)
    try:
        _check_logs(engine, logs, report, meter)
    except EngineError as error:  # the rest may still be readable
        report.problems.append(f"the log cannot be read further: {error}")
    report.notes += engine.losses()
    for what, number in engine.orphans():
        report.problems.append(f"{what} of a group that is gone (number {number})")
    for group in groups:
        if group.stream in streams:
            report.groups.append(_check_group(engine, streams[group.stream], group, meter))
        else:
            report.problems.append(f"group {group.name} reads a stream that is gone (number {group.stream})")


def _check_payloads(engine: Engine, store: Store | None, report: Report) -> None:
    if not engine.has_blobs():
        return
    if store is None:
        report.notes.append(f"large payloads were not looked at: {unnamed()}")
        return
    try:
        lost, ids = lost_payloads(engine, store)
    except (BlobsUnavailable, *OF_ONE_STREAM) as error:
        report.problems.append(f"large payloads cannot be looked at: {error}")
        return
    if lost:
        problems = Problems()
        problems.add(f"large payloads are gone from {store.shown}, of the records", ids, lost)
        report.problems += problems.texts()


class _Meter:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self.total, self._done = progress, total, 0

    def advance(self, by: int) -> None:
        self._done += max(by, 0)
        if self._progress is not None:
            self._progress(min(self._done, self.total), self.total)


def place(pos: int) -> str:
    """Name a position as log and offset."""
    return f"{log_of(pos)}:{offset_of(pos)}"


def _places(ranges: Iterable[tuple[int, int]]) -> list[str]:
    return [place(lo) if hi - lo == 1 else f"{place(lo)}–{offset_of(hi - 1)}" for lo, hi in ranges]


def _check_logs(engine: Engine, logs: Sequence[LogState], report: Report, meter: _Meter) -> None:
    problems, unread = Problems(), dict[str, None]()
    edge = 0
    for state in logs:
        if state.stream is None:
            report.problems.append(f"log {state.log} belongs to a stream that is gone")
        if state.error:
            unread.setdefault(state.error)
            edge = state.log + 1 << 40
            continue
        _check_no_log(engine, edge, state.log << 40, problems)
        edge = state.log + 1 << 40
        for lo, hi in _pages(state.log << 40, state.end, engine.first_record):
            report.records += engine.record_count(lo, hi)
            broken = engine.broken_runs(lo, hi, PAGE)
            if broken:
                problems.add("records without id or time: their run has no head", [place(p) for p in broken])
            meter.advance(hi - max(lo, state.first))
    _check_no_log(engine, edge, 1 << 62, problems)
    report.problems += [f"a log cannot be read: {error}" for error in unread]
    report.problems += problems.texts()


def _pages(lo: int, end: int, following: Callable[[int, int], int | None]) -> Iterator[tuple[int, int]]:
    """Yield pages that hold something. Where a log was cut there may be millions of empty ones."""
    while (found := following(lo, end)) is not None:
        lo = min(found + PAGE, end)
        yield found, lo


def _check_no_log(engine: Engine, lo: int, hi: int, problems: Problems) -> None:
    stray = engine.first_record(lo, hi) if lo < hi else None
    if stray is not None:
        problems.add("records in a log that does not exist", [place(stray)])


def _check_group(engine: Engine, stream: Stream, group: Group, meter: _Meter) -> GroupReport:
    report, problems, warnings = GroupReport(stream, group), Problems(), Problems()
    try:
        _look_through(engine, report, problems, warnings, meter)
    except (EngineError, StreamUnavailable) as error:
        problems.add(f"part that cannot be read: {error}")
    report.problems, report.warnings = problems.texts(), warnings.texts()
    return report


def _look_through(
    engine: Engine, report: GroupReport, problems: Problems, warnings: Problems, meter: _Meter
) -> None:
    stream, group = report.stream, report.group
    state = engine.group_state(group, SHOWN)
    bounds = engine.bounds(stream)  # read later: it can only have grown
    firsts, ends = {log: first for log, first, _ in bounds}, {log: end for log, _, end in bounds}

    def following(lo: int, hi: int) -> int | None:
        parked = engine.parked_after(ParkedFilter(()), group.id, lo - 1, 1)
        places = (engine.first_record(lo, hi), *(pos for pos, _ in parked if pos < hi))
        return min((pos for pos in places if pos is not None), default=None)

    moved = held(group.settings) == "seek"  # what is to be done again counts as done until then
    for at in state.bounds:
        _check_bounds(at, ends[at.log], problems)
    _check_leases(state, problems, warnings)
    if state.stray_parked:
        problems.add("parked where the group has not been", [place(pos) for pos in state.stray_parked])
    for at in state.bounds:
        stop = ends[at.log] if at.stop is None else min(at.stop, ends[at.log])
        for lo, hi in _pages(at.start, stop, following):
            _check_page(engine.group_page(group, lo, hi), report, problems, moved)
            meter.advance(hi - max(lo, firsts[at.log]))
    counted = report.pending + report.leased + sum(report.parked.values()) + report.done
    if counted != report.records:
        problems.add(f"records counted in their places, but {report.records:,} within bounds", number=counted)


def _check_bounds(at: Bounds, end: int, problems: Problems) -> None:
    if at.cursor < at.start:
        problems.add("cursors below the group's start", [f"{place(at.cursor)} < {place(at.start)}"])
    limit = end if at.stop is None else max(at.stop, at.start)
    if at.cursor > limit:
        problems.add("cursors past the last record", [f"{place(at.cursor)} > {place(limit)}"])


def _check_leases(state: GroupState, problems: Problems, warnings: Problems) -> None:
    bounds = {at.log: at for at in state.bounds}
    spans = [(span.lo, span.hi) for lease in state.leases for span in lease.spans]
    for lo, hi in spans:
        at = bounds.get(log_of(lo))
        if at is None or not at.start <= lo < hi <= (
            at.cursor if at.stop is None else min(at.cursor, at.stop)
        ):
            problems.add("leased where the group has not been", _places([(lo, hi)]))
    twice = overlaps(spans)
    if twice:
        problems.add("leased twice", _places(twice), size(twice))
    for lease in state.leases:
        if lease.owner and lease.owner not in state.workers:
            warnings.add("leases of workers that are not registered", [f"worker {lease.owner}"])


def _check_page(page: GroupPage, report: GroupReport, problems: Problems, moved: bool) -> None:
    """Lay the places over one another as ranges: that costs by the range, not by the record."""
    at = page.bounds
    inside = common([(page.lo, page.hi)], [(at.start, page.hi if at.stop is None else at.stop)])
    records = common(page.records, inside)
    unread = common(records, [(max(at.cursor, at.start), page.hi)]) if at.cursor < page.hi else []
    leased = _leased(page.leases, page.lo, page.hi)
    parked = [(each.pos, each.pos + 1) for each in page.parked]
    done = minus(minus(minus(records, unread), leased), union(parked))
    report.records += size(records)
    report.pending += size(unread)
    report.leased += size(common(records, leased))
    report.done += size(done)
    _count_parked(page, records, report, problems)
    both = common(leased, union(parked))
    if both:
        problems.add("leased and parked at once", _places(both), size(both))
    _check_done(page, done, problems, NO_END if moved else NO_END | {"rewound"})


def _leased(leases: Sequence[Lease], lo: int, hi: int) -> Ranges:
    spans = (span for lease in leases for span in lease.spans if span.lo < hi and span.hi > lo)
    return union((max(span.lo, lo), min(span.hi, hi)) for span in spans)


def _count_parked(page: GroupPage, records: Ranges, report: GroupReport, problems: Problems) -> None:
    kept: list[Parked] = page.parked
    gone = {lo for lo, hi in minus(union((p.pos, p.pos + 1) for p in kept), records) for lo in range(lo, hi)}
    for parked in kept:
        if parked.pos not in gone:
            report.parked[parked.reason] = report.parked.get(parked.reason, 0) + 1
        elif parked.body is None:  # H15: one whose record was trimmed keeps its body
            problems.add("parked without a record", [place(parked.pos)])


def _check_done(page: GroupPage, done: Ranges, problems: Problems, no_end: frozenset[str]) -> None:
    """H9: that nothing says otherwise does not make a record done; an entry or an outcome does."""
    outcomes = union((outcome.pos, outcome.pos + 1) for outcome in page.outcomes)
    ended = union((max(lo, page.lo), min(hi, page.hi)) for lo, hi, how in page.journal if how not in no_end)
    unproved = minus(minus(done, ended), outcomes)
    if unproved:
        problems.add("done, but no entry and no outcome says so", _places(unproved), size(unproved))
    dead = union((each.pos, each.pos + 1) for each in page.parked if each.reason == "dead")
    early = minus(common(outcomes, page.records), union([*done, *dead]))
    if early:
        problems.add("not done, but with an outcome", _places(early), size(early))
