"""An app in a file of its own, calls processed without a worker, and the command as its users run it."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner
from tests import warm

from respool.cli import main
from respool.delivery.claim import Request, claim
from respool.delivery.model import Settlement, Verdict
from respool.delivery.settle import settle
from respool.encoding.remote import encode_error
from respool.engines.base import Reads, Registration
from respool.record import NO_META, unpack_meta

SHOP = """
from respool import App

app = App("shop")

@app.task
def add(x: int, y: int) -> int:
    return x + y

@app.task(queue="fast", max_retries=5, autoretry_for=(OSError,))
def fetch(url: str, retries: int = 0) -> str:
    if url.startswith("bad"):
        raise ValueError(f"no such place: {url}")
    return url.upper()

@app.task(aliases=("mailto",), ignore_result=True)
def mail(to: str) -> None: ...

events = app.stream("inference", key="user_id")

@events.subscribe(group="audit", start="earliest")
def audit(event): ...
"""


def write_shop(folder: Path, text: str = SHOP, name: str = "shop") -> Path:
    path = folder / f"{name}.py"
    path.write_text(text)
    return path


class Cli:
    """Runs commands in this process, in a folder of their own, without a terminal."""

    def __call__(self, *args: str, code: int = 0, input: str | None = None) -> str:
        """Run a command; return what it printed, on both channels."""
        env = {"RESPOOL_APP": None, "RESPOOL_URL": None}
        result = CliRunner(env=env).invoke(main, list(args), input=input, prog_name="respool")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, f"exit code {result.exit_code}:\n{result.output}"
        return result.output

    def rows(self, *args: str) -> list[dict]:
        """Return what a command prints with --json, one object a line."""
        return [json.loads(line) for line in self(*args, "--json").splitlines()]

    def data(self, *args: str, code: int = 0) -> dict:
        """Return what a command prints with --json, as one document."""
        return json.loads(self(*args, "--json", code=code))


def run(*args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m respool` in a process of its own."""
    return _run(warm.run, "-m", "respool", *args, cwd=cwd, **env)


def python(*args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Start Python, without a terminal."""
    return _run(subprocess.run, *args, cwd=cwd, **env)


def _run(runner: Callable, *args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RESPOOL_")}
    clean["PYTHONPATH"] = str(Path(sys.modules["respool"].__file__).parents[1])
    return runner(
        [sys.executable, *args],
        cwd=cwd,
        env=clean | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def start(*args: str, cwd: Path) -> subprocess.Popen[str]:
    """Start `python -m respool` in a process of its own, without waiting for its end."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RESPOOL_")}
    clean["PYTHONPATH"] = str(Path(sys.modules["respool"].__file__).parents[1])
    return warm.WarmPopen(
        [sys.executable, "-m", "respool", *args],
        cwd=cwd,
        env=clean,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def in_terminal(*args: str, cwd: Path, columns: int = 80, interrupt: str = "") -> tuple[int, str]:
    """Run `python -m respool` in a terminal; press Ctrl-C once it has printed a text.

    Returns its exit code and what it printed, without colours.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        source = str(Path(sys.modules["respool"].__file__).parents[1])
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RESPOOL_")}
        env = {**clean, "PYTHONPATH": source, "COLUMNS": str(columns), "TERM": "xterm"}
        os.execve(sys.executable, [sys.executable, "-m", "respool", *args], env)
    seen = b""
    while select.select([terminal], [], [], 60.0)[0]:
        try:
            more = os.read(terminal, 65536)
        except OSError:  # its end of the terminal is closed
            break
        if not more:
            break
        seen += more
        if interrupt and interrupt.encode() in seen:
            os.write(terminal, b"\x03")
            interrupt = ""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode()).replace("\r\n", "\n")
    return code, "\n".join(line.rpartition("\r")[2] for line in plain.split("\n"))  # written over


class Worker:
    """Does what a worker does, as far as the log and the state can tell."""

    def __init__(self, app, name: str = "w1") -> None:
        self.app, self.leases = app, 0
        registration = Registration(app.name, name, "here", "some-boot", os.getpid(), time.time(), {})
        self.id = self.engine.register(registration)

    @property
    def engine(self):
        """The app's, opened again where a command run in this process has closed it."""
        return self.app.engine

    def say(self, **info) -> None:
        """Beat, and tell what is run."""
        self.engine.beat(self.id, False, info, synced=False)

    def take(self, queue: str = "default", group: str = "main", want: int = 100, kind: str = "queue"):
        """Claim; return the group and the lease, None where there is nothing."""
        stream = self.app.stream_of(kind, queue)
        found = next(g for g in self.engine.groups() if g.stream == stream.id and g.name == group)
        self.leases += 1
        now = time.time() + 0.001
        reads = Reads(found.id, positions=True, due=want, returned=10, now=now, tasks=list(self.app.tasks))
        request = Request(want, self.id, 0, self.id << 32 | self.leases, now)
        return found, self.engine.transact(reads, lambda view, change: claim(view, change, request))

    def settle(self, group, lease, done=None, verdicts=(), release: bool = False) -> None:
        now = time.time()
        ranges = [(span.lo, span.hi) for span in lease.spans] if done is None else done
        settlement = Settlement(
            lease.id, self.id, ranges, list(verdicts), started=now, ended=now, release=release
        )
        reads = Reads(group.id, leases=(lease.id,))
        assert self.engine.transact(reads, lambda view, change: settle(view, change, settlement))

    def work(self, queue: str = "default", group: str = "main", want: int = 100) -> int:
        """Run everything that a claim gives."""
        found, lease = self.take(queue, group, want)
        if lease is None:
            return 0
        rows = self.engine.rows(lease.spans)
        self.settle(found, lease, verdicts=[v for row in rows if (v := self._run(found, row)) is not None])
        return len(rows)

    def _run(self, group, row) -> Verdict | None:
        pos, name, body, meta = row
        now, due = time.time(), (unpack_meta(meta) if meta else NO_META).due
        tasks = group.settings.get("tasks")
        if tasks is not None and name not in tasks:
            return Verdict(pos, skipped=True, note="skipped")
        if due is not None and due > now:
            return Verdict(pos, reason="scheduled", due=due, task=name, note="scheduled")
        task = self.app.tasks.get(name)
        if task is None:
            return Verdict(pos, reason="unknown", task=name, note=f"unknown: no task {name!r} here")
        args, kwargs = task.codec.decode(body)
        try:
            value = task(*args, **kwargs)
        except task.options["autoretry_for"] as error:
            told = encode_error(error)
            return Verdict(
                pos, reason="retry", due=now + 60, task=name, error=told, retried=True, note="retry: x"
            )
        except Exception as error:  # noqa: BLE001 - as the worker does
            told = encode_error(error)
            note = f"failed: {type(error).__name__}: {error}"
            return Verdict(pos, "failure", told, reason="dead", task=name, error=told, note=note)
        return None if value is None else Verdict(pos, "success", task.codec.encode(value))
