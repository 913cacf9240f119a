"""Large arguments and results, through real workers: they arrive; what cannot be had is told or awaited."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.worker.support import SOURCES, Place, eventually, on_each_engine, on_every_engine

from respool import App, ConfigError, RecordTooLarge
from respool.app import AsyncResult
from respool.blobs import Store
from respool.errors import BlobLost, BlobsUnavailable, QueueFull
from respool.reference import is_reference, unpack
from respool.testing import work
from respool.worker import sweeping
from respool.worker.options import WorkerOptions
from respool.worker.services import services
from respool.worker.solo import Solo

BIG = 5_000_000
CODE = """
@app.task
def twice(data):
    note("start", "twice", str(len(data)))
    return data + data


@app.task(bind=True)
def calls(self, size):
    sent = [length.delay(b"a" * size), *length.delay_many([b"b" * size, b"c", b"d" * size])]
    if once("die"):
        wait_for("sent")
        die()
    return [each.id for each in sent]


@app.task
def length(data):
    note("start", "length", str(len(data)))
    return len(data)


@app.task
def picky(data, good=False):
    if not good:
        raise ValueError("not good")
    return len(data)


@app.task(max_deliveries=1)
def only_once(data):
    note("start", "only_once", str(len(data)))
    return data


@app.task(result_ttl="1d", offload_over="1MiB")
def middling(size):
    return b"m" * size


seen = app.stream("seen", key="who")


@seen.subscribe(group="audit", start="earliest")
def audit(event):
    note("start", "audit", f"{event['who']}-{len(event['text'])}")
"""


def module(place: Place, **settings: Any) -> Any:
    return place.module(CODE, blobs=(place.folder / "blobs").as_uri(), **settings)


def blob_of(place: Place, result: AsyncResult[Any]) -> Path:
    return place.folder / "blobs" / unpack(result.record().body).name


@on_each_engine
def test_large_arguments_and_results_arrive(place: Place) -> None:
    app = module(place)
    data = os.urandom(BIG)
    results = [app.twice.delay(data), app.only_once.delay(data)]
    assert all(is_reference(each.record().body) for each in results)
    assert results[0].record().meta.offloaded == BIG + 8  # what MessagePack needs besides
    place.burst()
    assert results[0].get(timeout=5) == data + data
    assert results[1].get(timeout=5) == data
    assert results[0].result == data + data
    assert place.runs() == {str(BIG): 2}
    place.check()
    stored = place.app.engine.outcomes(place.group().id, 0, 1 << 62)
    assert [is_reference(outcome.value) for outcome in stored] == [True, True]


@on_each_engine
def test_large_and_small_go_side_by_side_in_their_order(place: Place) -> None:
    app = module(place)
    sizes = [10, 100_000, 20, 20, 200_000, 300_000, 30]
    results = app.length.delay_many(b"x" * size for size in sizes)
    assert [is_reference(each.record().body) for each in results] == [size > 65536 for size in sizes]
    place.burst()
    assert results.get(timeout=5) == sizes


@on_every_engine
def test_large_calls_of_a_run_leave_with_it_and_a_rerun_repeats_none(place: Place) -> None:
    app = module(place, outbox_hold=0.0)
    place.touch("die")
    parent = app.calls.delay(200_000)
    worker = place.worker()
    eventually(lambda: sum(place.runs("calls").values()) or (app.length and place.counts().pending > 2))
    place.touch("sent")
    ids = parent.get(timeout=20)
    assert [place.app.AsyncResult(id).get(timeout=20) for id in ids] == [200_000, 200_000, 1, 200_000]
    assert worker.stop() == 0
    assert sum(place.runs("length").values()) == 4
    place.check()


@on_each_engine
def test_large_events_reach_subscriptions_and_readers(place: Place) -> None:
    app = module(place)
    events = [{"who": who, "text": who * size} for who, size in (("a", 10), ("b", 100_000), ("c", 300_000))]
    app.seen.publish(events[1])
    assert app.seen.publish_many([events[0], events[2]]) == 2
    assert sorted(app.seen.read(), key=lambda event: event.key)[1].value == events[1]
    assert sorted(event.value["who"] for event in app.seen.read()) == ["a", "b", "c"]
    place.burst()
    assert place.runs("audit") == {"a-10": 1, "b-100000": 1, "c-300000": 1}


def test_a_task_says_what_is_large(place: Place) -> None:
    app = module(place)
    results = [app.middling.delay(size) for size in (500_000, 2_000_000)]
    place.burst()
    assert [len(each.get(timeout=5)) for each in results] == [500_000, 2_000_000]
    stored = place.app.engine.outcomes(place.group().id, 0, 1 << 62)
    assert [is_reference(outcome.value) for outcome in stored] == [False, True]
    assert all(outcome.until is not None for outcome in stored)


@on_every_engine
def test_a_lost_payload_is_a_dead_letter_that_says_so(place: Place) -> None:
    app = module(place)
    lost, damaged, good = (app.length.delay(bytes([n]) * 100_000) for n in range(3))
    blob_of(place, lost).unlink()
    blob_of(place, damaged).write_bytes(b"x" * 100_008)
    place.burst()
    assert good.get(timeout=5) == 100_000
    for result, said in ((lost, "is gone"), (damaged, "is damaged")):
        assert result.state == "FAILURE"
        with pytest.raises(BlobLost, match=said):
            result.get(timeout=5)
    assert place.counts().parked == {"dead": 2}
    assert place.runs() == {"100000": 1}
    with pytest.raises(BlobLost):
        place.app.payloads.load(lost.record().body)


@on_each_engine
def test_large_dead_letters_are_edited_and_given_back(place: Place) -> None:
    app = module(place)
    results = [app.picky.delay(bytes([n]) * 100_000) for n in range(3)]
    place.burst()
    letters = place.app.dead_letters()
    assert letters.count() == 3
    assert letters.redrive(set={"kwargs.good": True}) == 3  # still large
    place.burst()
    assert [each.get(timeout=5) for each in results] == [100_000] * 3
    small = app.picky.delay(b"small")
    place.burst()
    assert letters.redrive(edit=lambda task, call: {"args": [b"l" * 300_000, True], "kwargs": {}}) == 1
    place.burst()  # large by now
    assert small.get(timeout=5) == 300_000
    place.check()


def test_a_lost_result_is_told(place: Place) -> None:
    app = module(place)
    result = app.twice.delay(b"x" * 40_000)
    place.burst()
    (path,) = [path for path in (place.folder / "blobs").rglob("*") if path.is_file()]
    path.unlink()
    assert result.state == "SUCCESS"
    with pytest.raises(BlobLost, match="is gone"):
        result.get(timeout=5)


@on_every_engine
def test_a_store_out_of_reach_is_waited_for(place: Place) -> None:
    """No dead letter, no retry of the task's own, and calls that need it not go on meanwhile."""
    app = module(place)
    large = app.length.delay(b"x" * 100_000)
    (place.folder / "blobs").rename(place.folder / "elsewhere")
    worker = place.worker()
    waiting = eventually(lambda: place.counts().parked.get("retry"), "the call is put off")
    assert waiting == 1
    assert app.length.delay(b"small").get(timeout=10) == 5
    assert large.state == "RETRY"
    (place.folder / "elsewhere").rename(place.folder / "blobs")
    assert large.get(timeout=20) == 100_000
    assert "calls with large arguments wait: there is no folder" in worker.log
    assert [attempt.how for attempt in large.history()][-2:] == ["waits", "done"]
    assert {attempt.retries for attempt in large.history()} == {0}
    place.check()


def test_a_result_that_cannot_be_stored_fails_or_is_stored_in_the_log(place: Place) -> None:
    app = module(place)
    fits, too_large = app.twice.delay(b"x" * 60_000), app.twice.delay(b"x" * 600_000 + b"y")
    blobs = place.folder / "blobs"
    kept = blob_of(place, too_large).read_bytes()
    worker = place.worker(before=NO_ROOM)
    assert fits.get(timeout=10) == b"x" * 120_000
    with pytest.raises(BlobsUnavailable, match=r"the result of 1,200,00\d bytes could not be stored"):
        too_large.get(timeout=10)
    assert worker.stop() == 0
    assert place.counts().parked == {"dead": 1}  # redriven, it is run again
    assert blob_of(place, too_large).read_bytes() == kept
    assert blobs.exists()


NO_ROOM = """
import os
os.environ["NO_ROOM"] = "1"
"""
CODE_NO_ROOM = """
if "NO_ROOM" in os.environ:
    from respool import blobs
    from respool.errors import BlobsUnavailable

    def refuse(self, name, body):
        raise BlobsUnavailable("the blob store has no room; nothing was sent")

    blobs.Store.put = refuse
"""
CODE = CODE_NO_ROOM + CODE


# What a caller hears


@pytest.fixture
def silent() -> Iterator[str]:
    """An endpoint that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("answers", [True, False])
def test_a_store_out_of_reach_is_a_refusal_in_bounded_time(
    tmp_path: Path, silent: str, answers: bool
) -> None:
    endpoint = "http://127.0.0.1:9" if answers else silent  # where nobody listens, one is told at once
    keys = "region=us-east-1&access_key_id=a&secret_access_key=b"
    app = App("shop", f"sqlite:///{tmp_path / 'q.db'}", blobs=f"s3://bucket/some?endpoint={endpoint}&{keys}",
              blob_timeout=2.0)  # fmt: skip
    task = app.task(name="f")(len)
    began = time.monotonic()
    with pytest.raises(
        BlobsUnavailable, match=r"s3://bucket/some cannot be used: .*nothing was sent"
    ) as raised:
        task.delay(b"x" * 100_000)
    assert time.monotonic() - began < 10
    assert "secret" not in str(raised.value)
    assert task.delay(b"x" * 1000).state == "PENDING"  # small ones need no store
    assert app.engine.bounds(app.stream_of("queue", "default"))[0][2] & 0xFF == 1
    app.close()


def test_without_obstore_large_ones_are_refused_and_middling_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("respool.blobs.installed", lambda: False)
    monkeypatch.setattr("respool.payloads.installed", lambda: False)
    with App("shop", f"sqlite:///{tmp_path / 'q.db'}") as app:
        task = app.task(name="f")(len)
        sent = task.delay(b"x" * 500_000)
        assert len(sent.record().body) > 500_000
        with pytest.raises(RecordTooLarge, match=r"allows 1,048,576.*pip install 'respool\[blobs\]'"):
            task.delay(b"x" * 2_000_000)
        with pytest.raises(RecordTooLarge, match="blob store"):
            task.delay_many([b"x", b"x" * 2_000_000])
    with pytest.raises(ConfigError, match=r"needs obstore: pip install 'respool\[blobs\]'"):
        App("shop", f"sqlite:///{tmp_path / 'q.db'}", blobs="s3://bucket")


def test_on_a_server_the_store_must_be_named() -> None:
    app = App("shop", "postgresql://nobody@localhost/nowhere")
    assert app.payloads.store is None
    with pytest.raises(RecordTooLarge, match="name one: blobs='s3://…' or RESPOOL_BLOBS"):
        app.task(name="f")(len).delay(b"x" * 2_000_000)


@pytest.mark.parametrize("url", ["ftp://host/folder", "folder", "file://folder/blobs", "/var/blobs"])
def test_urls_that_name_no_store(url: str) -> None:
    with pytest.raises(ConfigError, match="blobs"):
        App("shop", "sqlite:///:memory:", blobs=url)


def test_larger_than_max_blob_size(tmp_path: Path) -> None:
    with App("shop", f"sqlite:///{tmp_path / 'q.db'}", max_blob_size="1MiB") as app:
        with pytest.raises(RecordTooLarge, match="max_blob_size allows 1,048,576"):
            app.task(name="f")(len).delay(b"x" * 2_000_000)
        assert not (tmp_path / "q.db-blobs").exists()


def test_coroutines_send_large_ones_without_holding_up_their_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops: list[bool] = []
    put = Store.put

    def noted(self: Store, name: str, body: bytes) -> None:
        loops.append(threading.current_thread() is threading.main_thread())
        put(self, name, body)

    monkeypatch.setattr(Store, "put", noted)
    with App("shop", f"sqlite:///{tmp_path / 'q.db'}") as app:
        task, events = app.task(name="f")(len), app.stream("events")

        async def send() -> None:
            sent = [await task.adelay(b"x" * size) for size in (10, 100_000)]
            assert [is_reference(each.record().body) for each in sent] == [False, True]
            await events.apublish({"text": "y" * 100_000})

        asyncio.run(send())
        assert [event.value["text"][-3:] for event in events.read()] == ["yyy"]
    assert loops == [False, False]


def test_no_lock_is_held_while_the_store_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H1: whoever wants to write meanwhile can, whatever the store takes its time for."""
    asked: list[str] = []
    path = tmp_path / "q.db"
    monkeypatch.setattr(sweeping, "PATIENCE", -1000.0)

    def watch(name: str) -> None:
        real = getattr(Store, name)

        def watched(self: Store, *arguments: Any) -> Any:
            asked.append(name)
            other = apsw.Connection(str(path))
            other.execute("BEGIN IMMEDIATE")  # raises BusyError at once
            other.execute("ROLLBACK")
            other.close()
            return real(self, *arguments)

        monkeypatch.setattr(Store, name, watched)

    for name in ("put", "get", "remove"):
        watch(name)
    with App("shop", f"sqlite:///{path}") as app:
        task = app.task(name="f")(lambda data: data + data)
        results = [task.delay(b"%d" % n * 100_000) for n in range(2)]
        other = app.task(name="g", bind=True)(lambda self, size: [task.delay(b"c" * size).id])
        other.delay(100_000)
        work(app)
        assert [len(each.get(timeout=5)) for each in results] == [200_000] * 2
        app.payloads.blobs.offload(b"lone" * 30_000)
        store = app.payloads.store
        assert store is not None
        assert sweeping.sweep(app.engine, store, sweeping.Progress(), 4e9) == 1
    assert {name: asked.count(name) for name in asked} == {"put": 7, "get": 5, "remove": 1}


def test_many_large_calls_are_appended_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One commit for many, in the order that they were given in."""
    with App("shop", f"sqlite:///{tmp_path / 'q.db'}") as app:
        task = app.task(name="f")(len)
        engine, appends = app.engine, []

        def watch(name: str, count: Any) -> None:
            real = getattr(engine, name)

            def watched(*arguments: Any) -> Any:
                appends.append((name, count(*arguments)))
                return real(*arguments)

            monkeypatch.setattr(engine, name, watched)

        watch("append_row", lambda row: 1)
        watch("append_rows", lambda rows, *rest: len(rows))
        watch("append_run", lambda log, task, bodies, *rest: len(bodies))
        sizes = [100_000, 100_001, 5, 6, *range(100_002, 100_302)]
        results = task.delay_many(b"x" * size for size in sizes)
        rows = "append_rows"
        assert appends == [(rows, 2), ("append_run", 2), (rows, 256), (rows, 44)]
        work(app)
        assert results.get(timeout=5) == sizes


def test_a_full_queue_takes_no_more_large_calls(tmp_path: Path) -> None:
    """H16: those that were sent are seen by who looks how full it is."""
    with App("shop", f"sqlite:///{tmp_path / 'q.db'}") as app:
        app.queue("default", max_pending=2, when_full="raise")
        task = app.task(name="f")(len)
        with pytest.raises(QueueFull):
            task.delay_many([b"x" * 100_000] * 5)
        assert app.lag() == 2


def test_never_offloaded(tmp_path: Path) -> None:
    with App("shop", f"sqlite:///{tmp_path / 'q.db'}", offload_over=None) as app:
        task = app.task(name="f")(len)
        assert len(task.delay(b"x" * 1_000_000).record().body) > 1_000_000
        with pytest.raises(RecordTooLarge, match="max_record_size allows"):
            task.delay(b"x" * 2_000_000)


def test_in_memory_payloads_are_in_memory_too() -> None:
    with App("shop", "sqlite:///:memory:") as app:
        task = app.task(name="f")(lambda data: data)
        result = task.delay(b"x" * 3_000_000)
        Solo(app, services(app, None, None), WorkerOptions(app="shop", burst=True)).run()
        assert result.get(timeout=5) == b"x" * 3_000_000


def run_python(code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=folder, env={**os.environ, "PYTHONPATH": SOURCES}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_in_a_forked_process_it_is_refused_rather_than_hung(tmp_path: Path) -> None:
    """obstore's threads do not survive a fork: a call into it would never return."""
    done = run_python(
        """
        import os, signal
        from respool import App
        from respool.errors import BlobsUnavailable

        app = App("shop", "sqlite:///q.db")
        task = app.task(name="f")(len)
        task.delay(b"x" * 100_000)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            try:
                task.delay(b"y" * 100_000)
            except BlobsUnavailable as error:
                print(error, flush=True)
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "does not survive that. Start the process by spawn or forkserver" in done.stdout


MEASURE = """
import resource, sys
from respool import App
from respool.testing import work
from respool.worker import sweeping
from respool.worker.options import WorkerOptions
from respool.worker.services import services
from respool.worker.solo import Solo

app = App("shop", "sqlite:///q.db")
task = app.task(name="f")(lambda data: None)
size = 50_000_000
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
if sys.argv[1] == "send":
    data = b"x" * size
    app.task(name="g")(len).delay(b"y" * 100_000)
    before = peak()
    task.delay(data)
    print((peak() - before) / size)
else:
    app.tasks["f"].delay(b"z" * 100_000)
    app.task(name="g")(len)
    before = peak()
    Solo(app, services(app, None, None), WorkerOptions(app="shop", burst=True)).run()
    print((peak() - before) / size)
"""


def test_a_payload_is_in_memory_no_more_often_than_it_must(tmp_path: Path) -> None:
    """Sent: the value and its encoded form. Run: the body, and the value that is decoded from it."""
    sent = run_python(MEASURE, tmp_path, "send")
    assert sent.returncode == 0, sent.stderr
    assert float(sent.stdout.splitlines()[-1]) < 1.5  # besides the value itself
    ran = run_python(MEASURE, tmp_path, "run")
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout.splitlines()[-1]) < 2.6


def test_many_large_ones_need_no_more_memory_than_few(tmp_path: Path) -> None:
    """delay_many takes them one by one from whatever makes them."""
    done = run_python(
        """
        import resource
        from respool import App
        app = App("shop", "sqlite:///q.db")
        task = app.task(name="f")(len)
        def each(count):
            for n in range(count):
                yield bytes([n]) * 4_000_000
        task.delay_many(each(20))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        task.delay_many(each(60))
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 4_000_000)
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 8
