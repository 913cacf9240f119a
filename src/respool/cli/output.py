"""What commands print: tables that fit the terminal, JSON, times and counts for people."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple

import click

from ..units import utc

GAP = 2  # blanks between columns
WIDE = 100_000  # a pipe has no width: no column is left out, no name or number cut
SAY_EVERY = 5.0  # seconds, where it is not a terminal that is told how far something is
TEXT = 60  # characters of free text in a pipe, so that one long message does not move all that is behind it
LAST = 120  # the same in the last column


LEAST = 6  # characters of a column, where nothing more can be left out


class Column(NamedTuple):
    """A column: `least` is how narrow it may be cut (0: not at all), `drop` when it goes (0: never)."""

    title: str
    right: bool = False
    least: int = 0
    drop: int = 0  # where the terminal is too narrow, those that tell nothing go first, then the highest
    text: bool = False  # arguments, messages: of any length, and shortened in a pipe, too


NONE = ("·", "–", "")  # what stands for a count of 0, and for what is not there
UNREAD = "?"
"""Stands for what cannot be read."""


def say_unread(why: Sequence[tuple[str, str | None]], as_json: bool) -> None:
    """Say why lines of a listing have no figures, unless JSON does; where any has none, exit with code 1."""
    unread = [(name, error) for name, error in why if error is not None]
    for name, error in () if as_json else unread:
        note(f"{name} cannot be read: {error}")
    if unread:
        click.get_current_context().exit(1)


class Table:
    """Rows, each as cells for people and as data for scripts."""

    def __init__(self, *columns: Column) -> None:
        self.columns = columns
        self.rows: list[tuple[str, ...]] = []
        self.data: list[dict[str, Any]] = []

    def add(self, cells: Sequence[str], data: dict[str, Any]) -> None:
        """Add a row."""
        self.rows.append(tuple(" ".join(cell.split()) for cell in cells))
        self.data.append(data)

    def show(self, as_json: bool, empty: str) -> None:
        """Print all rows; as JSON one object a line; where there are none, say `empty`."""
        if as_json:
            for data in self.data:
                line(data)
        elif not self.rows:
            click.echo(empty)
        else:
            self._print()

    def _print(self) -> None:
        from rich.table import Table as RichTable
        from rich.text import Text

        shown, left_out = self._fit(width())
        table = RichTable(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
        for index, wide in shown:
            column = self.columns[index]
            justify: Any = "right" if column.right else "left"
            table.add_column(
                Text(column.title), justify=justify, width=wide, no_wrap=True, overflow="ellipsis"
            )
        for row in self.rows:
            table.add_row(*(Text(row[index], no_wrap=True, overflow="ellipsis") for index, _ in shown))
        lines(table, sum(wide + GAP for _, wide in shown))
        if left_out:
            note(f"(left out for want of width: {', '.join(left_out)}; --json has all)")

    def _fit(self, most: int) -> tuple[list[tuple[int, int]], list[str]]:
        """Return (column, width) of those shown, and the titles of those left out."""
        from rich.cells import cell_len

        natural = [
            max(cell_len(text) for text in (column.title, *(row[index] for row in self.rows)))
            for index, column in enumerate(self.columns)
        ]
        if most == WIDE:
            for index, column in enumerate(self.columns):
                if column.text:
                    natural[index] = min(natural[index], LAST if column is self.columns[-1] else TEXT)
        kept = list(range(len(self.columns)))
        left_out: list[str] = []
        while (wide := self._cut(kept, natural, most)) is None:
            goes = max(kept, key=lambda index: (self._tells_nothing(index), self.columns[index].drop, index))
            if not self.columns[goes].drop:
                wide = self._cut(kept, natural, most, LEAST) or []
                break
            kept.remove(goes)
            left_out.append(self.columns[goes].title)
        return list(zip(kept, wide, strict=True)), left_out

    def _tells_nothing(self, index: int) -> bool:
        """Say whether a column that may go has nothing but the signs for none."""
        return self.columns[index].drop > 0 and all(row[index] in NONE for row in self.rows)

    def _cut(
        self, kept: Sequence[int], natural: Sequence[int], most: int, least: int = 0
    ) -> list[int] | None:
        """Return the widths at which the columns fit, None where they cannot.

        Parameters:
            least: cut further, down to this, as far as that goes: text and names first, then all but numbers.
        """
        wide = {index: natural[index] for index in kept}
        over = sum(wide.values()) + GAP * (len(kept) - 1) - most
        columns = self.columns
        floors = [
            {i: max(columns[i].least, len(columns[i].title)) for i in kept if columns[i].least},
            {i: least for i in kept if least and columns[i].least},
            {i: least for i in kept if least and not columns[i].right},
        ]
        for floor in floors:
            soft = list(floor)
            while over > 0 and soft:
                index = max(soft, key=lambda index: wide[index])
                if wide[index] <= floor[index]:
                    soft.remove(index)
                    continue
                wide[index] -= 1
                over -= 1
        return None if over > 0 and not least else [wide[index] for index in kept]


def width() -> int:
    """Return how wide the output may be: what is not a terminal has no width, whatever COLUMNS says."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE


def lines(what: Any, wide: int | None = None) -> None:
    """Print something of rich's."""
    from rich.console import Console

    console = Console(file=sys.stdout, width=wide, highlight=False)
    with console.capture() as captured:
        console.print(what)
    for text in captured.get().splitlines():
        click.echo(text.rstrip())


def note(text: str) -> None:
    """Print a line about the table above, less loudly."""
    click.secho(text, dim=True)


def line(data: Any) -> None:
    """Print one JSON object on a line of its own."""
    click.echo(json.dumps(plain(data), ensure_ascii=False))


def document(data: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(plain(data), ensure_ascii=False, indent=2))


def plain(value: Any) -> Any:
    """Return a value as what JSON can hold: moments as ISO text, bytes in base64, the rest as its text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(plain(key)): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def iso(seconds: float | None) -> str | None:
    """Return a moment for scripts: ISO 8601 in UTC."""
    return None if seconds is None else utc(seconds).isoformat()


def when(seconds: float | None) -> str:
    """Return a moment for people, in local time: as short as it is clear."""
    if seconds is None:
        return "–"
    local, today = utc(seconds).astimezone(), datetime.now().astimezone()
    if local.date() == today.date():
        return f"{local:%H:%M:%S}"
    return f"{local:%b %d %H:%M}" if local.year == today.year else f"{local:%Y-%m-%d %H:%M}"


def moment(seconds: float) -> str:
    """Return a moment in full, with its zone."""
    local = utc(seconds).astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S} {zone(local)}"


def zone(local: datetime | None = None) -> str:
    """Return the name of the local zone, for the head of a column of times."""
    return (local or datetime.now().astimezone()).tzname() or "local"


def age(seconds: float | None) -> str:
    """Return a span of time for people: 4.2s, 3m12s, 2h05m, 3d4h."""
    if seconds is None:
        return "–"
    seconds = max(seconds, 0.0)
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest}s"
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 48 else f"{hours // 24}d{hours % 24}h"


def counted(value: int, what: str) -> str:
    """Return a count with what is counted: 1 call, 2,000 calls."""
    return f"{value:,} {what}" if value == 1 else f"{value:,} {what}s"


def number(value: int) -> str:
    """Return a count with thousands separators; a dot for none, so that the rest stands out."""
    return f"{value:,}" if value else "·"


def raised(error: BaseException) -> str:
    """Return an error's type, and what it says, where it says anything."""
    kind, text = type(error).__name__, str(error)
    return f"{kind}: {text}" if text else kind


def error_shown(text: str) -> str:
    """Return an error's type, and what it says, for a narrow column: ours without their module."""
    return re.sub(r"^respool\.(\w+\.)*", "", text)


@contextmanager
def progress(what: str, *, piped: bool = False) -> Iterator[Callable[[int, int], None] | None]:
    """Show how far something is, on a terminal's stderr; else give None.

    Parameters:
        piped: where it is no terminal, tell it by a line once in a while.
    """
    if not sys.stderr.isatty():
        yield _teller(what) if piped else None
        return
    shown = -1

    def tell(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 if not total else done * 100 // total
        if percent != shown:
            shown = percent
            click.echo(f"\r{what}: {percent} %", err=True, nl=False)

    try:
        yield tell
    finally:
        if shown >= 0:
            click.echo("\r" + " " * (len(what) + 8) + "\r", err=True, nl=False)


def _teller(what: str) -> Callable[[int, int], None]:
    said, said_at = -1, time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal said, said_at
        if done != said and time.monotonic() - said_at >= SAY_EVERY:
            said, said_at = done, time.monotonic()
            click.echo(f"{what}: {done:,} of {total:,}", err=True)

    return tell
