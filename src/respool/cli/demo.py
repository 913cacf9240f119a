"""`respool demo`: the whole promise, on real files, in about a minute."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from ..app import App
    from ..engines.base import Group

MARK = "respool-demo"  # a file by which the folder is known as ours
FEW = 20  # files, below which a worker is through before anything can be killed


@click.command()
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Whose text files; default: Python's own library."
)
@click.option("--limit", type=click.IntRange(min=20), default=3000, show_default=True, help="Files at most.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("respool-demo"), show_default=True,
    help="Where the database is left; made anew each time.",
)  # fmt: skip
def command(folder: Path | None, limit: int, out: Path) -> None:
    """See it work on real files: kills, a replay, the proof.

    One call a file goes on the log. A worker with two processes runs them while one of its processes, then
    the worker itself, is killed with SIGKILL. A record kept outside the database shows that no file was
    left out. Then the same calls run again through a second version of the task, beside the first.

    It has an app and a file of its own, in --out: -A, --url and RESPOOL_URL mean nothing to it.

    \b
    respool demo
    respool demo --folder ~/projects --limit 1000
    """
    from rich.console import Console

    demo = Demo(Console(highlight=False), folder or Path(sysconfig.get_path("stdlib")), limit, out.absolute())
    try:
        demo.tell()
    except KeyboardInterrupt:
        click.echo(f"\nStopped before its end, and so are its workers. {demo.left_behind()}")
        click.get_current_context().exit(1)
    if demo.broken:
        click.echo(f"A promise was broken: {'; '.join(demo.broken)}.", err=True)
        click.get_current_context().exit(1)


class Demo:
    """The story, told on a console."""

    def __init__(self, console: Console, folder: Path, limit: int, out: Path) -> None:
        self.console, self.folder, self.limit, self.out = console, folder, limit, out
        self.url = f"sqlite:///{out / 'demo.db'}"
        self.record = out / "runs.txt"
        self.log = out / "worker.log"
        self._killed = False
        self.broken: list[str] = []  # what was found otherwise than it was promised

    def left_behind(self) -> str:
        """Say what there is on disk, and how to be rid of it."""
        if not (self.out / MARK).exists():
            return "It has left nothing on disk."
        shown = shlex.quote(os.path.relpath(self.out))
        return f"Its log and its files are in {shown}. To remove them: rm -r {shown}"

    def _say(self, text: str) -> None:
        """Print a line; the terminal breaks it where it must, and nobody does in a pipe."""
        self.console.print(text, soft_wrap=True)

    def tell(self) -> None:
        """Run all of it."""
        from ..demo.story import text_files

        files = text_files(self.folder, self.limit)
        self._make_room()
        app = self._app()
        try:
            ids = self._send(app, files)
            main = self._survive(app, len(files))
            self._prove(app, files, ids, "v1")
            self._replay(app, main, files, ids)
            self._lag(app)
            self._next(self._interesting(files, ids))
        finally:
            app.close()

    def _make_room(self) -> None:
        from ..errors import ConfigError

        try:
            if self.out.exists() and not (self.out / MARK).exists():
                raise ConfigError(f"{self.out} exists and is not a demo's; name another folder with --out")
            if self.out.exists():
                shutil.rmtree(self.out)
            self.out.mkdir(parents=True)
            (self.out / MARK).touch()
        except OSError as error:
            raise ConfigError(
                f"the demo cannot make its folder {self.out}: {error.strerror or error}; name another "
                "with --out"
            ) from error

    def _app(self) -> App:
        os.environ["RESPOOL_URL"] = self.url
        from ..demo.v1 import app

        return app

    def _head(self, number: int, text: str) -> None:
        from rich.markup import escape

        self._say(f"\n[bold]{number}. {escape(text)}[/bold]")

    def _send(self, app: App, files: list[str]) -> list[str]:
        import time

        from rich.markup import escape

        self._head(1, f"{len(files):,} file{_s(files)} of {self.folder}, one call each")
        start = time.perf_counter()
        results = app.tasks["digest"].delay_many(files)
        took = time.perf_counter() - start
        self._say(f"   on disk, synced, after {took * 1000:.0f} ms: {escape(app.location.shown)}")
        return [result.id for result in results]

    def _survive(self, app: App, total: int) -> Group:
        from ..demo.story import DemoWorker

        few = total < FEW
        told = "none is killed: that takes more files" if few else "kill -9 once it is well into its work"
        self._head(2, f"A worker with two processes; {told}")
        main = next(group for group in app.groups() if group.name == "main")
        worker = DemoWorker("respool.demo.v1", self.url, self.record, self.log)
        try:
            with self._progress("v1", total) as show:

                def shown(at: Any) -> bool:
                    show(at)
                    if few or at.done >= total:
                        return False
                    if not self._killed and at.done > total * 0.25 and (pid := worker.kill_child(app)):
                        self._killed = True
                        self._say(f"   [red]kill -9[/red] of one process ({pid}); its call goes to the other")
                    return bool(at.done > total * 0.55)

                at = self._watch(app, main, total, worker, shown)
            if at.done < total:
                worker.kill()
                self._killed = True
                self._say(
                    f"   [red]kill -9[/red] of the worker ({worker.process.pid}), in the middle of its work"
                )
                worker = DemoWorker("respool.demo.v1", self.url, self.record, self.log)
                self._say("   another worker starts, and takes over what the dead one had claimed")
                with self._progress("v1", total) as show:
                    at = self._watch(app, main, total, worker, lambda at: bool(show(at)))
            elif not few:
                self._say("   the worker was through before it could be killed")
        finally:
            worker.stop()
        self._say(f"   {at.done:,} of {total:,} calls have ended, {at.dead:,} of them as dead letters")
        return main

    def _watch(self, app: App, group: Group, total: int, worker: Any, shown: Any) -> Any:
        from ..demo.story import watch

        return watch(app, group, total, worker, shown)

    def _progress(self, what: str, total: int) -> Any:
        from contextlib import contextmanager, nullcontext

        if not self.console.is_terminal:
            return nullcontext(lambda at: None)

        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        @contextmanager
        def bar() -> Any:
            columns = (
                TextColumn("   {task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
            )
            with Progress(*columns, console=self.console, transient=True) as progress:
                task = progress.add_task(what, total=total, rate="")
                yield lambda at: progress.update(task, completed=at.done)

        return bar()

    def _prove(self, app: App, files: list[str], ids: list[str], version: str) -> None:
        """Hold the outside record against the calls: a file was processed, or its call is a dead letter."""
        from rich.markup import escape

        from ..demo.record import runs
        from ..demo.story import unprocessed

        self._head(
            3 if version == "v1" else 5, f"The proof, from {self.record.name}, kept outside the database"
        )
        found = runs(self.record, version)
        group = "main" if version == "v1" else version
        unreadable, lost = unprocessed(app, group, zip(files, ids, strict=True), found)
        repeats = sum(found.values()) - len(found)
        killed = version == "v1" and self._killed
        again = f"{repeats} run{'s' if repeats != 1 else ''} repeated"
        self._say(f"   {len(found):,} file{_s(found)} processed, {again}")
        if killed:
            self._say(
                "   (a kill may repeat the call that was running, and those ended in the 10 ms before it,\n"
                "   which are not on record yet: each is run at least once, and none is lost)"
            )
        if unreadable:
            self._say(
                f"   {len(unreadable):,} could not: each is a dead letter with its input and error, like\n"
                f"   {escape(unreadable[0])}"
            )
        if lost:
            self.broken.append(f"{len(lost):,} file{_s(lost)} of {version} neither processed nor failed")
            self._say(f"   [red]{len(lost):,} LOST[/red], like {escape(lost[0])}")

    def _replay(self, app: App, main: Group, files: list[str], ids: list[str]) -> None:
        from ..demo.story import DemoWorker, fingerprint
        from ..replay import create_replay

        self._head(4, "The same calls again, through version 2 of the task, in a group of their own")
        log = app.stream_of("queue", "default").logs[0]
        before = fingerprint(app, main, log)
        summary = create_replay(app, "default", "v2", ["digest"])
        group = next(each for each in app.groups() if each.name == "v2")
        self._say(f"   {summary.total:,} calls, run by a worker --group v2")
        worker = DemoWorker("respool.demo.v2", self.url, self.record, self.log, "--group", "v2")
        try:
            with self._progress("v2", summary.total) as show:
                self._watch(app, group, summary.total, worker, lambda at: bool(show(at)))
        finally:
            worker.stop()
        self._prove(app, files, ids, "v2")
        same = fingerprint(app, main, log) == before
        if not same:
            self.broken.append("the outcomes of version 1 have changed")
        self._say(f"   the outcomes of version 1 are {'untouched' if same else '[red]CHANGED[/red]'}")
        self._compare(app, files, ids)

    def _compare(self, app: App, files: list[str], ids: list[str]) -> None:
        from ..demo.record import runs
        from ..demo.story import compared
        from .output import Column, Table

        done = runs(self.record, "v1")
        failed = [at for at, path in enumerate(files) if path not in done][:2]
        step = max(len(ids) // 3, 1)
        chosen = sorted({*range(0, len(ids), step), *failed})[:5]
        titles = ("file", "outcome in main (v1)", "outcome in v2")
        table = Table(*(Column(title, least=12, text=title != "file") for title in titles))
        for at, row in zip(chosen, compared(app, [ids[at] for at in chosen]), strict=True):
            table.add((Path(files[at]).name, _short(row["v1"]), _short(row["v2"])), row)
        table.show(False, "")

    def _interesting(self, files: list[str], ids: list[str]) -> str:
        """Return a call that version 1 failed and version 2 did not, or else the first."""
        from ..demo.record import runs

        done = runs(self.record, "v1")
        return next((id for path, id in zip(files, ids, strict=True) if path not in done), ids[0])

    def _lag(self, app: App) -> None:
        from .lag import lag_table
        from .target import Target

        self._head(6, "respool lag")
        target = Target(app.engine, app, app.name, app.location)
        lag_table(target, target.groups).show(False, "")

    def _next(self, id: str) -> None:
        from rich.markup import escape

        shown = os.path.relpath(self.out / "demo.db")
        url = f"sqlite:///{shown}"
        self._head(7, "It is all still there. Try next:")
        for line in (f"show {id}", "dead list", "check"):
            self._say(f"   {escape(f'{_command()} --url {url} {line}')}")
        self._say(f"   {escape(self.left_behind())}")


def _s(things: Sized) -> str:
    return "" if len(things) == 1 else "s"


def _command() -> str:
    """Return what to type for `respool` here: it may be in an environment that is not active."""
    return "respool" if shutil.which("respool") else os.path.relpath(sys.argv[0])


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return str(value)
