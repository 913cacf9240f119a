"""Workers on a server: it restarts or hangs, other hosts have workers too, its URL has a password."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.services.postgres import PostgresServer
from tests.worker.support import FINE_AND_SLOW, Place, eventually

from respool.engines.base import Registration
from respool.errors import AppendUnknown, ConfigError, EngineUnavailable, RespoolError
from respool.worker import host
from respool.worker.page import WorkerFile

on_postgres = pytest.mark.parametrize("place", ["postgres"], indirect=True)


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server of the test's own, to be stopped."""
    with PostgresServer(fsync=False) as made:
        made.create_database("calls")
        yield made


@pytest.fixture
def served(server: PostgresServer, tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, server.url("calls"))
    yield made
    made.close()


class Producer:
    """Sends call after call, and keeps what became of each."""

    def __init__(self, module: Any) -> None:
        self.sent: dict[int, Any] = {}
        self.refused: set[int] = set()
        self.unknown: set[int] = set()
        self.longest = 0.0
        self._module, self._stop = module, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        n = 1000
        while not self._stop.wait(0.005):
            n, before = n + 1, time.monotonic()
            try:
                self.sent[n] = self._module.fine.delay(n)
            except EngineUnavailable:
                self.refused.add(n)
            except AppendUnknown:
                self.unknown.add(n)
            self.longest = max(self.longest, time.monotonic() - before)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def more(self, calls: int = 20) -> None:
        """Wait until so many more have been sent."""
        before = len(self.sent)
        eventually(lambda: len(self.sent) >= before + calls)

    def verify(self, runs: dict[str, int]) -> None:
        """P1: what was acknowledged was run; what was refused was not sent."""
        assert {str(n) for n in self.sent} <= set(runs)
        assert not {str(n) for n in self.refused} & set(runs)
        assert set(runs) <= {str(n) for n in {*self.sent, *self.unknown}}


def _repeats(runs: dict[str, int]) -> int:
    return sum(runs.values()) - len(runs)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_server_that_restarts(server: PostgresServer, served: Place, mode: Any) -> None:
    """Nothing is lost, what runs goes on, and at most what could not be settled is run again (P3)."""
    module = served.module(FINE_AND_SLOW, beat=0.2, worker_ttl=20.0)  # longer than any restart
    slow = module.slow.delay(1)
    worker = served.worker(2)
    served.await_start("slow", "1")
    producer = Producer(module)
    away = []
    for _ in range(3):
        producer.more()
        since = time.monotonic()
        server.restart(mode)
        away.append((since, time.monotonic()))
    producer.more()
    producer.stop()
    served.touch("go-1")
    assert slow.get(timeout=20) == 1
    eventually(served.idle)
    producer.verify(served.runs("fine"))
    assert all(producer.sent[n].get(timeout=5) == n for n in producer.sent)
    assert served.runs("slow") == {"1": 1}
    if mode == "fast":
        assert _repeats(served.runs("fine")) <= 3 * 2
    else:  # as a power cut does: what was settled last, and not yet synced, is undone (S4)
        first = {mark.key: mark.at for mark in reversed(served.marks("start", "fine"))}
        again = [key for key, runs in served.runs("fine").items() if runs > 1]
        undone = [key for key in again if any(since - 2 < first[key] < until for since, until in away)]
        assert again == undone, "some are not of the last second"
    assert producer.longest < 11
    assert "declared dead" not in worker.log
    assert worker.stop() == 0
    served.check()


@pytest.mark.parametrize("pool", ["processes", "solo"])
def test_commits_that_hang_end_no_worker(server: PostgresServer, served: Place, pool: str) -> None:
    """A standby that is waited for is away: a beat that is given up is written nevertheless."""
    module = served.module(FINE_AND_SLOW, beat=0.2, worker_ttl=30.0)
    slow = module.slow.delay(1)
    worker = served.worker(1, pool=pool)
    served.await_start("slow", "1")
    server.configure({"synchronous_standby_names": "away"})
    server.address.execute("SELECT pg_reload_conf()")
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    eventually(lambda: server.address.execute(waits)[0][0] > 0, "a beat hangs")
    behind = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%.beat %%'"
    )
    eventually(lambda: server.address.execute(behind)[0][0] > 0, "the next waits for it")
    server.configure({"synchronous_standby_names": ""})
    server.address.execute("SELECT pg_reload_conf()")
    beaten = max(each.beat for each in served.registered())
    eventually(lambda: max(each.beat for each in served.registered()) > beaten + 2, worker.log)
    served.touch("go-1")
    assert slow.get(timeout=20) == 1
    assert worker.stop() == 0, worker.log
    assert served.runs("slow") == {"1": 1}
    served.check()


@pytest.mark.parametrize("pool", ["processes", "solo"])
@on_postgres
def test_a_beat_that_fails_for_whatever_reason_ends_nothing(place: Place, pool: str) -> None:
    """Only who was declared dead has to end: here somebody has renamed a table for a while."""
    module = place.module(FINE_AND_SLOW)
    slow = module.slow.delay(1)
    worker = place.worker(1, pool=pool)
    place.await_start("slow", "1")
    engine: Any = place.app.engine
    prefix = engine.options.schema
    engine._writer.append(lambda db: db.execute(f"ALTER TABLE {prefix}.beat RENAME TO away".encode()))
    worker.said("cannot beat")
    engine._writer.append(lambda db: db.execute(f"ALTER TABLE {prefix}.away RENAME TO beat".encode()))
    place.touch("go-1")
    assert slow.get(timeout=20) == 1
    assert module.fine.delay(2).get(timeout=20) == 2
    assert worker.stop() == 0, worker.log
    assert place.runs("slow") == {"1": 1}
    place.check()


@on_postgres
def test_an_open_transaction_that_has_sent_a_call_delays_no_other(place: Place) -> None:
    """Nor its own call, once it commits: workers that have nothing to do look of themselves only rarely."""
    module = place.module(FINE_AND_SLOW, poll_interval=host.RARELY)
    longest = 0.0
    with psycopg.connect(str(place.url).partition("?")[0]) as db:
        own = module.fine.apply_async((0,), connection=db)  # when nobody sleeps who could be rung for
        worker = place.worker(2)
        place.children(2)
        for n in (1, 2, 3):
            began = time.monotonic()
            assert module.fine.delay(n).get(timeout=30) == n
            longest = max(longest, time.monotonic() - began)
        began = time.monotonic()
        db.commit()
        assert own.get(timeout=30) == 0
        longest = max(longest, time.monotonic() - began)
    assert longest < host.RARELY / 2
    assert worker.stop() == 0, worker.log


def test_server_that_is_away_for_longer_than_the_time_to_live(server: PostgresServer, served: Place) -> None:
    """H4: nobody has beaten meanwhile, so nobody is dead; what was running is settled when it is back."""
    module = served.module(FINE_AND_SLOW, beat=0.1, worker_ttl=0.5, append_timeout=1.0)
    slow = module.slow.delay_many([1, 2])
    workers = [served.worker(1, name=name, before=_elsewhere(name)) for name in ("first", "second")]
    eventually(lambda: len(served.runs("slow")) == 2)
    server.stop("fast")
    for worker in workers:
        worker.said("cannot beat")
    with pytest.raises(AppendUnknown):  # it was connected
        module.fine.delay(100)
    with pytest.raises(EngineUnavailable, match="nothing was sent"):
        module.fine.delay(101)
    served.touch("go-1")
    stopped = time.monotonic()
    eventually(lambda: time.monotonic() - stopped > 1.5)
    server.start()
    for worker in workers:
        worker.said("is back")
    served.touch("go-2")
    assert slow.get(timeout=20) == [1, 2]
    assert module.fine.delay(2).get(timeout=20) == 2
    assert [worker.stop() for worker in workers] == [0, 0]
    assert served.runs("slow") == {"1": 1, "2": 1}
    assert not any("dead" in worker.log for worker in workers)
    served.check()


def test_server_that_hangs_for_longer_than_the_time_to_live(server: PostgresServer, served: Place) -> None:
    """P10, H4: its connections stay open and nothing answers. Waits end, nothing is stolen or repeated."""
    module = served.module(FINE_AND_SLOW, beat=0.1, worker_ttl=0.5, append_timeout=2.0)
    slow = module.slow.delay_many([1, 2])
    workers = [served.worker(1, name=name, before=_elsewhere(name)) for name in ("first", "second")]
    eventually(lambda: len(served.runs("slow")) == 2)
    producer = Producer(module)
    producer.more()
    server.pause()
    served.touch("go-1")
    for worker in workers:
        worker.said("cannot beat")
    eventually(lambda: producer.refused)
    server.resume()
    for worker in workers:
        worker.said("is back")
    producer.more()
    producer.stop()
    served.touch("go-2")
    assert slow.get(timeout=20) == [1, 2]
    eventually(served.idle)
    producer.verify(served.runs("fine"))
    assert producer.longest < 2 * 2.0 + 2.0
    assert [worker.stop() for worker in workers] == [0, 0]
    assert served.runs("slow") == {"1": 1, "2": 1}
    assert _repeats(served.runs("fine")) == 0
    assert not any("dead" in worker.log for worker in workers)
    served.check()


@pytest.mark.parametrize("leave", [PostgresServer.stop, PostgresServer.pause], ids=["stopped", "hangs"])
def test_worker_that_is_to_end_while_the_server_is_away(
    server: PostgresServer, served: Place, leave: Callable[[PostgresServer], None]
) -> None:
    """P10: the second signal ends it; what it held is settled by the next, who finds its lock free."""
    module = served.module(FINE_AND_SLOW, append_timeout=2.0)
    slow = module.slow.delay(1)
    worker = served.worker(1)
    served.await_start("slow", "1")
    leave(server)
    worker.said("cannot ")
    served.touch("go-1")
    worker.signal(signal.SIGTERM)
    worker.said("running tasks finish")
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert "Traceback" not in worker.log
    server.resume() if server.running else server.start()
    served.burst(1)
    assert slow.get(timeout=5) == 1
    served.check()


@on_postgres
def test_a_worker_with_nothing_to_do_leaves_no_transaction_open(place: Place) -> None:
    """Nor asks much: what a worker says and looks for each second are single statements."""
    module = place.module(FINE_AND_SLOW, beat=1.0, worker_ttl=10.0, poll_interval=1.0)
    worker = place.worker(2)
    assert module.fine.delay(1).get(timeout=20) == 1
    worker.said("serves")
    open_for_long = (
        "SELECT application_name, query FROM pg_stat_activity WHERE datname = current_database() "
        "AND state LIKE 'idle in transaction%' AND now() - state_change > interval '100 ms'"
    )
    with psycopg.connect(str(place.url).partition("?")[0], autocommit=True) as db:
        until = time.monotonic() + 4.0
        while time.monotonic() < until:
            assert db.execute(open_for_long).fetchall() == []
    assert worker.stop() == 0


# One host, and others


def _elsewhere(name: str) -> str:
    return f"import respool.worker.supervisor as s\ns.boot_id = lambda: 'boot of {name}'\n"


@on_postgres
def test_worker_killed_elsewhere_is_found_by_its_beats(place: Place) -> None:
    """H4: its lock says nothing to us. What it ran is run again, once it was silent for long enough."""
    module = place.module(FINE_AND_SLOW, beat=0.2, worker_ttl=1.0)
    result = module.slow.delay(1)
    first = place.worker(1, before=_elsewhere("another"))
    place.await_start("slow", "1")
    first.kill_group()
    killed = time.monotonic()
    second = place.worker(1)
    eventually(lambda: place.runs("slow")["1"] == 2)
    assert time.monotonic() - killed > 0.9
    assert "silent for too long" in second.log
    place.touch("go-1")
    assert result.get(timeout=20) == 1
    assert second.stop() == 0
    place.check()


@on_postgres
def test_beats_elsewhere_are_looked_at_seldom_and_never_misjudged(place: Place) -> None:
    place.module(FINE_AND_SLOW, beat=0.1, worker_ttl=0.5)
    worker = place.worker(1)
    place.children()
    engine = place.app.engine
    foreign = engine.register(Registration("t", "elsewhere", "other", "another boot", 1, 0.0, {}))
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        assert engine.beat(foreign, False, {}, synced=False) is not None, worker.log
        worker_beats = max(w.beat for w in place.registered() if w.id != foreign)
        eventually(lambda: max(w.beat for w in place.registered() if w.id != foreign) > worker_beats)  # noqa: B023
    worker.said("silent for too long")


def test_process_ids_of_another_container_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from respool.engines.base import Worker

    def worker(**info: Any) -> Worker:
        return Worker(1, "t", "w", "h", host.boot_id(), 2**22 + 1, 0, 0.0, 0.0, False, info)

    assert host.is_gone(worker())
    assert host.is_gone(worker(pids=host.pid_space()))
    assert not host.is_gone(worker(pids="pid:[1]"))


# What others may see


@on_postgres
def test_password_is_shown_nowhere(place: Place) -> None:
    """Not in command lines, logs, the register or the shared file; nor where a child fails."""
    assert place.url is not None
    password = urllib.parse.urlsplit(place.url).password
    assert password
    place.module(FINE_AND_SLOW)
    worker = place.worker(2, url=place.url)
    worker.said("serves")
    children = place.children(2)  # those that have started: a fork has its parent's arguments for a moment
    for pid in children:
        assert password not in Path(f"/proc/{pid}/cmdline").read_text()
    os.kill(children[0], signal.SIGKILL)
    worker.said("SIGKILL")
    (folder,) = place.folder.glob("respool-*")
    (file,) = folder.iterdir()
    assert password.encode() not in file.read_bytes()
    assert worker.stop() == 0
    assert password not in worker.log
    assert "postgresql://respool@" in worker.log


@on_postgres
def test_wrong_password_is_an_error_that_does_not_show_it(place: Place) -> None:
    assert place.url is not None
    url = place.url.replace(f":{urllib.parse.urlsplit(place.url).password}@", ":s3cr3t@")
    place.module(FINE_AND_SLOW)
    worker = place.worker(1, url=url)
    assert worker.wait() == 2  # asked for wrongly, as all that is set wrongly is
    assert "password authentication failed" in worker.log
    assert "s3cr3t" not in worker.log
    assert "Traceback" not in worker.log


@on_postgres
def test_folder_of_workers_is_this_users_alone_and_goes_with_the_last(place: Place) -> None:
    module = place.module(FINE_AND_SLOW)
    first, second = place.worker(1), place.worker(1)
    eventually(lambda: len(place.registered()) == 2)
    (folder,) = place.folder.glob("respool-*")
    eventually(lambda: len(list(folder.iterdir())) == 2)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert first.stop() == 0
    assert module.fine.delay(1).get(timeout=20) == 1
    assert second.stop() == 0
    assert not folder.exists()


def test_folder_that_somebody_else_made_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "respool-0-x"
    for make in (lambda: folder.mkdir(0o755), lambda: folder.symlink_to(tmp_path), folder.touch):
        make()
        with pytest.raises(ConfigError, match="respool-0-x"):
            WorkerFile(folder / "worker-1", 1, create=True, private=True)
        folder.rmdir() if folder.is_dir() and not folder.is_symlink() else folder.unlink()


def test_folder_that_goes_while_another_worker_comes(tmp_path: Path) -> None:
    """The last to end removes it between the other's look and its file."""
    folder, stop, problems = tmp_path / "respool-0-x", threading.Event(), []

    def come_and_go() -> None:
        while not stop.is_set():
            try:
                WorkerFile(folder / "worker-1", 1, create=True, private=True).close(remove=True)
            except (OSError, RespoolError) as error:
                problems.append(error)

    other = threading.Thread(target=come_and_go)
    other.start()
    for _ in range(200):
        WorkerFile(folder / "worker-2", 1, create=True, private=True).close(remove=True)
    stop.set()
    other.join()
    assert not problems
    assert not folder.exists()


# Nothing to do


def test_idle_workers_ask_for_little_and_hold_nothing_open(server: PostgresServer, served: Place) -> None:
    """Two statements a second for a worker with two children: beats, and few looks at anything else."""
    module = served.module(FINE_AND_SLOW, beat=1.0, worker_ttl=10.0, poll_interval=1.0)
    server.configure({"log_statement": "all"})
    server.restart()
    worker = served.worker(2)
    served.children(2)
    assert module.fine.delay(1).get(timeout=20) == 1
    module.app.close()
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > 3)  # the last of what follows work
    start = server.log.stat().st_size
    eventually(lambda: time.monotonic() - began > 13, timeout=20)
    lines = server.log.read_bytes()[start:].decode("utf-8", "replace").splitlines()
    asked = [line for line in lines if " execute " in line or " statement: " in line]
    assert 8 <= len(asked) <= 30, "\n".join(asked)
    states = server.address.execute("SELECT state FROM pg_stat_activity WHERE datname = 'calls'")
    assert {state for (state,) in states} == {"idle"}
    assert worker.stop() == 0
