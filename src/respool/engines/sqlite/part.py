"""What each part of the engine works with."""

from __future__ import annotations

from .connection import Connection


class Part:
    """Part of the engine: `_writer` syncs what it commits, `_state` does not, `_reader` only reads."""

    _state: Connection
    _writer: Connection
    _reader: Connection
