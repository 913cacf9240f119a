"""A process that is forked from a warm one is as one that was started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.warm import WarmPopen, run

PROBE = """
import json, os, signal, sys
signals = {n: repr(signal.getsignal(n)) for n in signal.valid_signals()}
streams = [(s.encoding, s.errors, s.fileno(), s.line_buffering) for s in (sys.stdin, sys.stdout, sys.stderr)]
there = [file for file in range(100) if os.path.exists(f"/proc/self/fd/{file}")]
files = [file for file in there if os.get_inheritable(file)]
print(json.dumps({
    "argv": sys.argv, "path": sys.path[0], "more": "/more" in sys.path, "name": __name__,
    "folder": os.getcwd(), "env": dict(os.environ), "parent": os.getppid(), "signals": signals,
    "files": files, "leads": os.getpid() == os.getsid(0),
    "streams": streams, "ignores": sys.flags.ignore_environment, "writes": sys.dont_write_bytecode,
    "threads": len(os.listdir("/proc/self/task")), "read": sys.stdin.read(),
    "file": globals().get("__file__"),
}))
sys.exit(7)
"""
ENV = {"PYTHONPATH": "/more", "PATH": "", "TZ": "UTC", "WHAT": "warm", "LANG": "C.UTF-8"}


@pytest.mark.parametrize("how", ["code", "file", "module"])
def test_it_sees_what_a_started_one_sees(how: str, tmp_path: Path) -> None:
    (tmp_path / "probe_.py").write_text(PROBE)
    command = {"code": ["-c", PROBE], "file": [str(tmp_path / "probe_.py")], "module": ["-m", "probe_"]}[how]
    kept, other = os.pipe()
    seen = []
    try:
        for make in (subprocess.Popen, WarmPopen):
            with make(
                [sys.executable, *command, "an argument", "ünï"], cwd=tmp_path, env=ENV, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                pass_fds=(kept,), start_new_session=True,
            ) as process:  # fmt: skip
                out, err = process.communicate("to read", timeout=60)
            assert (process.returncode, err) == (7, "")
            seen.append(json.loads(out))
    finally:
        os.close(kept)
        os.close(other)
    assert seen[0] == seen[1]
    assert seen[1]["parent"] == os.getpid()


def test_it_is_not_started(tmp_path: Path) -> None:
    """That it is faster is what it is for: it has been imported, and is the same server's each time."""
    code = "import sys; print('respool.worker.start' in sys.modules)"
    done = run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == ("True\n" if sys.platform == "linux" else "False\n")


@pytest.mark.parametrize("more", [{"env": {"PYTHONHASHSEED": "1"}}, {"preexec_fn": lambda: None}])
def test_what_only_a_start_can_do_is_started(more: dict, tmp_path: Path) -> None:
    code = "import sys; print('respool.worker.start' in sys.modules)"
    done = run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True, **more)
    assert done.stdout == "False\n"


def test_its_end_is_told(tmp_path: Path) -> None:
    sleeps = [sys.executable, "-c", "import time; print('.', flush=True); time.sleep(100)"]
    with WarmPopen(sleeps, stdout=subprocess.PIPE) as process:
        assert process.stdout.read(1) == b"."
        assert process.poll() is None
        process.kill()
        assert process.wait(20) == -9
    with pytest.raises(subprocess.CalledProcessError):
        run([sys.executable, "-c", "raise SystemExit(3)"], timeout=60, check=True)
    with pytest.raises(subprocess.TimeoutExpired):
        run(sleeps, timeout=0.5, stdout=subprocess.DEVNULL)
