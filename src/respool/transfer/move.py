"""A transfer from its beginning, or from where one was left, to its end; and giving one up."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from ..clock import now as wall_clock
from ..engines.base import Engine, Stream
from ..engines.moving import INCOMING, Mark
from ..errors import ConfigError, EngineError, EngineUnavailable
from .copying import Copy, Stores, Tell
from .draining import drain
from .plan import Plan, is_blank, plan, refuse_seeks
from .verify import differences

DISCARDED = 20_000  # records removed in one step
WAIT = 600.0


@dataclass(slots=True)
class Summary:
    """What a transfer has moved."""

    plan: Plan
    records: int = 0  # taken by this run of it
    rows: int = 0  # of groups' state
    blobs: int = 0  # large payloads copied
    lost: int = 0  # large payloads that were not there
    seconds: float = 0.0


def _say_nothing(what: str, done: int, total: int) -> None:
    """Tell nobody."""


def transfer(
    source: Engine,
    target: Engine,
    *,
    into: bool = False,
    wait: float = WAIT,
    stores: Stores = None,
    tell: Tell = _say_nothing,
) -> Summary:
    """Move all that is on one store to another, or go on where that was left.

    Parameters:
        source, target: two stores; the target is empty, or `into` is set, and no name is on both.
        wait: seconds that the source's workers have to finish what they run.
        stores: where large payloads are, and where they are to be copied; None: they stay where they are.
        tell: told how far it is.

    Returns: what was moved. The source stays as it was, closed, and says where all is now.
    Raises: ConfigError where it cannot be; StillRunning, nothing was moved, the source is open again;
        EngineError where the target is not what the source is: both stay closed, until this is run again or
        undone. KeyboardInterrupt, which `tell` may raise: where nothing was copied yet, the source is open
        again; else both stay closed.

    >>> transfer(open_engine(old, "full", 10.0), open_engine(new, "full", 10.0))  # doctest: +SKIP
    """
    began = time.monotonic()
    made = plan(source, target, target.shown, into)
    done = Summary(made)
    if made.done:
        return done
    mark = _begin(source, target)
    source_mark = source.mark()
    if source_mark is None or source_mark.phase == "draining":
        _close(source, target, mark, wait, tell)
        source_mark = source.mark()
    assert source_mark is not None
    if source_mark.phase == "closed":
        if not mark.names:
            _see_blank(target, made.replaced)
            _discard(target, made.replaced)
        copy = Copy(source, target, mark, made.records, stores, tell)
        copy.run()
        done.records, done.rows, done.blobs, done.lost = copy.taken, copy.rows, copy.blobs, copy.lost
        if found := differences(source, target, tell):
            raise EngineError(
                f"{target.shown} is not what {source.shown} is: {'; '.join(found[:5])}. Neither is open; to "
                "go back: respool transfer --undo"
            )
        source.set_mark(_source_mark(mark, "moved", target))
        tell("marked as moved", 1, 1)
    target.give_names(mark)
    for stream in target.streams():
        for log in stream.logs:
            target.ring(log, everyone=True)
    done.seconds = time.monotonic() - began
    return done


def _begin(source: Engine, target: Engine) -> Mark:
    """Mark the target as being filled, unless it is."""
    mark, ours = target.mark(), source.mark()
    if mark is None:
        id = uuid.uuid4().hex if ours is None else ours.id
        given = target.numbers_given()
        fresh = not any(given[name] for name in ("stream", "log", "grp"))
        mark = Mark(id, "filling", source.shown, wall_clock(), same_numbers=fresh)
        target.set_mark(mark)
    return mark


def _see_blank(target: Engine, streams: Iterable[Stream]) -> None:
    """See once more that what gives way on the target was not used while the source was being closed."""
    for stream in streams:
        if not is_blank(target, stream):
            raise ConfigError(
                f"{target.shown}: {stream.kind} {stream.name} was used while the source was being closed; "
                "nothing was moved. Stop what writes there, and give the transfer up with --undo"
            )


def _discard(target: Engine, streams: Iterable[Stream]) -> None:
    for stream in streams:
        while target.discard(stream, DISCARDED):
            pass


def _source_mark(mark: Mark, phase: str, target: Engine) -> Mark:
    return msgspec.convert(
        {"id": mark.id, "phase": phase, "other": target.shown, "since": wall_clock()}, type=Mark
    )


def _close(source: Engine, target: Engine, mark: Mark, wait: float, tell: Tell) -> None:
    """Stop claims, wait for what runs, then let nobody write any more."""
    if source.mark() is None:
        source.set_mark(_source_mark(mark, "draining", target))
    try:
        tell("claims are stopped", 1, 1)
        for stream in source.streams():
            for log in stream.logs:
                source.ring(log, everyone=True)
        drain(source, wait, tell)
        source.set_mark(_source_mark(mark, "closed", target))
        refuse_seeks(source)
        tell("the source is closed", 1, 1)
    except (
        EngineUnavailable,
        ConfigError,
        KeyboardInterrupt,
    ):  # or what runs has not ended: nothing was moved, and nobody is to be held up
        undo(source, target)
        raise


def undo(source: Engine | None, target: Engine | None) -> list[str]:
    """Give a transfer up, or take one back: open the source, and remove from the target what has come so far.

    What a transfer that has ended has moved stays on the target.

    Returns: what was done, in words. Raises: ConfigError where there was nothing to undo, or the two belong
        to different transfers.
    """
    ours = None if source is None else source.mark()
    theirs = None if target is None else target.mark()
    if ours is not None and theirs is not None and ours.id != theirs.id:
        raise ConfigError("the two take part in different transfers; undo them one by one")
    done = []
    if target is not None and theirs is not None and not theirs.is_source:
        _discard(target, [stream for stream in target.streams() if stream.app.startswith(INCOMING)])
        target.set_mark(None)
        done.append(f"{target.shown}: what had come so far is removed")
    if source is not None and ours is not None and ours.is_source:
        source.set_mark(None)
        for stream in source.streams():
            for log in stream.logs:
                source.ring(log, everyone=True)
        done.append(f"{source.shown}: open again, as it was")
    if not done:
        raise ConfigError("nothing to undo: no transfer has left its mark here")
    return done
