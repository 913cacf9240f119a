"""The demo's app, first version: counts the words of a file, and takes UTF-8 for granted."""

from __future__ import annotations

import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from respool import App

from .record import note

app = App("demo")


@app.task
def digest(path: str) -> dict[str, Any]:
    """Read a text file; count its lines and words, find the commonest word, see how far it compresses."""
    text = Path(path).read_text("utf-8")
    words = Counter(text.split())
    size = len(zlib.compress(text.encode(), 9))
    note("v1", path)
    return {"lines": text.count("\n"), "words": words.total(), "top": _top(words), "packed": size}


def _top(words: Counter[str]) -> str:
    return max(words, key=lambda word: (words[word], word), default="")
