"""Moving a log to or from Kafka: refused, but for what others ask while nothing is moved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from ...delivery.model import Lease
from ...errors import ConfigError
from ..base import Group, Stream
from ..inspect import Bounds
from ..lent import LendsState
from ..moving import BlobRow, LogPlace, Mark, RawRecord, StateTable
from .options import KafkaOptions


class KafkaMoving:
    """A log on Kafka takes part in no transfer."""

    options: KafkaOptions
    inner: LendsState

    @property
    def shown(self) -> str:
        """The URL, for people."""
        return self.options.shown

    def mark(self) -> Mark | None:
        """Return the mark of the state: what is kept there may be moved by itself by mistake."""
        return self.inner.mark()

    def _refuse(self) -> NoReturn:
        raise ConfigError(f"{self.shown}: a log on Kafka cannot be moved, nor can another be moved there")

    def set_mark(self, mark: Mark | None) -> None:
        """Refuse."""
        self._refuse()

    def log_places(self, stream: Stream) -> list[LogPlace]:
        """Refuse."""
        self._refuse()

    def raw_records(self, lo: int, hi: int, limit: int, size: int) -> list[RawRecord]:
        """Refuse."""
        self._refuse()

    def leases_to_move(self, group: Group) -> list[Lease]:
        """Refuse."""
        self._refuse()

    def state_rows(
        self, table: StateTable, group: int, after: Sequence[Any] | None, limit: int, size: int
    ) -> list[tuple[Any, ...]]:
        """Refuse."""
        self._refuse()

    def blob_rows(self, after: tuple[bytes, int] | None, limit: int) -> list[BlobRow]:
        """Return the payloads past (digest, stamp)."""
        return self.inner.blob_rows(after, limit)

    def numbers_given(self) -> dict[str, int]:
        """Refuse."""
        self._refuse()

    def take_stream(self, mark: Mark, stream: Stream, places: Sequence[LogPlace]) -> Mark:
        """Refuse."""
        self._refuse()

    def take_records(self, mark: Mark, log: int, rows: Sequence[RawRecord]) -> list[int]:
        """Refuse."""
        self._refuse()

    def take_group(
        self, mark: Mark, stream: int, group: Group, bounds: Sequence[Bounds], leases: Sequence[Lease]
    ) -> Mark:
        """Refuse."""
        self._refuse()

    def take_state(self, mark: Mark, table: StateTable, group: int, rows: Sequence[tuple[Any, ...]]) -> None:
        """Refuse."""
        self._refuse()

    def take_blobs(self, mark: Mark, rows: Sequence[BlobRow]) -> None:
        """Refuse."""
        self._refuse()

    def take_worker_number(self, number: int) -> None:
        """Refuse."""
        self._refuse()

    def give_names(self, mark: Mark) -> None:
        """Refuse."""
        self._refuse()

    def discard(self, stream: Stream, limit: int) -> bool:
        """Refuse."""
        self._refuse()
