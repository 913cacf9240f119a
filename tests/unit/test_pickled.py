"""Apps, tasks and handles in other processes: by pickle, as a pool of processes sends them."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from respool import App

SHOP = """
from respool import App

app = App("shop", url="sqlite:///{folder}/shop.db")

@app.task
def count(page: str) -> int:
    return len(page.split())

def plain(n: int) -> int:
    return n

class Twice:
    def __call__(self, n: int) -> int:
        return 2 * n

twice = app.task(name="twice")(Twice())

renamed = app.task(name="other")(plain)

def state(result):
    return result.state
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "pickled_shop.py").write_text(SHOP.format(folder=tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    import pickled_shop  # type: ignore[import-not-found]

    yield pickled_shop
    pickled_shop.app.close()
    del sys.modules["pickled_shop"]


def test_they_come_back_as_they_were(shop: Any) -> None:
    for each in (shop.app, shop.count, shop.renamed, shop.twice):
        assert pickle.loads(pickle.dumps(each)) is each
    sent, many = shop.count.delay("a b"), shop.count.delay_many(["a", "b"])
    again, all_again = pickle.loads(pickle.dumps(sent)), pickle.loads(pickle.dumps(many))
    assert (again, again.state) == (sent, "PENDING")
    assert list(all_again) == list(many)


def test_a_pool_of_processes_runs_them_and_asks_for_results(shop: Any) -> None:
    sent = shop.count.delay("a b")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(shop.count, ["a b", "c"])) == [2, 1]
        assert list(pool.map(shop.renamed, [7])) == [7]
        assert pool.submit(shop.state, sent).result() == "PENDING"


def test_what_is_in_no_module_says_what_to_send_instead(tmp_path: Path) -> None:
    with App("local", url="sqlite:///:memory:") as app:

        @app.task
        def count(page: str) -> int:
            return 1

        for each in (app, count, count.delay("a")):
            with pytest.raises(
                pickle.PicklingError, match=r"id instead, and take app.AsyncResult\(id\) there"
            ):
                pickle.dumps(each)


def test_an_app_that_the_program_imported_is_pickled_by_its_own_module(
    shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = ModuleType("__main__")
    main.app = shop.app  # type: ignore[attr-defined]
    monkeypatch.setattr(
        sys, "modules", {"__main__": main, **{k: v for k, v in sys.modules.items() if k != "__main__"}}
    )
    assert shop.app.__reduce__()[1] == ("pickled_shop", "app")
