"""The demo's app, second version: knows what a word is, and reads files that are not UTF-8 as well."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from respool import App

from .record import note

app = App("demo")
_WORD = re.compile(r"[^\W\d_]\w*")


@app.task
def digest(path: str) -> dict[str, Any]:
    """Read a text file; count its lines and identifiers, find the commonest, see how far it compresses."""
    raw = Path(path).read_bytes()
    text = raw.decode("utf-8", "replace")
    words = Counter(word.lower() for word in _WORD.findall(text))
    note("v2", path)
    top = max(words, key=lambda word: (words[word], word), default="")
    return {
        "lines": text.count("\n"),
        "words": words.total(),
        "top": top,
        "packed": len(zlib.compress(raw, 9)),
    }
