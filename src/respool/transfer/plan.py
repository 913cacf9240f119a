"""What a transfer would move, and what is in its way; nothing is changed."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from ..delivery.seek import under_way
from ..delivery.spans import count
from ..engines.base import Engine, Group, Stream
from ..engines.moving import INCOMING, Mark
from ..errors import ConfigError
from ..record import first_pos
from ..worker.host import is_gone


@dataclass(slots=True)
class StreamPlan:
    """A stream that is to be moved."""

    stream: Stream
    records: int
    groups: list[Group]


@dataclass(slots=True)
class Plan:
    """What is to be moved, from where to where."""

    source: str
    target: str
    streams: list[StreamPlan] = field(default_factory=list)
    running: int = 0  # records that workers have: they are waited for
    workers: int = 0  # that serve the source
    replaced: list[Stream] = field(default_factory=list)  # of the target: made, and never used
    resumes: bool = False  # an earlier transfer goes on
    done: bool = False  # an earlier transfer has moved all of it

    @property
    def records(self) -> int:
        """How many records there are."""
        return sum(each.records for each in self.streams)

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return sum(len(each.groups) for each in self.streams)


def plan(source: Engine, target: Engine | None, shown: str, into: bool) -> Plan:
    """Return what a transfer would do.

    Parameters:
        target: None where there is nothing yet at its URL, `shown`.
        into: the target may hold other streams, as long as none has the name of one of the source's.

    Raises: ConfigError where it cannot be, with what to do.
    """
    if target is not None and source.target == target.target:
        raise ConfigError(f"{source.shown} is the source and the target: there is nothing to move")
    made = Plan(source.shown, shown)
    refuse_streams(source)
    for stream in source.streams():
        records = sum(source.record_count(first_pos(log), first_pos(log + 1)) for log in stream.logs)
        groups = [group for group in source.groups() if group.stream == stream.id]
        made.streams.append(StreamPlan(stream, records, groups))
        made.running += sum(
            count(lease.spans) for group in groups for lease in source.leases(group) if lease.owner
        )
    made.workers = sum(bool(w.info.get("groups")) and not is_gone(w) for w in source.workers())
    ours, theirs = source.mark(), None if target is None else target.mark()
    refuse_other_transfers(made, ours, theirs)
    made.done = ours is not None and ours.phase == "moved" and theirs is None
    made.resumes = theirs is not None or (ours is not None and not made.done)
    if not made.streams:
        raise ConfigError(f"{source.shown} holds no queue and no stream: there is nothing to move")
    if not made.done:
        refuse_seeks(source)
    if target is not None and not made.done and (theirs is None or not theirs.names):
        made.replaced = _replaced(made, target, into)
    return made


def refuse_streams(source: Engine) -> None:
    """Raise ConfigError where the source has a stream that cannot be moved."""
    for stream in source.streams():
        if stream.settings.get("foreign"):
            raise ConfigError(
                f"stream {stream.name} of {source.shown} is a topic that others write (foreign=True): they "
                "would go on there, and nobody read it. It cannot be moved, nor can all that is on its URL; "
                "give such streams a URL of their own"
            )


def refuse_other_transfers(made: Plan, ours: Mark | None, theirs: Mark | None) -> None:
    """Raise ConfigError where one of the two takes part in another transfer."""
    if ours is not None and not ours.is_source:
        raise ConfigError(
            f"{made.source} is itself being filled from {ours.other}: let that end, or give it up "
            f"(respool transfer --undo --to {shlex.quote(made.source)})"
        )
    if ours is not None and ours.other != made.target:
        verb = "was moved" if ours.phase == "moved" else "is being moved"
        raise ConfigError(
            f"{made.source} {verb} to {ours.other} already; to have it elsewhere, open it again first "
            f"(respool transfer --undo --from {shlex.quote(made.source)})"
        )
    if theirs is None:
        return
    if theirs.is_source:
        raise ConfigError(f"{made.target} was moved to {theirs.other}; nothing can be moved into it")
    given_up = bool(theirs.names) if ours is None else ours.id != theirs.id
    if theirs.other != made.source:
        raise ConfigError(
            f"{made.target} is being filled from {theirs.other} already: let that end, or give it up "
            f"(respool transfer --undo --to {shlex.quote(made.target)})"
        )
    if given_up:
        raise ConfigError(
            f"{made.target} holds what came of a transfer from {made.source} that was given up there: remove "
            f"it first (respool transfer --undo --to {shlex.quote(made.target)})"
        )


def refuse_seeks(source: Engine) -> None:
    """Raise ConfigError where a group is being moved: its intent names positions of here."""
    moving = [group.name for group in source.groups() if under_way(group.settings) is not None]
    if moving:
        raise ConfigError(
            f"a seek of group {', '.join(sorted(moving))} is under way on {source.shown}: give the same "
            "`respool seek` again, which ends it, then move the log"
        )


def is_blank(engine: Engine, stream: Stream) -> bool:
    """Say whether a stream was made, and never held a record."""
    return all(first == end == first_pos(log) for log, first, end in engine.bounds(stream))


def _replaced(made: Plan, target: Engine, into: bool) -> list[Stream]:
    """Return the target's streams that give way: those that an app has declared there, and never used."""
    here = [stream for stream in target.streams() if not stream.app.startswith(INCOMING)]
    moved = {(each.stream.kind, each.stream.app, each.stream.name) for each in made.streams}
    blank = [stream for stream in here if is_blank(target, stream)]
    same = [stream for stream in here if (stream.kind, stream.app, stream.name) in moved]
    in_use = [stream for stream in here if stream not in blank]
    if in_use and not into:
        raise ConfigError(
            f"{made.target} is not empty: it holds {_named(in_use)}. Give an empty one; or --into, where no "
            "name of the source is taken there"
        )
    if taken := [stream for stream in same if stream in in_use]:
        raise ConfigError(
            f"{made.target} has {_named(taken)} with records of its own: two logs cannot become one. Take "
            "another target, or another name in the code"
        )
    gives = [stream for stream in same if stream in blank] if into else blank
    _refuse_served(made, target, gives)
    return gives


def _refuse_served(made: Plan, target: Engine, streams: list[Stream]) -> None:
    numbers = {stream.id for stream in streams}
    groups = {group.id for group in target.groups() if group.stream in numbers}
    serving = [w.name for w in target.workers() if groups & set(w.info.get("groups", ())) and not is_gone(w)]
    if serving:
        raise ConfigError(
            f"worker {', '.join(sorted(serving))} serves {made.target} already: stop it, and start it when "
            "all has been moved"
        )


def _named(streams: list[Stream]) -> str:
    names = sorted(f"{s.kind} {f'{s.app}/' if s.app else ''}{s.name}" for s in streams)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
