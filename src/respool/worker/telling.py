"""What a worker's log says, and how: one line a message, calls by their task and id, no flood of retries."""

from __future__ import annotations

import io
import logging
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TextIO

from ..delivery.model import Verdict
from ..engines import public_id
from ..engines.base import Engine, Group, Stream
from ..errors import RespoolError
from ..record import id_text

log = logging.getLogger("respool.worker")

MOST_RETRIES = 10  # that are told one by one within a second; the others are counted
_ESCAPED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def one_line(text: str) -> str:
    """Return a text without what would break its line, or do worse to a terminal.

    >>> one_line("no such place:\\n here")
    'no such place:\\\\n here'
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return _ESCAPED.get(character) or ascii(character)[1:-1]


class _OneLine(logging.Formatter):
    """Keeps our own messages on one line, whatever error they quote. What the app logs is its own affair."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        if record.name.partition(".")[0] == "respool":
            record.message = one_line(record.message)
        return super().formatMessage(record)


class Logging:
    """How a worker's process logs: when, who and what; once the app is there, as that has set it up.

    A program in which we run, and that has set its logging up already, is left alone.
    """

    def __init__(self, out: TextIO, who: str) -> None:
        self._ours, self._is_set_up = logging.getLogger("respool"), bool(logging.root.handlers)
        self._handler = logging.StreamHandler(out)
        self._handler.setFormatter(_OneLine(f"%(asctime)s {who}: %(message)s", datefmt="%H:%M:%S"))
        if not self._is_set_up:
            self._ours.setLevel(logging.INFO)
            self._ours.addHandler(self._handler)

    def hand_over(self) -> None:
        """Log what the app's code has to say, too: by its own handlers, where importing it has made some."""
        if self._is_set_up:
            return
        self._ours.removeHandler(self._handler)
        if not logging.root.handlers:
            logging.root.setLevel(logging.INFO)
            logging.root.addHandler(self._handler)
        for name, logger in logging.root.manager.loggerDict.items():  # dictConfig disables what there was
            if isinstance(logger, logging.Logger) and name.partition(".")[0] == "respool":
                logger.disabled = False


def print_by_lines() -> None:
    """Have what tasks print be seen when they print it, also where that goes to a pipe or a file."""
    for out in (sys.stdout, sys.stderr):
        if isinstance(out, io.TextIOWrapper):
            out.reconfigure(line_buffering=True)


def named(engine: Engine, positions: Sequence[int]) -> str:
    """Name what was being run: `call 0198… of task fetch`, or a batch by the first of its calls."""
    pos = positions[0]
    try:
        found = engine.records(pos, pos + 1, 1)
        stream = next((each for each in engine.streams() if pos >> 40 in each.logs), None)
    except RespoolError:  # the engine is out of reach, which is said elsewhere
        found, stream = [], None
    if not found:
        return "a call" if len(positions) == 1 else f"a batch of {len(positions):,} calls"
    id, task = id_text(public_id(found[0].id)), found[0].task
    is_call = stream is None or stream.kind == "queue"
    noun, of = ("call", f"task {task}") if is_call else ("event", f"stream {stream and stream.name}")
    if len(positions) == 1:
        return f"{noun} {id} of {of}"
    return f"a batch of {len(positions):,} {noun}s of {of}, the first of them {id}"


def id_at(engine: Engine, pos: int) -> str:
    """Return the id of a record, as a shell takes it; where it cannot be had, that. Never raises for it."""
    try:
        found = engine.records(pos, pos + 1, 1)
    except RespoolError as error:
        return f"(of an id that cannot be read now: {error})"
    return shlex.quote(id_text(public_id(found[0].id))) if found else "(of a record that is gone)"


def where_seen(engine: Engine, positions: Sequence[int]) -> str:
    """Return the command that shows a dead letter, or some."""
    return f"see: respool {f'show {id_at(engine, positions[0])}' if len(positions) == 1 else 'dead list'}"


def leases(number: int) -> str:
    """Return a number of leases in words.

    >>> leases(1), leases(1000)
    ('1 lease', '1,000 leases')
    """
    return f"{number:,} lease{'' if number == 1 else 's'}"


def whose(stream: Stream, group: Group, task: str) -> str:
    """Return whose a call or an event is: `task fetch`, or `stream visits, group audit`."""
    return f"task {task}" if stream.kind == "queue" else f"stream {stream.name}, group {group.name}"


def tell_of_batch(engine: Engine, retries: Retries, of: str, said: Sequence[Verdict], size: int) -> None:
    """Say which calls of a batch of `size` failed, or are to be retried; one alone by its id.

    Parameters:
        of: whose they are, as `whose` says it.
    """
    again = [verdict for verdict in said if verdict.retried]
    if again and retries.may_tell(of, len(again)):
        log.info("%s: %s", _some_of(engine, of, again, size), one_line(again[0].note or ""))
    dead = [verdict for verdict in said if verdict.reason == "dead"]
    if dead:
        are = "is a dead letter" if len(dead) == 1 else "are dead letters"
        note, hint = one_line(dead[0].note or ""), where_seen(engine, [verdict.pos for verdict in dead])
        log.error("%s %s: %s; %s", _some_of(engine, of, dead, size), are, note, hint)


def _some_of(engine: Engine, of: str, some: Sequence[Verdict], size: int) -> str:
    noun = "event" if of.startswith("stream ") else "call"
    if len(some) > 1:
        return f"{of}: {len(some):,} of {size:,} {noun}s of a batch"
    one = f"{noun} {id_at(engine, some[0].pos)} of {of}"
    return f"{one}, one of a batch of {size:,}," if size > 1 else one


class Retries:
    """Tells of retries: some in full, and how many others there were. A storm of them fills no disk."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since, self._told = clock(), 0
        self.withheld: Counter[str] = Counter()  # by whose they are

    def tell(
        self,
        of: str,
        number: int,
        retries: int | None,
        wait: float,
        note: str,
        id: Callable[[], str],
        *,
        asked: bool = False,
    ) -> None:
        """Say that a call of a task, or an event, is to be retried.

        Parameters:
            of: whose it is, as `whose` says it.
            number: which retry it is, of `retries` at most (None: no bound). wait: seconds until then.
            note: what it raised. id: reads its id, as a shell takes it; not of one that is only counted.
            asked: the task asked for it, and gave no error: it looks again later, which is worth a line at
                debug.
        """
        if asked:
            if log.isEnabledFor(logging.DEBUG):
                log.debug("%s: asks to run again in %.3g s; see: respool show %s", of, wait, id())
            return
        if not self.may_tell(of, 1):
            return
        most = "" if retries is None else f" of {retries}"
        told = "%s: retry %d%s in %.3g s: %s; see: respool show %s"
        log.info(told, of, number, most, wait, one_line(note), id())

    def may_tell(self, of: str, calls: int) -> bool:
        """Say whether there may be one more line within this second; else these are counted."""
        self.look()
        if self._told >= MOST_RETRIES:
            self.withheld[of] += calls
            return False
        self._told += 1
        return True

    def look(self) -> None:
        """Once the second is over, say how many others there were within it."""
        seconds = self._clock() - self._since
        if seconds >= 1.0:
            self.end()
            self._since, self._told = self._clock(), 0

    def end(self) -> None:
        """Say how many others there were."""
        if self.withheld:
            most = self.withheld.most_common(5)
            tasks = ", ".join(f"{of.removeprefix('task ')} ({number:,})" for of, number in most)
            more, seconds = f"{self.withheld.total():,}", self._clock() - self._since
            log.info("and %s more retries within %.1f s: %s", more, seconds, tasks)
            self.withheld.clear()
