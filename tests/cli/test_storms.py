"""A task that its breaker has stopped: shown by `tasks` and `lag`, and released by hand."""

from tests.cli.support import run, write_shop

SHOP = """
from pathlib import Path
from respool import App

app = App("shop", url=f"sqlite:///{Path(__file__).parent / 'shop.db'}")

@app.task(breaker="3/1m")
def fetch(n: int) -> int:
    if not Path("up").exists():
        raise OSError("nobody there")
    return n

@app.task
def add(x: int, y: int) -> int:
    return x + y
"""


def test_a_stopped_task_is_shown_and_released(tmp_path):
    write_shop(tmp_path, SHOP)
    burst = ("-A", "shop", "worker", "-P", "solo", "--burst")

    def said(*args, code=0):
        done = run(*args, cwd=tmp_path)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "stopped" not in said("-A", "shop", "tasks")
    assert "has no log yet" in said("-A", "shop", "tasks", "release", "fetch", code=2)
    for n in range(3):
        said("-A", "shop", "call", "fetch", str(n))
    assert "no task is stopped" in said("-A", "shop", "tasks", "release", "fetch", code=2)
    assert "is stopped" in said(*burst)
    said("-A", "shop", "call", "fetch", "7")
    said(*burst)
    assert "OSError: nobody there" in said("-A", "shop", "tasks")
    assert "fetch is stopped for OSError: nobody there; 1 call limited" in said("-A", "shop", "lag")
    assert "fetch" in said("-A", "shop", "tasks", "release", "fetsh", code=2)
    (tmp_path / "up").touch()
    assert "fetch runs again" in said("-A", "shop", "tasks", "release", "fetch")
    said(*burst)
    assert "stopped" not in said("-A", "shop", "lag")
    assert "3 dead" in said(*burst)
