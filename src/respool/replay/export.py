"""The exact inputs and outcomes of a window: the audit file, as JSON lines, CSV or Parquet, streamed."""

from __future__ import annotations

import csv
import heapq
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ..aliases import with_aliases
from ..clock import now as wall_clock
from ..delivery.model import Outcome
from ..encoding.remote import stored_error
from ..engines import public_id
from ..engines.base import Engine, Group, Record, Stream
from ..errors import ConfigError, RespoolError
from ..places import Places
from ..reading import read_input, read_result
from ..record import id_text, offset_of
from ..states import state_name
from ..tagged import to_tagged
from ..units import utc
from .edits import edits_in
from .windows import Window, windows

PAGE = 500  # positions whose inputs and outcomes are in memory at once
ROWS = 5_000  # of a row group of Parquet
Load = Callable[[bytes], Any]

COLUMNS = (
    "id", "time", "app", "queue", "partition", "offset", "task", "key", "headers", "group", "state", "args",
    "kwargs", "value", "input_error", "result", "error_type", "error", "traceback", "ended", "edits",
)  # fmt: skip
"""What an exported call has; in CSV and Parquet what is no text is JSON.

`edits`: what was changed of the arguments where it was redriven with others: the outcome is of those.
"""
_NUMBERS = ("partition", "offset")


class Wanted(NamedTuple):
    """Which calls are exported."""

    since: float | None = None
    until: float | None = None
    tasks: Sequence[str] | None = None
    state: str | None = None


def exported(
    source: Any,
    stream: Stream,
    group: Group | None,
    wanted: Wanted = Wanted(),  # noqa: B008 - it is immutable
    pickle_key: bytes | None = None,
    load: Load | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the calls of a window, the oldest first, with what went in and what came out in one group.

    Values are as they were: what JSON has no form for is tagged, `{"$bytes": "…"}`, and `tagged.from_tagged`
    brings it back. Nothing is held in memory but a page.

    Parameters:
        source: an App or an engine. load: fetches large payloads, which else are said to be elsewhere.
        group: None: what went in alone, with no state and no outcome.
    """
    engine: Engine = getattr(source, "engine", source)
    if wanted.tasks is not None:
        wanted = wanted._replace(tasks=with_aliases(source, wanted.tasks))
    for pieces in windows(engine, stream, wanted.since, wanted.until, oldest=True):
        logs = [_in_log(engine, stream, group, piece, wanted, pickle_key, load) for piece in pieces]
        for _, _, row in heapq.merge(*logs, key=lambda each: each[:2]):
            yield row


def exported_rows(
    app: Any, stream: Stream, group: Group, piece: Window, wanted: Wanted
) -> Iterator[dict[str, Any]]:
    """Yield the calls of a part of one log, by position."""
    found = _in_log(app.engine, stream, group, piece, wanted, app.settings["pickle_key"], app.payloads.load)
    for _, _, row in found:
        yield row


def _in_log(
    engine: Engine,
    stream: Stream,
    group: Group | None,
    piece: Window,
    wanted: Wanted,
    pickle_key: bytes | None,
    load: Load | None,
) -> Iterator[tuple[float, int, dict[str, Any]]]:
    for lo in range(piece.lo, piece.hi, PAGE):
        hi = min(lo + PAGE, piece.hi)
        places = None if group is None else Places(engine.group_page(group, lo, hi))
        came = [] if group is None else engine.outcomes(group.id, lo, hi)
        outcomes = {outcome.pos: outcome for outcome in came}
        for record in engine.records(lo, hi, PAGE):
            inside = (piece.since is None or record.time >= piece.since) and (
                piece.until is None or record.time < piece.until
            )
            if not inside or (wanted.tasks is not None and record.task not in wanted.tasks):
                continue
            state = None if places is None else state_name(places.status(record.pos))
            if wanted.state in (None, state):
                row = _row(stream, group, record, state, pickle_key, load)
                row |= _outcome(outcomes.get(record.pos), load)
                row["edits"] = (
                    [] if places is None or group is None else edits_in(engine, group, places, record.pos)
                )
                yield record.time, record.pos, row


def _row(
    stream: Stream,
    group: Group | None,
    record: Record,
    state: str | None,
    pickle_key: bytes | None,
    load: Load | None,
) -> dict[str, Any]:
    meta = record.meta
    given = read_input(stream.kind, record.body, len(record.body), meta, pickle_key, load)
    return {
        "id": id_text(public_id(record.id)),
        "time": _iso(record.time),
        "app": stream.app,
        "queue": stream.name,
        "partition": stream.place(record.pos >> 40)[0],
        "offset": offset_of(record.pos),
        "task": record.task,
        "key": meta.key,
        "headers": meta.headers or {},
        "group": None if group is None else group.name,
        "state": state,
        "args": None if given.args is None else to_tagged(given.args),
        "kwargs": None if given.kwargs is None else to_tagged(given.kwargs),
        "value": to_tagged(given.value),
        "input_error": given.error,
    }


def _outcome(outcome: Outcome | None, load: Load | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "result": None, "error_type": None, "error": None, "traceback": None, "ended": None
    }  # fmt: skip
    if outcome is None:
        return found
    found["ended"] = _iso(outcome.at)
    if outcome.expired(wall_clock()):
        found["error"] = "past its result_ttl"
    elif outcome.ending == "success":
        value, unreadable = read_result(outcome.value, load)
        found["result"], found["error"] = to_tagged(value), unreadable
    elif outcome.value is not None:
        try:
            error = stored_error(outcome.value)
        except RespoolError as damaged:
            found["error"] = str(damaged)
        else:
            found |= {"error_type": error.type, "error": error.message, "traceback": error.traceback}
    return found


def _iso(seconds: float) -> str:
    return utc(seconds).isoformat()


# Writing


def write_jsonl(rows: Iterable[dict[str, Any]], out: Any) -> int:
    """Write one JSON object a line to a text file; return how many."""
    written = 0
    for row in rows:
        out.write(json.dumps(row, ensure_ascii=False) + "\n")
        written += 1
    return written


def write_csv(rows: Iterable[dict[str, Any]], out: Any) -> int:
    """Write CSV with a header to a text file; return how many rows. What is no text is JSON."""
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    written = 0
    for row in rows:
        writer.writerow([_cell(row[name]) for name in COLUMNS])
        written += 1
    return written


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, str | int):
        return value
    return json.dumps(value, ensure_ascii=False)


def write_parquet(rows: Iterable[dict[str, Any]], out: Any) -> int:
    """Write Parquet to a binary file, row group by row group; return how many rows.

    Raises: ConfigError where pyarrow is not installed.
    """
    arrow, parquet = pyarrow()
    kinds = [(name, arrow.int64() if name in _NUMBERS else arrow.string()) for name in COLUMNS]
    schema = arrow.schema(kinds)
    written = 0
    with parquet.ParquetWriter(out, schema) as writer:
        for batch in _batches(rows):
            columns = [
                [row[name] if name in _NUMBERS else _text(name, row[name]) for row in batch]
                for name in COLUMNS
            ]
            writer.write_table(arrow.table(dict(zip(COLUMNS, columns, strict=True)), schema=schema))
            written += len(batch)
    return written


_JSON = ("headers", "args", "kwargs", "value", "result", "edits")


def _text(name: str, value: Any) -> str | None:
    if value is None:
        return None
    return json.dumps(value, ensure_ascii=False) if name in _JSON else str(value)


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def pyarrow() -> tuple[Any, Any]:
    """Return pyarrow and its module for Parquet. Raises ConfigError where it is not installed."""
    import importlib

    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(
            "Parquet needs pyarrow: pip install 'respool[parquet]'; jsonl and csv need nothing"
        ) from error


WRITERS: dict[str, Callable[[Iterable[dict[str, Any]], Any], int]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
}
"""By format: writes rows to a file, a binary one for Parquet, else one of text."""
