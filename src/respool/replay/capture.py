"""Inputs and outcomes of past calls, written as a test that runs the present code against them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..app import App
from ..encoding.codec import codec_for
from ..encoding.refusals import class_name
from ..engines.base import Group, Stream
from ..errors import ConfigError, UnknownName
from ..tagged import from_tagged
from .comparing import Tolerance, equal
from .export import Wanted, exported_rows
from .rerun import Rerun, run_dry
from .windows import Window, windows

PAGE = 200  # positions a draw is made from

_TEST = '''"""{count} past calls of {task}, captured {when}: the present code must make the same of them.

Written by `respool capture`; yours to change. The calls are in {data}.
"""

from pathlib import Path

import pytest

from respool.testing import captured, load_app

CALLS = captured(Path(__file__).with_name({data!r}))


@pytest.mark.parametrize("call", CALLS, ids=[call.id for call in CALLS])
def test_{name}(call):
    call.check(load_app({spec!r}))
'''


class CapturedCall(NamedTuple):
    """A past call, what went in, and what came out."""

    id: str
    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    state: str
    result: Any
    error_type: str | None
    error: str | None

    def run(self, app: App) -> Rerun:
        """Run the present code with the same input; nothing is changed, and nothing is sent."""
        return run_dry(app, self.task, self.args, self.kwargs)

    def check(self, app: App, *, absolute: float = 0.0, relative: float = 0.0) -> None:
        """Fail where the present code makes something else of it.

        Parameters:
            absolute, relative: how far numbers may lie apart.

        Raises: AssertionError; what the task raises, where it returned then.
        """
        done = self.run(app)
        if self.state == "FAILURE":
            assert done.error is not None, f"it raised {self.error_type} then, and returns {done.value!r} now"
            now = class_name(done.error)
            assert now == self.error_type, f"it raised {self.error_type} then, and {now} now: {done.error}"
            return
        if done.error is not None:
            raise done.error
        codec = codec_for("msgpack")
        value = codec.decode(codec.encode(done.value, "the result"))  # as it would be stored
        same = equal(self.result, value, Tolerance(absolute, relative))
        assert same, f"it returned {self.result!r} then, and {value!r} now"


def read_captured(path: Path) -> list[CapturedCall]:
    """Return the calls of a file that `capture` wrote."""
    lines = path.read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    return [
        CapturedCall(
            row["id"], row["task"], from_tagged(row["args"]), from_tagged(row["kwargs"]), row["state"],
            from_tagged(row["result"]), row["error_type"], row["error"],
        )
        for row in rows
    ]  # fmt: skip


class Captured(NamedTuple):
    """What was written."""

    test: Path
    data: Path
    calls: int


def capture(
    app: App,
    task: str,
    sample: int,
    folder: Path,
    *,
    spec: str,
    group: str = "main",
    since: float | None = None,
    until: float | None = None,
    seed: int = 0,
    force: bool = False,
) -> Captured:
    """Write inputs and outcomes of past calls of a task as a file of pytest's, and one with the calls.

    Calls that were redriven with an edit are left out: what came of them is not of what is on record.

    Parameters:
        sample: how many finished calls, drawn from all over the window; the same `seed` draws the same.
        spec: what names the App, as -A does: the test finds it by that.

    Raises: UnknownName; ConfigError where no call of it is finished, or the files are there, unless `force`.
    """
    if task not in app.tasks:
        raise UnknownName("task", task, app.tasks)
    stream = app.stream_of("queue", app.tasks[task].queue)
    found = app.opened.group_at(stream.logs[0] << 40, group)
    names = sorted({task, *app.tasks[task].options["aliases"]})
    rows = list(_drawn(app, stream, found, Wanted(since, until, names), sample, seed))
    if not rows:
        raise ConfigError(f"queue {stream.name} has no finished call of {task} there; nothing was written")
    name = "".join(each if each.isalnum() else "_" for each in task)
    test, data = folder / f"test_captured_{name}.py", folder / f"captured_{name}.jsonl"
    for path in (test, data):
        if path.exists() and not force:
            raise ConfigError(f"{path} is there already; to write it anew: --force, or another --output")
    folder.mkdir(parents=True, exist_ok=True)
    kept = ("id", "time", "task", "args", "kwargs", "state", "result", "error_type", "error")
    lines = [json.dumps({**{n: row[n] for n in kept}, "task": task}, ensure_ascii=False) for row in rows]
    data.write_text("\n".join(lines) + "\n", "utf-8")
    text = _TEST.format(
        count=len(rows), task=task, when=rows[-1]["time"][:10], data=data.name, name=name, spec=spec
    )
    test.write_text(text, "utf-8")
    return Captured(test, data, len(rows))


def _drawn(
    app: App, stream: Stream, group: Group, wanted: Wanted, sample: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield finished calls from all over the window, the oldest first."""
    chance = random.Random(seed)
    pieces = [
        p for found in windows(app.engine, stream, wanted.since, wanted.until, oldest=True) for p in found
    ]
    pages = [
        Window(p.log, lo, min(lo + PAGE, p.hi), p.since, p.until)
        for p in pieces
        for lo in range(p.lo, p.hi, PAGE)
    ]
    chance.shuffle(pages)
    share = max(1, sample // max(len(pages), 1) + 1, sample // 50)  # of a page: no page is all there is
    drawn: list[tuple[str, int, dict[str, Any]]] = []
    kept: list[tuple[str, int, dict[str, Any]]] = []
    for page in pages:
        rows = [
            (row["time"], row["offset"], row)
            for row in exported_rows(app, stream, group, page, wanted)
            if row["state"] in ("SUCCESS", "FAILURE") and row["args"] is not None and _is_kept(row)
            if not row["edits"]  # what came of it came of other arguments
        ]
        chance.shuffle(rows)
        drawn += rows[:share]
        kept += rows[share : 2 * sample]
        if len(drawn) >= sample:
            break
    if len(drawn) < sample:
        drawn += kept[: sample - len(drawn)]
    for _, _, row in sorted(drawn[:sample], key=lambda each: each[:2]):
        yield row


def _is_kept(row: dict[str, Any]) -> bool:
    """Say whether what came of it is known: past its result_ttl it is not."""
    return row["error"] is None if row["state"] == "SUCCESS" else row["error_type"] is not None
