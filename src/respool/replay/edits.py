"""Calls that were redriven with other arguments: their outcomes are not those of what is on record."""

from __future__ import annotations

from ..engines.base import Engine, Group
from ..places import Places

_NOTE = "redriven: "


def edits_of(engine: Engine, group: Group, pos: int) -> list[str]:
    """Return what was changed of a call in a group whenever it was redriven with an edit, the oldest first.

    >>> edits_of(engine, main, pos)  # doctest: +SKIP
    ["edited args[0] = 'good' (was 'bad')"]
    """
    return [
        entry.note.removeprefix(_NOTE)
        for entry in engine.journal(group.id, pos)
        if entry.how == "redriven" and entry.note
    ]


def edits_in(engine: Engine, group: Group, places: Places, pos: int) -> list[str]:
    """Return the same of a call of a page: only those are asked for that were redriven at all."""
    return edits_of(engine, group, pos) if pos in places.redriven else []
