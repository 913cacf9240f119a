"""Test modules' byte code, whose making costs more than running many of them.

Pytest rewrites each module's assertions, which takes three times as long as collecting what is rewritten
already. Workers that begin together in a fresh clone would each do all of it: each does a share first.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.assertion import rewrite


def rewrite_share(config: pytest.Config, number: int, count: int) -> None:
    """Rewrite each `count`-th module of those to be collected, from `number` on, unless that is done."""
    if sys.dont_write_bytecode:
        return
    for path in list(_modules(config))[number::count]:
        folder = rewrite.get_cache_dir(path)
        made = folder / (path.stem + rewrite.PYC_TAIL)
        if not made.exists() and rewrite.try_makedirs(folder):
            source_hash, code = rewrite._rewrite_test(path, config)
            rewrite._write_pyc(config.stash[rewrite.assertstate_key], code, source_hash, made)


def _modules(config: pytest.Config) -> Iterator[Path]:
    """Yield the test modules of the folders and files that were named."""
    for arg in config.args:
        named = Path(arg.partition("::")[0])
        if named.is_dir():
            yield from sorted(named.rglob("test_*.py"))
        elif named.is_file():
            yield named
