"""Where logs and state are kept. `base` states the two seams; each engine fills them."""

from __future__ import annotations

from typing import Any

from ..config import Location
from ..record import Id


def open_engine(location: Location, durability: str, timeout: float) -> Any:
    """Open the engine that a URL names, creating its tables where there are none."""
    from pathlib import Path

    from .sqlite.engine import SQLiteEngine, SQLiteOptions

    pragmas = {name: value for name, value in location.options.items() if name != "durability"}
    path = None if location.path is None else Path(location.path)
    return SQLiteEngine(SQLiteOptions(path, durability, timeout, pragmas))  # type: ignore[arg-type]


def stored_id(namespace: str, id: Id) -> Id:
    """Return how an id is stored: one given by a user is unique within its app or stream only."""
    return f"{namespace}\0{id}" if isinstance(id, str) else id


def public_id(id: Id) -> Id:
    """Return an id as it was given."""
    return id.partition("\0")[2] if isinstance(id, str) else id
