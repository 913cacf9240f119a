"""How long `import respool` and `respool --help` take, from the start of Python to its end."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.cases.common import Sizes
from bench.peers.common import PeerError


def startup(folder: Path, sizes: Sizes) -> dict[str, float]:
    """Wall-clock medians, nothing taken off; bare Python is for comparison."""
    script = shutil.which("respool", path=str(Path(sys.executable).parent))
    commands = {
        "bare_ms": [sys.executable, "-c", "pass"],
        "import_ms": [sys.executable, "-c", "import respool"],
        "help_ms": [script, "--help"] if script else [sys.executable, "-m", "respool", "--help"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for i in range(sizes.starts + 1):
        for name, command in commands.items():
            took = _timed(command, folder)
            if i:  # the first one fills caches
                times[name].append(took)
    return {name: statistics.median(each) for name, each in times.items()}


def _timed(command: Sequence[str], folder: Path) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    took = (time.perf_counter() - start) * 1e3
    if done.returncode != 0:
        raise PeerError(f"{' '.join(command)}: ended with code {done.returncode}\n{done.stderr[-2000:]}")
    return took
