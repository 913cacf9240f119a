import importlib
import sys

import pytest
from tests.cli.support import Cli, Worker, write_shop


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with shop.py in it, as a user has one; modules of other tests are forgotten."""
    path, modules = list(sys.path), set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RESPOOL_APP", raising=False)
    monkeypatch.delenv("RESPOOL_URL", raising=False)
    monkeypatch.setenv("TZ", "UTC")
    write_shop(tmp_path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if not name.startswith(("respool", "click", "rich", "apsw")) and hasattr(
            sys.modules[name], "__file__"
        ):
            found = sys.modules[name].__file__ or ""
            if found.startswith(str(tmp_path)):
                del sys.modules[name]
    importlib.invalidate_caches()


@pytest.fixture
def cli(folder):
    return Cli()


@pytest.fixture
def app(folder, monkeypatch):
    """The app of shop.py, as another process has it."""
    monkeypatch.syspath_prepend(str(folder))
    found = importlib.import_module("shop").app
    yield found
    found.close()


@pytest.fixture
def worker(app):
    return Worker(app)
