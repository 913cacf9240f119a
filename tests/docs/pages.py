"""The docs as programs: their code blocks, in order, and what runs them.

A page has a folder of its own, in which these blocks are run one after the other:

    <!-- file: shop.py -->      before a block: written to that file (`file: +shop.py`: appended)
    ```python                   run in one namespace, until a file changes: then in a Python started anew
    ```pycon                    the same, and what it prints is compared; … stands for anything
    ```console                  lines `$ respool …`, `$ python …` and `$ echo …` are run, and what the first
                                two print is compared
    <!-- no-run: reason -->     before a block: not run

A worker that is not to end by itself (no --burst) is started in the background, and stopped by its pid when
a file changes or the page ends.
"""

from __future__ import annotations

import doctest
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import warm
from tests.warm import WarmPopen

import respool

ROOT = Path(__file__).parents[2]
RUNNER = Path(__file__).parent / "runner.py"
PATIENCE = 60.0  # seconds for one block, command or start
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

RUN = {"python", "pycon", "console"}

_BLOCK = re.compile(
    r"(?:^<!-- (?P<what>no-run|file): (?P<note>[^\n]*?) -->\n+)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_CHECKER = doctest.OutputChecker()
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """One fenced block: `what` and `note` are of the comment before it."""

    line: int
    kind: str
    text: str
    what: str = ""
    note: str = ""


def blocks(page: Path) -> list[Block]:
    """Return a page's fenced blocks."""
    text = page.read_text("utf-8")
    return [
        Block(
            1 + text.count("\n", 0, m.start("kind")), m["kind"], m["text"], m["what"] or "", m["note"] or ""
        )
        for m in _BLOCK.finditer(text)
    ]


def runs(page: Path) -> bool:
    """Say whether a page has anything to run."""
    return any(block.what != "no-run" and block.kind in RUN for block in blocks(page))


class Session:
    """A page's folder, its Python and its workers."""

    def __init__(self, page: Path, folder: Path) -> None:
        self.page, self.folder = page, folder
        # A terminal's width for tables; no setting of whoever runs the tests.
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("RESPOOL")}
        self.env |= {
            "COLUMNS": "110",
            "NO_COLOR": "1",
            "PYTHONPATH": str(Path(respool.__file__).parents[1]),
            "TZ": "UTC",
        }
        self._python: subprocess.Popen[str] | None = None
        self._workers: list[subprocess.Popen[bytes]] = []

    def run(self, block: Block) -> None:
        """Run one block; AssertionError says what was otherwise than the page has it."""
        if block.what == "no-run":
            assert block.note, "a no-run needs its reason"
        elif block.what == "file":
            self._write(block)
        elif block.kind in ("python", "pycon"):
            self._run_python(block)
        elif block.kind == "console":
            for command, printed in commands(block.text):
                self._run_command(command, printed, block)

    def close(self) -> None:
        """Stop what was started."""
        self._end_python()
        self._stop_workers()

    def _write(self, block: Block) -> None:
        self._end_python()
        self._stop_workers()
        append, name = block.note.startswith("+"), block.note.removeprefix("+")
        path = self.folder / name
        before = path.read_text("utf-8") + "\n\n" if append else ""
        path.write_text(before + block.text, "utf-8")

    # Python

    def _run_python(self, block: Block) -> None:
        if self._python is None:
            self._python = WarmPopen(
                [sys.executable, str(RUNNER)], cwd=self.folder, env=self.env, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
        assert self._python.stdin is not None
        assert self._python.stdout is not None
        text = "\n" * block.line + block.text if block.kind == "python" else block.text
        order = {"kind": block.kind, "text": text, "name": self._place(block)}
        self._python.stdin.write(json.dumps(order) + "\n")
        self._python.stdin.flush()
        answer = self._python.stdout.readline()  # the runner gives up by itself after PATIENCE
        assert answer, f"{self._place(block)}: Python ended"
        failed = json.loads(answer)
        assert not failed, f"{self._place(block)}\n{failed}"

    def _end_python(self) -> None:
        if self._python is not None:
            assert self._python.stdin is not None
            assert self._python.stdout is not None
            self._python.stdin.close()
            self._python.stdout.close()
            self._python.wait(PATIENCE)
            self._python = None

    # Commands

    def _run_command(self, command: str, printed: str, block: Block) -> None:
        words = shlex.split(command, comments=True)
        if words[0] == "echo":
            subprocess.run(command, shell=True, cwd=self.folder, env=self.env, check=True, timeout=PATIENCE)
            return
        starts = {"respool": [sys.executable, "-m", "respool"], "python": [sys.executable]}
        assert words[0] in starts, f"{self._place(block)}: not run, nor marked no-run: {command}"
        arguments = [*starts[words[0]], *words[1:]]
        if "worker" in words and "--burst" not in words and "--help" not in words:
            self._start_worker(arguments)
            return
        done = warm.run(
            arguments, cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, text=True, timeout=PATIENCE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        where = f"{self._place(block)}: $ {command}"
        refused = printed.startswith(("Error:", "Usage:"))
        assert (done.returncode != 0) == refused, f"{where}: exit code {done.returncode}\n{done.stdout}"
        if printed:
            wanted = printed.replace("…", "...")
            if not _CHECKER.check_output(wanted, done.stdout, _FLAGS):
                raise AssertionError(f"{where}\nthe page has\n{printed}\nit printed\n{done.stdout}")

    def _start_worker(self, arguments: list[str]) -> None:
        log = self.folder / f"worker-{len(self._workers)}.log"
        with log.open("wb") as out:
            worker = WarmPopen(
                arguments, cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        self._workers.append(worker)
        until = time.monotonic() + PATIENCE
        while "Ctrl-C" not in log.read_text("utf-8"):  # the banner's last line: its app was imported
            assert worker.poll() is None, log.read_text("utf-8")
            assert time.monotonic() < until, f"the worker did not start:\n{log.read_text('utf-8')}"
            time.sleep(0.02)

    def _stop_workers(self) -> None:
        for worker in self._workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
        for worker in self._workers:
            try:
                worker.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
                raise
        self._workers.clear()

    def _place(self, block: Block) -> str:
        return f"{self.page.relative_to(ROOT)}:{block.line}"


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield the commands of a console block, each with what it is to print (nothing: not compared)."""
    command, printed = "", []
    for line in text.splitlines():
        if line.startswith("$ "):
            if command:
                yield command, "\n".join(printed).strip("\n")
            command, printed = line[2:], []
        elif command:
            printed.append(line)
    if command:
        yield command, "\n".join(printed).strip("\n")


def links(page: Path) -> list[str]:
    """Return the targets of a page's links, those in code left out."""
    text = re.sub(r"```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    found: list[Any] = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "`code`", text))
    return found


def anchors(page: Path) -> set[str]:
    """Return the anchors that a page's headings make, as GitHub names them."""
    text = re.sub(r"```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
