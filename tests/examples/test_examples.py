"""Each example runs, on a log of its own, and says what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SAYS = {
    "embeddings_with_a_malformed_item": (
        "499 of 500 texts are embedded; item 387: ValueError('an empty text cannot be embedded')",
        "the first time with 500 texts",
        "1 dead letter",
        "now embedded: [15.0, 0.0]; this time the model ran with [1] text",
    ),
}


def run(name: str, folder: Path, url: str | None = None) -> str:
    """Run an example in a folder; return what it printed."""
    environ = {**os.environ, "PYTHONPATH": str(EXAMPLES)}
    environ["RESPOOL_URL"] = url or f"sqlite:///{folder / 'example.db'}"
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        cwd=folder, env=environ, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_example(name: str, tmp_path: Path) -> None:
    said = run(name, tmp_path)
    for text in SAYS[name]:
        assert text in said, said
