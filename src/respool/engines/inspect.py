"""What commands and `check` ask of a log and its groups.

None of it is on a worker's way, but workers run meanwhile: each call is one page, read from one snapshot, and
holds up nobody. Callers go through a log in pages of a thousand to fifty thousand positions.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ..delivery.model import Lease, Outcome, Parked
from ..record import Id, Meta
from .things import Group, ParkedFilter

__all__ = ["Bounds", "Brief", "GroupPage", "GroupState", "Inspect", "LogState"]


class Brief(NamedTuple):
    """A record as lists show it: `body` is None where it is longer than was asked for."""

    pos: int
    id: Id
    time: float
    task: str
    size: int
    body: bytes | None
    meta: Meta


class Bounds(NamedTuple):
    """What a group reads of one log, start <= p < stop (None: no end), and how far it is."""

    log: int
    start: int
    cursor: int
    stop: int | None


class GroupPage(NamedTuple):
    """Everything a group knows of lo <= p < hi, positions of one log, at one moment."""

    lo: int
    hi: int
    bounds: Bounds
    leases: list[Lease]  # all of the group
    parked: list[Parked]  # without bodies (b"" where there is one) and errors
    outcomes: list[Outcome]  # without values
    journal: list[tuple[int, int, str]]  # lo, hi, how; the oldest first
    records: list[tuple[int, int]]  # ranges of positions that hold a record


class GroupState(NamedTuple):
    """A group as a whole at one moment, for `check`."""

    bounds: list[Bounds]
    leases: list[Lease]
    workers: set[int]
    stray_parked: list[int]


class LogState(NamedTuple):
    """One log: its lowest free position as far as it was stored, and the range it holds."""

    log: int
    stream: int | None  # None: its stream is gone
    floor: int
    first: int
    end: int
    error: str = ""  # why it cannot be read: then nothing is known of the range


class Gaps(NamedTuple):
    """Numbers that a group has passed and that may yet hold records: their transactions have not ended."""

    numbers: int
    ranges: int
    most: int  # ranges that there is room for; beyond that the group waits
    since: float  # wall-clock seconds since when the oldest is there


class Inspect(Protocol):
    """Reads for people."""

    def gaps(self, group: int) -> Gaps | None:
        """Return what a group keeps a place for; None where there is nothing, as on most engines always."""

    def briefs(
        self, lo: int, hi: int, task: str | None, since: float | None, until: float | None, max_body: int
    ) -> list[Brief]:
        """Return the records at lo <= p < hi that match, by position.

        Bodies of more than `max_body` bytes are not read, so that a page of large ones fits in memory.
        """

    def task_counts(self, lo: int, hi: int, since: float | None, until: float | None) -> dict[str, int]:
        """Return how many records of each task there are at lo <= p < hi with since <= time < until."""

    def record_count(self, lo: int, hi: int) -> int:
        """Return how many records there are at lo <= p < hi."""

    def first_record(self, lo: int, hi: int) -> int | None:
        """Return the first position at lo <= p < hi that holds a record; logs may lie between."""

    def group_bounds(self, group: Group) -> list[Bounds]:
        """Return what a group reads of each log of its stream, in the logs' order."""

    def group_page(self, group: Group, lo: int, hi: int) -> GroupPage:
        """Return all a group knows of lo <= p < hi."""

    def group_state(self, group: Group, limit: int) -> GroupState:
        """Return a group as a whole; of `stray_parked` at most `limit`.

        Those are parked where the group has not been: in no log of its stream, below its start, at or above
        its cursor or its stop.
        """

    def parked_after(self, chosen: ParkedFilter, group: int, after: int, limit: int) -> list[tuple[int, str]]:
        """Return (position, task) of the group's parked records past `after`, by position, at most `limit`.

        `chosen.groups` does not count. Each page costs the same, however many there are.
        """

    def parked_page(self, chosen: ParkedFilter, group: int, after: int, limit: int) -> list[Parked]:
        """Return the same records as `parked_after`, with all that is kept of them."""

    def unknown_tasks(self, group: int) -> set[str]:
        """Return the tasks of records parked as unknown: no worker knew them so far (P11)."""

    def log_states(self) -> list[LogState]:
        """Return all logs, by number, those whose stream is gone among them."""

    def broken_runs(self, lo: int, hi: int, limit: int) -> list[int]:
        """Return positions of records at lo <= p < hi whose id or time is lost, at most `limit`.

        Where ids and times are kept with each record, there can be none.
        """

    def orphans(self) -> list[tuple[str, int]]:
        """Return (what, group) of state whose group is gone, as "leases", "parked records", "positions"."""

    def losses(self) -> list[str]:
        """Return, in sentences, what was lost, or is held up, and is counted in no group that is shown."""

    def damage(self) -> list[str]:
        """Return what the store's own check finds wrong, in its words; [] where it is whole, or has none.

        The one call here that may take long and read everything. Raises EngineUnavailable only.
        """
