"""respool demo: what it tells is what happened, on a terminal and in a pipe."""

import re

import pytest
from tests.cli.support import in_terminal, run

from respool import App
from respool.demo.record import runs
from respool.demo.story import unprocessed
from respool.testing import work


@pytest.fixture
def texts(folder):
    """Make a folder with so many text files, one of them not UTF-8; return its name."""

    def make(count, name="texts"):
        (folder / name).mkdir()
        for n in range(count):
            (folder / name / f"{n:04}.txt").write_bytes(b"\xff" if n == 5 else b"one two %d\n" % n)
        return name

    return make


def test_into_a_pipe_it_writes_whole_lines(folder, texts):
    name = texts(200, "texts_in_a_folder_with_a_name_so_long_that_no_terminal_has_a_line_for_it_" * 2)
    result = run("demo", "--folder", name, cwd=folder, COLUMNS="40")
    assert result.returncode == 0, result.stderr
    text = result.stdout
    assert f"1. 200 files of {name}, one call each\n" in text
    assert "199 files processed, " in text
    assert "   the outcomes of version 1 are untouched\n" in text
    assert "\n\n\n" not in text
    for before, line in zip(text.splitlines(), text.splitlines()[1:], strict=False):
        assert before or re.match(r"\d\. ", line), "only a heading follows on a blank line"
    killed = "kill -9 of " in text  # it may be through before that
    assert killed == ("(a kill may repeat the call that was running" in text)
    assert re.search(r"199 files processed, \d+ runs? repeated\n", text)
    assert ("kill -9 of the worker" in text) != ("the worker was through before it could be killed" in text)
    assert "To remove them: rm -r respool-demo\n" in text


@pytest.mark.timeout(240)
def test_both_kills_strike_in_the_midst_of_work_and_nothing_is_lost(folder):
    """On files that take a while, as real ones do; the numbers are those of the record and of the log."""
    (folder / "texts").mkdir()
    words = [f"{n * 7919 % 10_007:x}" for n in range(40_000)]
    for n in range(240):  # a second of work and more: which process to kill is known by a beat
        (folder / "texts" / f"{n:03}.txt").write_text(" ".join(words[n * 50 :] + words[: n * 50]))
    (folder / "texts" / "050.txt").write_bytes(b"\xff")
    text = run("demo", "--folder", "texts", cwd=folder).stdout
    told = [
        r"   kill -9 of one process \(\d+\); its call goes to the other\n",
        r"   kill -9 of the worker \(\d+\), in the middle of its work\n",
        r"   another worker starts, and takes over what the dead one had claimed\n",
        r"   240 of 240 calls have ended, 1 of them as dead letters\n",
        r"   239 files processed, [0-4] runs? repeated\n",
        r"   1 could not: each is a dead letter with its input and error, like\n   \S*/050\.txt\n",
        r"   240 files processed, 0 runs repeated\n   the outcomes of version 1 are untouched\n",
    ]
    assert re.search(".*".join(told), text, re.DOTALL), text
    record = folder / "respool-demo" / "runs.txt"
    assert (len(runs(record, "v1")), len(runs(record, "v2"))) == (239, 240)
    for command in re.findall(r"--url (\S+) (show \S+|dead list|check)\n", text):
        assert run("--url", command[0], *command[1].split(), cwd=folder).returncode == 0


@pytest.mark.parametrize("count", [1, 3])
def test_with_a_few_files_it_says_that_nothing_is_killed(folder, texts, count):
    text = run("demo", "--folder", texts(count), cwd=folder).stdout
    assert "2. A worker with two processes; none is killed: that takes more files\n" in text
    assert "kill -9" not in text
    assert "a kill may" not in text
    assert f"   {count} of {count} calls have ended, 0 of them as dead letters\n" in text
    assert f"   {count} file{'s' if count > 1 else ''} processed, 0 runs repeated\n" in text


def test_a_proof_that_fails_is_told_and_ends_with_1(cli, folder, texts, monkeypatch):
    """A file that the outside record does not have, and whose call did not fail either."""

    def without_one(path, version):
        found = runs(path, version)
        found.pop(next(each for each in found if each.endswith("0007.txt")))
        return found

    monkeypatch.chdir(folder)
    monkeypatch.setenv("RESPOOL_URL", "")  # the demo sets it
    monkeypatch.setattr("respool.demo.record.runs", without_one)
    text = cli("demo", "--folder", texts(20), code=1)
    assert "18 files processed, " in text
    assert "   1 could not: each is a dead letter with its input and error, like\n" in text
    assert re.search(r"   1 LOST, like \S*/?0007\.txt\n", text)
    assert "A promise was broken: 1 file of v1 neither processed nor failed; 1 file of v2 neither" in text


def test_what_is_lost_and_what_has_failed(tmp_path):
    with App("shop", url=f"sqlite:///{tmp_path / 'log.db'}") as app:

        @app.task(throws=(KeyError,))
        def read(path: str) -> None:
            if path == "fails":
                raise ValueError(path)
            if path == "throws":
                raise KeyError(path)

        files = ["done", "fails", "unrecorded", "throws"]
        ids = [read.delay(path).id for path in files]
        work(app)
        files.append("waits")
        ids.append(read.delay("waits").id)
        calls = list(zip(files, ids, strict=True))
        assert unprocessed(app, "main", calls, {"done"}) == (["fails"], ["unrecorded", "throws", "waits"])


def test_ctrl_c_says_what_is_left_and_how_to_remove_it(folder, texts):
    code, text = in_terminal("demo", "--folder", texts(300), cwd=folder, interrupt="on disk, synced")
    assert code == 1
    assert "Aborted" not in text
    assert "Stopped before its end, and so are its workers." in text
    assert "Its log and its files are in respool-demo. To remove them: rm -r respool-demo" in text
    assert (folder / "respool-demo").is_dir()
    again = run("demo", "--folder", "texts", "--limit", "20", cwd=folder)
    assert again.returncode == 0, "it makes its folder anew"


def test_a_folder_that_cannot_be_made_is_one_line(folder):
    result = run("demo", "--out", "shop.py/demo", cwd=folder)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "the demo cannot make its folder" in result.stderr
    assert "Not a directory; name another with --out" in result.stderr


def test_a_folder_that_cannot_be_written_to_is_one_line(cli, folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)  # as root, who runs some tests, may write anywhere
    text = cli("demo", code=2)
    assert text.count("\n") == 1
    assert "Permission denied; name another with --out" in text


def test_help_says_that_it_has_a_file_of_its_own(cli):
    assert "-A, --url and RESPOOL_URL mean nothing to it" in " ".join(cli("demo", "--help").split())
