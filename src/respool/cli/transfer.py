"""`respool transfer`: move all that is on one URL to another, or take that back."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .common import DURATION, Failure, confirm, document_option, yes_option

if TYPE_CHECKING:
    from ..location import Location
    from ..transfer import Plan, Stores, Summary

TIMEOUT = 10.0
BLOB_TIMEOUT = 30.0
SAY_EVERY = 5.0  # seconds, where it is not a terminal that is told
ALL = "100 %"


@click.command()
@click.option("--from", "from_url", metavar="URL", help="The log to move.")
@click.option("--to", "to_url", metavar="URL", help="Where to. A file or schema is made if there is none.")
@click.option("--into", is_flag=True, help="The target may hold queues and streams of other names.")
@click.option(
    "--wait",
    type=DURATION,
    default="10m",
    show_default=True,
    metavar="DURATION",
    help="How long workers have to finish what they run.",
)
@click.option("--blobs-from", metavar="URL", help="Where large payloads are, if not beside the file.")
@click.option("--blobs-to", metavar="URL", help="Where they are to be; by default beside the target's file.")
@click.option("--dry-run", is_flag=True, help="Say what would be moved, and change nothing.")
@click.option("--undo", is_flag=True, help="Give a transfer up, or open the source again.")
@yes_option
@document_option
def command(
    from_url: str | None,
    to_url: str | None,
    into: bool,
    wait: float,
    blobs_from: str | None,
    blobs_to: str | None,
    dry_run: bool,
    undo: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Move all that is on one URL to another: queues and streams, groups, results, history, dead letters.

    Workers of the source stop claiming, finish what they run, and say where the log goes; a dead worker's
    calls are taken over. Then nothing can be sent there any more, whoever tries gets LogMoved with the new
    URL, and all is copied and checked on both sides. Order, ids, times and partitions stay; so do offsets
    where the target keeps them (not Kafka). Killed at any moment, it goes on when it is run again.

    The source stays as it was, closed. --undo opens it again: before the end that gives the transfer up (name
    both sides), after it the source goes on from where it was, beside the target.

    \b
    respool transfer --from sqlite:///my.db --to postgresql://me@db/shop --dry-run
    respool transfer --from sqlite:///my.db --to postgresql://me@db/shop --yes
    respool transfer --from sqlite:///my.db --to postgresql://me@db/shop --undo

    Exit codes: 0 moved; 1 not moved, as it says; 2 the URLs or the target cannot be.
    """
    if undo:
        _undo(from_url, to_url, yes, as_json)
        return
    if from_url is None or to_url is None:
        raise click.UsageError("give both --from URL and --to URL")
    from ..transfer import plan, transfer
    from .output import document

    source_at, target_at = _location(from_url, "--from"), _location(to_url, "--to")
    with _opened(source_at, "--from") as source:
        if not _is_there(target_at):  # it is made once that is wanted
            made = plan(source, None, target_at.shown, into)
        else:
            with _opened(target_at) as target:
                made = plan(source, target, target_at.shown, into)
        if dry_run:
            document(_data(made)) if as_json else _show(made)
            if not as_json:
                click.echo("Nothing was changed.")
            return
        if made.done:
            _say_moved(made, None, as_json)
            return
        if not as_json:
            _show(made)
        stores, kept = _stores(source, source_at, target_at, blobs_from, blobs_to)
        _ask(made, yes)
        given = _Given(from_url, to_url, into, blobs_from, blobs_to)
        with _opened(target_at) as target, _interrupted(source, given), _telling(as_json) as tell:
            done = transfer(source, target, into=into, wait=wait, stores=stores, tell=tell)
        _say_moved(made, done, as_json)
        if kept and not as_json:
            click.echo(f"Large payloads stay in {kept}: set blobs= or RESPOOL_BLOBS to that.")


def _undo(from_url: str | None, to_url: str | None, yes: bool, as_json: bool) -> None:
    from contextlib import ExitStack

    from ..transfer import undo
    from .output import document

    if from_url is None and to_url is None:
        raise click.UsageError("--undo needs --from URL, --to URL, or both")
    with ExitStack() as stack:
        source = stack.enter_context(_opened(_location(from_url, "--from"), "--from")) if from_url else None
        target = stack.enter_context(_opened(_location(to_url, "--to"), "--to")) if to_url else None
        mark = None if source is None else source.mark()
        if source is not None and mark is not None and mark.phase == "moved":
            confirm(
                f"All was moved to {mark.other}, and stays there. Open {source.shown} too? What waits is "
                "then on both, and is run by whoever serves them.",
                yes,
            )
        done = undo(source, target)
    if as_json:
        document({"undone": done})
    else:
        click.echo("\n".join(done))


def _location(url: str, option: str) -> Location:
    from ..location import parse_url, refuse_memory

    location = parse_url(url)
    refuse_memory(location, option)
    return location


def _is_there(location: Location) -> bool:
    """Say whether there is a store at a URL; asking makes none."""
    from ..engines import is_there

    return is_there(location)


@contextmanager
def _opened(location: Location, must_be_there: str = "") -> Iterator[Any]:
    from ..config import SETTINGS
    from ..engines import open_engine
    from ..errors import ConfigError

    if must_be_there and not _is_there(location):
        raise ConfigError(f"{must_be_there}: there is no log at {location.shown}")
    durability = location.options.get("durability", "full")
    SETTINGS["durability"].check(durability, "durability")
    engine = open_engine(location, durability, TIMEOUT)
    try:
        yield engine
    finally:
        engine.close()


def _stores(
    source: Any, source_at: Location, target_at: Location, blobs_from: str | None, blobs_to: str | None
) -> tuple[Stores, str]:
    """Return from where to where large payloads are to be copied; else where they stay, if there are any."""
    from ..blobs import store_of
    from ..errors import ConfigError

    if not source.has_blobs():
        return None, ""
    here = store_of(source_at, blobs_from, BLOB_TIMEOUT, "full")
    if here is None:
        raise ConfigError(
            f"{source_at.shown} has large payloads: say where they are, --blobs-from URL or RESPOOL_BLOBS"
        )
    there = store_of(
        target_at, blobs_to or (blobs_from if target_at.path is None else None), BLOB_TIMEOUT, "full"
    )
    if there is None or there.url == here.url:
        return None, here.shown
    return (here, there), ""


def _ask(made: Plan, yes: bool) -> None:
    from .output import counted

    if made.resumes:
        return  # it was asked when it began
    workers = f"{counted(made.workers, 'worker')} there will stop claiming. " if made.workers else ""
    confirm(f"{workers}Move {counted(made.records, 'record')} to {made.target}?", yes)


def _show(made: Plan) -> None:
    from .output import Column, Table, counted, number

    table = Table(Column("moves", least=8), Column("records", right=True), Column("groups", least=6))
    for each in made.streams:
        stream = each.stream
        name = f"{stream.kind} {f'{stream.app}/' if stream.app else ''}{stream.name}"
        table.add((name, number(each.records), ", ".join(group.name for group in each.groups)), {})
    table.show(False, "")
    if made.running:
        click.echo(f"Being run now, and waited for: {counted(made.running, 'record')}.")
    if made.replaced:
        names = ", ".join(f"{stream.kind} {stream.name}" for stream in made.replaced)
        click.echo(f"On the target, and never used; replaced: {names}.")
    if made.resumes:
        click.echo(f"A transfer to {made.target} was begun, and goes on.")
    if made.done:
        click.echo(f"All of it was moved to {made.target} already.")


def _say_moved(made: Plan, done: Summary | None, as_json: bool) -> None:
    from .output import counted, document

    if as_json:
        document(
            _data(made) | ({} if done is None else {"seconds": round(done.seconds, 3)}) | {"moved": True}
        )
    elif done is None:
        click.echo(f"All of it was moved to {made.target} already. Set url= or RESPOOL_URL to that.")
    else:
        if done.blobs or done.lost:
            lost = f"; {done.lost:,} were lost before" if done.lost else ""
            click.echo(f"Copied {counted(done.blobs, 'large payload')}{lost}.")
        click.echo(
            f"Moved {counted(made.records, 'record')} with {counted(made.groups, 'group')} to {made.target} "
            f"in {done.seconds:.1f} s; checked on both sides."
        )
        click.echo(f"Set url= or RESPOOL_URL to that, and start workers. {made.source} is closed, as it was.")


def _data(made: Plan) -> dict[str, Any]:
    return {
        "from": made.source,
        "to": made.target,
        "records": made.records,
        "running": made.running,
        "workers": made.workers,
        "resumes": made.resumes,
        "done": made.done,
        "replaced": [stream.name for stream in made.replaced],
        "streams": [
            {
                each.stream.kind: each.stream.name,
                "app": each.stream.app,
                "records": each.records,
                "groups": [group.name for group in each.groups],
            }
            for each in made.streams
        ],
    }


class _Given(NamedTuple):
    """What says which transfer it is, as it was typed."""

    source: str
    target: str
    into: bool
    blobs_from: str | None
    blobs_to: str | None

    def command(self, *, undo: bool = False) -> str:
        """Return the command that goes on with it, or gives it up."""
        from ..location import without_password

        words = {"--from": self.source, "--to": self.target}
        if not undo:
            words |= {"--blobs-from": self.blobs_from or "", "--blobs-to": self.blobs_to or ""}
        told = [f"{name} {shlex.quote(without_password(url))}" for name, url in words.items() if url]
        told += ["--undo"] if undo else ["--into"] if self.into else []
        return " ".join(["respool transfer", *told])


@contextmanager
def _interrupted(source: Any, given: _Given) -> Iterator[None]:
    """Say after Ctrl-C how things are, and how to go on. Raises Failure then."""
    try:
        yield
    except KeyboardInterrupt:
        mark = source.mark()
    else:
        return
    if mark is None:
        raise Failure("interrupted: nothing was moved, and the workers of the source go on")
    if mark.phase == "moved":
        raise Failure(f"interrupted at the very end; to end it: {given.command()}")
    what = "no worker claims a call there" + ("" if mark.phase == "draining" else ", and nobody can send")
    raise Failure(
        f"interrupted: {source.shown} stays stopped, {what}. To go on: {given.command()}; "
        f"to give it up and have the workers go on: {given.command(undo=True)}"
    )


@contextmanager
def _telling(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Tell how far it is on stderr: in place on a terminal, else a line once in a while, or nothing.

    A step that was said to be under way is said to be over when the next one begins: a short one is told once
    only, somewhere in its midst. It is told between two steps: Ctrl-C is heeded there, the second at once.
    """
    live = sys.stderr.isatty()
    last, share, said_at, stop = "", "", 0.0, False

    def heed(signum: int, frame: Any) -> None:
        nonlocal stop
        if stop:
            raise KeyboardInterrupt
        stop = True

    def say(text: str) -> None:
        click.echo(f"\r{text:<60}" if live else text, err=True, nl=not live)

    def tell(what: str, done: int, total: int) -> None:
        nonlocal last, share, said_at
        if stop:
            raise KeyboardInterrupt
        now = time.monotonic()
        if quiet and not live:
            return
        if what == last and now - said_at < (0.1 if live else SAY_EVERY):
            return
        if what != last and share.endswith("%") and share != ALL:
            say(f"{last}: {ALL}")
        part = f"{min(done * 100 // total, 100)} %" if total > 1 else ""
        share = part or (f"{done:,}" if done > 1 else "")
        say(f"{what}: {share}" if share else what)
        last, said_at = what, now

    before = signal.signal(signal.SIGINT, heed)
    try:
        yield tell
    finally:
        signal.signal(signal.SIGINT, before)
        if live:
            click.echo("\r" + " " * 60 + "\r", err=True, nl=False)
