"""The wheel, installed with its dependencies in an empty environment, runs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEPT = (
    "PATH",
    "HOME",
    "TMPDIR",
    "PIP_CERT",
    "PIP_INDEX_URL",
    "PIP_FIND_LINKS",
    "SSL_CERT_FILE",
    "HTTPS_PROXY",
)

APP = """
import os
from respool import App

app = App("shop", url="sqlite:///" + os.path.join(os.path.dirname(os.path.abspath(__file__)), "shop.db"))


@app.task
def add(x: int, y: int) -> int:
    return x + y
"""


def run(command: list[str | Path], folder: Path) -> str:
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_wheel_runs_in_an_empty_environment(tmp_path: Path) -> None:
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT], ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {
        "respool/py.typed",
        "respool/engines/sqlite/schema.sql",
        "respool/engines/sqlite/statements.sql",
    } <= {*names}
    run([sys.executable, "-m", "venv", tmp_path / "env"], tmp_path)
    binaries = tmp_path / "env" / "bin"
    run([binaries / "pip", "install", "--quiet", wheel], tmp_path)

    (tmp_path / "shop.py").write_text(APP)
    assert "respool" in run([binaries / "respool", "--version"], tmp_path)
    id = run([binaries / "respool", "-A", "shop", "call", "add", "2", "3", "--no-wait"], tmp_path).split()[0]
    run([binaries / "respool", "-A", "shop", "worker", "-c", "1", "--burst"], tmp_path)
    assert "5" in run([binaries / "respool", "-A", "shop", "show", id], tmp_path)
    run([binaries / "respool", "-A", "shop", "check"], tmp_path)
    texts = tmp_path / "texts"
    texts.mkdir()
    for n in range(30):
        (texts / f"{n}.txt").write_text("to be or not to be\n" * (n + 1))
    told = run([binaries / "respool", "demo", "--folder", texts, "--out", tmp_path / "demo"], tmp_path)
    assert "30 files processed" in told
    assert "untouched" in told
