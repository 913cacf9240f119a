"""Every documented example runs, every link leads somewhere, and the generated tables are current."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.docs.pages import PAGES, ROOT, Block, Session, anchors, blocks, commands, links, runs

import respool
from respool import App, AsyncResult, ResultSet
from respool.stream import StreamHandle
from respool.task import Task

PAGE = [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES]
KINDS = {"python", "pycon", "console", "text", "toml", "sql"}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", [p for p in PAGE if runs(p.values[0])])
def test_examples_run(page: Path, tmp_path: Path) -> None:
    session = Session(page, tmp_path)
    try:
        for block in blocks(page):
            session.run(block)
    finally:
        session.close()


@pytest.mark.parametrize("page", PAGE)
def test_blocks_are_told_apart(page: Path) -> None:
    fences = re.findall(r"^```(\w*)$", page.read_text("utf-8"), re.MULTILINE)
    assert set(fences[0::2]) <= KINDS, "each block says what it is"
    assert len(fences) == 2 * len(blocks(page)), "no block escapes the tests"
    marks = re.findall(r"^<!-- (?:no-run|file):", page.read_text("utf-8"), re.MULTILINE)
    assert len(marks) == sum(bool(block.what) for block in blocks(page)), "each mark stands before a block"


@pytest.mark.parametrize("page", PAGE)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if link.startswith(("http:", "https:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: there is no {name}"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGE)
def test_paths_in_the_text_exist(page: Path) -> None:
    for path in re.findall(r"`((?:src|tests|docs|bench|examples)/[\w./-]+)`", page.read_text("utf-8")):
        assert (ROOT / path).exists(), f"there is no {path}"


@pytest.mark.parametrize("page", PAGE)
def test_names_in_the_design_exist(page: Path) -> None:
    """`module.py: name` in the text: the module has that name."""
    text = page.read_text("utf-8")
    for path, names in re.findall(r"`((?:\w+/)*\w+\.py)`: ((?:`\w+(?:\.\w+)?`(?:, )?)+)", text):
        source = (ROOT / "src/respool" / path).read_text("utf-8")
        for name in re.findall(r"`(?:\w+\.)?(\w+)`", names):
            assert re.search(rf"\b{name}\b", source), f"{path} has no {name}"


@pytest.mark.parametrize("name", respool.__all__)
def test_public_names_are_documented(name: str) -> None:
    docs = "".join(page.read_text("utf-8") for page in PAGES if page.parent == ROOT / "docs")
    assert re.search(rf"\b{name}\b", docs)


WITH_ALL_SAID: tuple[Any, ...] = (
    *(App.lag, App.pressure, App.send_task, App.queue, Task.apply_async, Task.apply_many, Task.update_state),
    *(Task.retry, StreamHandle.publish, StreamHandle.publish_many),
    *(AsyncResult.get, AsyncResult.aget, ResultSet.wait, ResultSet.iterate, ResultSet.get),
)


@pytest.mark.parametrize("method", WITH_ALL_SAID, ids=lambda method: method.__qualname__)
def test_docstrings_say_what_each_parameter_is_and_what_is_raised(method: Any) -> None:
    doc = inspect.getdoc(method) or ""
    said = {name for names in re.findall(r"(?m)^    (\w+(?:, \w+)*): |\. (\w+): ", doc) for name in names}
    said = {name for names in said for name in names.split(", ")}
    known = {"self", "unknown", "name" if method is App.queue else ""}
    assert {*inspect.signature(method).parameters} - known <= said
    assert "Raises" in doc


def test_generated_tables_are_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/generate.py"), "--check"],
        env={"PYTHONPATH": str(Path(respool.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_a_wrong_example_is_found(tmp_path: Path) -> None:
    session = Session(ROOT / "README.md", tmp_path)
    try:
        with pytest.raises(AssertionError, match="NameError"):
            session.run(Block(1, "python", "nothing\n"))
        with pytest.raises(AssertionError, match="Expected"):
            session.run(Block(1, "pycon", ">>> 1 + 1\n3\n"))
        with pytest.raises(AssertionError, match="exit code"):
            session.run(Block(1, "console", "$ respool wrk\n"))
        with pytest.raises(AssertionError, match="the page has"):
            session.run(Block(1, "console", "$ respool --version\nrespool of another name\n"))
        with pytest.raises(AssertionError, match="the page has"):
            session.run(Block(1, "console", "$ python -c 'print(2)'\n3\n"))
        with pytest.raises(AssertionError, match="not run, nor marked no-run"):
            session.run(Block(1, "console", "$ cat respool.db\n"))
    finally:
        session.close()


def test_commands_are_taken_apart() -> None:
    text = "$ respool lag\nqueue\n…\n$ respool check\n"
    assert list(commands(text)) == [("respool lag", "queue\n…"), ("respool check", "")]
