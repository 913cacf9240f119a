"""What each part of the engine works with."""

from __future__ import annotations

from .connection import Connection
from .reach import PostgresOptions


class Part:
    """Part of the engine: `_writer` syncs what it commits, `_state` does not, `_reader` only reads."""

    options: PostgresOptions
    _state: Connection
    _writer: Connection
    _reader: Connection

    @property
    def _sql(self) -> dict[str, bytes]:
        return self._writer.sql
