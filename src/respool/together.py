"""Many calls or events that are sent together: appended in portions, and what is said where one fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from .clock import now as wall_clock
from .delivery.model import NewCall
from .errors import (
    AppendError,
    AppendUnknown,
    EngineError,
    EngineUnavailable,
    LogMoved,
    PartlyAppended,
    RespoolError,
)
from .producer import MAX_TOGETHER, Producer
from .record import NO_META, unpack_meta
from .transaction import Collector, Enlisted

MOST_HELD = 16 << 20  # bytes of calls, of all partitions, that wait to be appended together
_OF_ENGINES = EngineUnavailable, EngineError, LogMoved, AppendUnknown


class Stored:
    """How many of many calls or events are stored so far."""

    def __init__(self) -> None:
        self.number = 0

    def tell(self, error: RespoolError) -> None:
        """Have an error say so. Raises PartlyAppended where it says that nothing was sent, or may be (P1).

        What the caller can mend keeps its class: a full queue, arguments that do not fit.
        """
        if isinstance(error, PartlyAppended):
            if self.number:
                raise PartlyAppended(error.error, error.stored + self.number) from error.error
        elif self.number and isinstance(error, _OF_ENGINES):
            raise PartlyAppended(error, self.number) from error
        elif self.number and isinstance(error, AppendError):
            error.stored = self.number
            error.add_note(f"{self.number:,} that were sent before it are stored")


class Together:
    """Appends rows of many logs, those of one log together.

    Parameters:
        stored: counts them.
        enter: waits for room for so many.
        lasts: seconds after which each expires. They count from when it is appended: what gives them one
            after another may take longer than that.
    """

    def __init__(
        self,
        producer: Producer | Enlisted | Collector,
        stored: Stored,
        enter: Callable[[int], None] | None = None,
        lasts: float | None = None,
    ) -> None:
        self._producer, self._stored, self._enter, self._lasts = producer, stored, enter, lasts
        self._waiting: dict[int, list[NewCall]] = {}
        self._held = 0  # bytes

    def add(self, row: NewCall) -> None:
        """Take in a row. Raises RecordTooLarge."""
        self._producer.check_size(row.body, None)
        rows = self._waiting.setdefault(row.log, [])
        rows.append(row)
        self._held += len(row.body)
        if len(rows) >= MAX_TOGETHER:
            self._append(MAX_TOGETHER // 2)  # with those logs that will be full soon
        elif self._held >= MOST_HELD:
            self._append(1)

    def flush(self) -> None:
        """Append what is left."""
        self._append(1)

    def _append(self, least: int) -> None:
        """Append the rows of those logs that have so many."""
        logs = [log for log, rows in self._waiting.items() if len(rows) >= least]
        together = [self._waiting.pop(log) for log in logs]
        self._held -= sum(len(row.body) for rows in together for row in rows)
        if self._enter is None:
            self._begin_to_last(together)
            self._producer.append_many([row for rows in together for row in rows])
            self._stored.number += sum(map(len, together))
            return
        for rows in together:
            self._enter(len(rows))
            self._begin_to_last((rows,))
            self._producer.append_rows(rows)
            self._stored.number += len(rows)

    def _begin_to_last(self, together: Iterable[Iterable[NewCall]]) -> None:
        if self._lasts is not None:
            until = wall_clock() + self._lasts
            for row in (row for rows in together for row in rows):
                meta = NO_META if row.meta is None else unpack_meta(row.meta)
                row.meta = replace(meta, expires=until).packed()
