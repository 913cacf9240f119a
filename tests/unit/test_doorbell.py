"""The doorbell: who is woken by which ring, in real processes, and what happens when things break."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from respool.engines.sqlite import bell_page, doorbell
from respool.engines.sqlite.bell_page import ALL, Kind, mask_of
from respool.engines.sqlite.doorbell import MAX_SLEEP, Doorbell

PATIENCE = 30.0  # seconds until a test gives up; none of them waits this long when all is well

# A process with one sleeper. It does what the lines on its input say and answers each with a line.
REMOTE = """
import os, signal, sys
from pathlib import Path
from respool.engines.sqlite.bell_page import Kind
from respool.engines.sqlite.doorbell import Doorbell

def forked(bell, sleeper):
    read_fd, write_fd = os.pipe()
    if not (pid := os.fork()):
        os.write(write_fd, b"x")  # by now the handlers for a fork have run
        while True:
            signal.pause()  # until the test kills us
    os.read(read_fd, 1)
    return pid

print("up", flush=True)
for line in sys.stdin:
    command, *words = line.split()
    if command == "open":
        bell = Doorbell(Path(words[0]))
        answer = bell.degraded or "ok"
    elif command == "claim":
        sleeper = bell.sleeper(Kind[words[0]], int(words[1]), int(words[2]))
        answer = sleeper.slot
    elif command == "prepare":
        answer = sleeper.prepare()
    elif command == "sleep":
        answer = sleeper.sleep(float(words[0]))
    elif command == "ring":
        answer = bell.ring_workers(int(words[0]))
    elif command == "fork":
        answer = forked(bell, sleeper)
    elif command == "close":
        answer = bell.close()
    print(answer, flush=True)
"""


class Remote:
    """A process that sleeps on a bell."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", REMOTE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # a second line hidden in a buffer would not be seen by select
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def output(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def answer(self) -> str:
        readable, _, _ = select.select([self.output()], [], [], PATIENCE)
        assert readable, "no answer"
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def ask(self, line: str) -> str:
        self.send(line)
        return self.answer()

    def fall_asleep(self) -> None:
        """From its flag on it is asleep for ringers; when exactly it begins to poll makes no difference."""
        assert self.ask("prepare") == "None"
        self.send(f"sleep {PATIENCE}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "queue.db-run"


@pytest.fixture
def bell(folder: Path) -> Iterator[Doorbell]:
    with Doorbell(folder) as opened:
        assert opened.degraded == ""
        yield opened


@pytest.fixture
def remote(folder: Path) -> Iterator[Callable[..., Remote]]:
    """Start a process with a sleeper in the next free slot."""
    started: list[Remote] = []

    def start(kind: str = "WORKER", streams: int = ALL, service: int = 0, claim: bool = True) -> Remote:
        one = Remote()
        started.append(one)
        assert one.answer() == "up"
        if claim:
            assert one.ask(f"open {folder}") == "ok"
            assert one.ask(f"claim {kind} {streams} {service}").isdigit()
        return one

    yield start
    for each in started:
        each.close()


def ready(remotes: list[Remote]) -> list[Remote]:
    """Wait until at least one has answered; return those that have."""
    outputs = {each.output(): each for each in remotes}
    readable, _, _ = select.select(list(outputs), [], [], PATIENCE)
    return [outputs[each] for each in readable]


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


# One ring, one worker of each service


def test_a_ring_wakes_a_sleeping_process(bell: Doorbell, remote: Callable[..., Remote]) -> None:
    worker = remote()
    worker.fall_asleep()
    assert bell.ring_workers(1) == 1
    assert worker.answer() == "True"
    assert bell.ring_workers(1) == 0


def test_processes_ring_each_other(bell: Doorbell, remote: Callable[..., Remote]) -> None:
    other = remote(streams=1)
    sleeper = bell.sleeper(Kind.WORKER, streams=2)
    sleeper.prepare()
    assert other.ask("ring 2") == "1"
    assert sleeper.sleep(PATIENCE)


def test_each_ring_wakes_exactly_one_of_a_service(bell: Doorbell, remote: Callable[..., Remote]) -> None:
    workers = [remote(service=7) for _ in range(4)]
    for each in workers:
        each.fall_asleep()
    asleep = list(workers)
    while asleep:
        assert bell.asleep(Kind.WORKER) == len(asleep)
        assert bell.ring_workers(ALL) == 1
        (woken,) = ready(asleep)
        assert woken.answer() == "True"
        asleep.remove(woken)
    assert bell.ring_workers(ALL) == 0


def test_a_ring_wakes_one_of_each_service_that_matches(bell: Doorbell, remote: Callable[..., Remote]) -> None:
    one, other, elsewhere = mask_of([1]), mask_of([1, 2]), mask_of([3])
    first = [remote(streams=one, service=1), remote(streams=one, service=1)]
    second = remote(streams=other, service=2)
    third = remote(streams=elsewhere, service=3)
    for each in (*first, second, third):
        each.fall_asleep()
    assert bell.ring_workers(mask_of([1])) == 2
    assert second.answer() == "True"
    (woken,) = ready(first)
    assert woken.answer() == "True"
    assert bell.asleep(Kind.WORKER, one) == 1
    assert bell.asleep(Kind.WORKER, elsewhere) == 1
    assert bell.ring_workers(mask_of([3])) == 1
    assert third.answer() == "True"


def test_everyone(bell: Doorbell, remote: Callable[..., Remote]) -> None:
    workers = [remote(streams=1), remote(streams=1), remote(streams=1, service=2)]
    for each in workers:
        each.fall_asleep()
    apart = bell.sleeper(Kind.WORKER, streams=2)
    apart.prepare()
    assert bell.ring_workers(1, everyone=True) == 3
    assert [each.answer() for each in workers] == ["True"] * 3
    assert bell.asleep(Kind.WORKER) == 1


def test_mask_of() -> None:
    assert mask_of([]) == 0
    assert mask_of([0, 3]) == 0b1001
    assert mask_of([64, 67]) == mask_of([0, 3])
    assert mask_of(range(64)) == ALL


def test_a_changed_mask(bell: Doorbell) -> None:
    sleeper = bell.sleeper(Kind.WORKER, streams=1, service=-1)
    sleeper.prepare()
    assert bell.ring_workers(2) == 0
    sleeper.set_mask(2)
    assert bell.ring_workers(1) == 0
    assert bell.ring_workers(2) == 1
    sleeper.set_mask(-1)
    sleeper.prepare()
    assert bell.ring_workers(1 << 63) == 1


# Waiters


def test_every_waiter_concerned_is_woken(bell: Doorbell, remote: Callable[..., Remote]) -> None:
    assert not bell.waiters_present()
    waiters = [remote("WAITER", streams=0b01), remote("WAITER", streams=0b11), remote("WAITER", streams=0b10)]
    for each in waiters:
        each.fall_asleep()
    assert bell.waiters_present()
    assert bell.waiters_present(0b01)
    assert not bell.waiters_present(0b100)
    assert bell.ring_waiters(0b100) == 0
    assert bell.ring_waiters(0b01) == 2
    assert [each.answer() for each in waiters[:2]] == ["True", "True"]
    assert not bell.waiters_present(0b01)
    assert bell.waiters_present(0b10)
    assert bell.ring_waiters(0b11) == 1
    assert waiters[2].answer() == "True"
    assert not bell.waiters_present()


def test_workers_and_waiters_do_not_hear_each_others_rings(bell: Doorbell) -> None:
    worker, waiter = bell.sleeper(Kind.WORKER), bell.sleeper(Kind.WAITER)
    worker.prepare()
    waiter.prepare()
    assert bell.ring_waiters(ALL) == 1
    assert not worker.sleep(0)
    assert waiter.sleep(PATIENCE)
    worker.prepare()
    waiter.prepare()
    assert bell.ring_workers(ALL, everyone=True) == 1
    assert not waiter.sleep(0)
    assert worker.sleep(PATIENCE)


# Set the flag, check again, sleep


def test_a_ring_between_prepare_and_sleep_is_not_lost(bell: Doorbell) -> None:
    sleeper = bell.sleeper(Kind.WORKER)
    sleeper.prepare()
    assert bell.ring_workers(ALL) == 1
    assert sleeper.sleep(PATIENCE)
    assert not sleeper.sleep(0)


def test_nobody_is_rung_who_is_not_asleep(bell: Doorbell) -> None:
    sleeper = bell.sleeper(Kind.WORKER)
    assert bell.ring_workers(ALL) == 0
    sleeper.prepare()
    sleeper.cancel()
    assert bell.ring_workers(ALL) == 0
    sleeper.prepare()
    assert not sleeper.sleep(0)
    assert bell.ring_workers(ALL) == 0


def test_a_ring_from_an_earlier_sleep_does_not_end_the_next(bell: Doorbell) -> None:
    sleeper = bell.sleeper(Kind.WORKER)
    sleeper.prepare()
    bell.ring_workers(ALL)
    sleeper.cancel()
    sleeper.prepare()
    assert not sleeper.sleep(0)


def test_the_flag_is_cleared_before_the_byte_is_written(
    bell: Doorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a sleeper that empties its FIFO in between is left with a cleared flag: deaf to later rings."""
    sleeper = bell.sleeper(Kind.WORKER)
    sleeper.prepare()
    write = os.write

    def late(fd: int, data: bytes) -> int:
        sleeper.sleep(0)  # it woke by itself, and goes to sleep again before our byte arrives
        sleeper.prepare()
        return write(fd, data)

    monkeypatch.setattr(os, "write", late)
    assert bell.ring_workers(ALL) == 1
    monkeypatch.undo()
    assert bell.asleep(Kind.WORKER) == 1
    assert sleeper.sleep(PATIENCE)


def test_the_fifo_is_emptied_before_the_flag_is_set(bell: Doorbell, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = bell.sleeper(Kind.WORKER)
    read = os.read
    rung: list[int] = []

    def late(fd: int, size: int) -> bytes:
        rung.append(bell.ring_workers(ALL))
        return read(fd, size)

    monkeypatch.setattr(os, "read", late)
    sleeper.prepare()
    monkeypatch.undo()
    assert rung == [0]
    assert bell.ring_workers(ALL) == 1


def test_a_ring_at_the_very_end_of_the_timeout_counts(bell: Doorbell) -> None:
    sleeper = bell.sleeper(Kind.WORKER)
    poll = sleeper._poll

    class Late:
        def poll(self, milliseconds: int) -> list[tuple[int, int]]:
            events = poll.poll(0)
            bell.ring_workers(ALL)
            return events

    sleeper._poll = Late()  # type: ignore[assignment]
    sleeper.prepare()
    assert sleeper.sleep(0)


@pytest.mark.parametrize(
    ("timeout", "milliseconds"),
    [
        (0.0, 0),
        (-5.0, 0),
        (float("nan"), 0),
        (0.00001, 1),
        (1.5, 1500),
        (float("inf"), int(MAX_SLEEP * 1000)),
        (1e300, int(MAX_SLEEP * 1000)),
    ],
)
def test_timeouts_are_bounded(bell: Doorbell, timeout: float, milliseconds: int) -> None:
    asked: list[int] = []

    class Poll:
        def poll(self, milliseconds: int) -> list[tuple[int, int]]:
            asked.append(milliseconds)
            return []

    sleeper = bell.sleeper(Kind.WORKER)
    sleeper._poll = Poll()  # type: ignore[assignment]
    assert not sleeper.sleep(timeout)
    assert asked == [milliseconds]


def test_a_signal_does_not_end_the_sleep(bell: Doorbell) -> None:
    sleeper = bell.sleeper(Kind.WORKER)
    alarms: list[int] = []

    def alarm(*_: object) -> None:
        alarms.append(bell.asleep(Kind.WORKER))
        if len(alarms) == 3:
            bell.ring_workers(ALL)

    before = signal.signal(signal.SIGALRM, alarm)
    try:
        sleeper.prepare()
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        assert sleeper.sleep(PATIENCE)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert alarms[:3] == [1, 1, 1]


def test_an_interrupted_sleep_leaves_no_flag(bell: Doorbell) -> None:
    class Interrupted:
        def poll(self, milliseconds: int) -> list[tuple[int, int]]:
            raise KeyboardInterrupt

    sleeper = bell.sleeper(Kind.WORKER)
    sleeper._poll = Interrupted()  # type: ignore[assignment]
    sleeper.prepare()
    with pytest.raises(KeyboardInterrupt):
        sleeper.sleep(PATIENCE)
    assert bell.asleep(Kind.WORKER) == 0


def test_wake_fds_end_the_sleep(bell: Doorbell) -> None:
    read_fd, write_fd = os.pipe()
    sleeper = bell.sleeper(Kind.WORKER, wake_fds=(read_fd,))
    sleeper.prepare()
    os.write(write_fd, b"x")
    assert not sleeper.sleep(PATIENCE)
    assert bell.asleep(Kind.WORKER) == 0
    sleeper.prepare()
    bell.ring_workers(ALL)
    assert sleeper.sleep(PATIENCE), "both: it was rung"
    os.read(read_fd, 1)
    os.close(write_fd)  # the end of a pipe counts too: it is how a child sees its supervisor die
    assert not sleeper.sleep(PATIENCE)
    os.close(read_fd)
    with pytest.raises(OSError, match=f"Errno {errno.EBADF}.*descriptor {read_fd} of wake_fds is closed"):
        sleeper.sleep(PATIENCE)


def test_asyncio(bell: Doorbell) -> None:
    async def wait() -> bool:
        loop = asyncio.get_running_loop()
        rung: asyncio.Future[bool] = loop.create_future()
        sleeper = bell.sleeper(Kind.WAITER)
        loop.add_reader(sleeper.fileno(), lambda: rung.set_result(sleeper.sleep(0)))
        sleeper.prepare()
        thread = threading.Thread(target=bell.ring_waiters, args=(ALL,))
        thread.start()
        try:
            return await asyncio.wait_for(rung, PATIENCE)
        finally:
            thread.join()
            loop.remove_reader(sleeper.fileno())
            sleeper.close()

    assert asyncio.run(wait())


# Death and reuse


def test_a_killed_sleeper_does_not_swallow_the_ring_of_a_live_one(
    bell: Doorbell, remote: Callable[..., Remote]
) -> None:
    dead, live = remote(), remote()
    dead.fall_asleep()
    live.fall_asleep()
    dead.kill()
    assert bell.asleep(Kind.WORKER) == 2, "the dead one's flag is still set"
    assert bell.ring_workers(ALL) == 1
    assert live.answer() == "True"
    assert bell.asleep(Kind.WORKER) == 0, "and cleared by the first ring"


def test_a_fork_of_a_killed_sleeper_does_not_keep_it_alive(
    bell: Doorbell, remote: Callable[..., Remote]
) -> None:
    dead, live = remote(), remote()
    forked = int(dead.ask("fork"))
    try:
        dead.fall_asleep()
        live.fall_asleep()
        dead.kill()
        assert bell.ring_workers(ALL) == 1
        assert live.answer() == "True"
        assert bell.sleeper(Kind.WORKER).slot == 0, "the slot is free as well"
    finally:
        os.kill(forked, signal.SIGKILL)


def test_the_slot_of_a_killed_process_is_taken_over(bell: Doorbell, remote: Callable[..., Remote]) -> None:
    dead = remote()  # slot 0
    live = remote()  # slot 1
    dead.fall_asleep()
    dead.kill()
    sleeper = bell.sleeper(Kind.WAITER, streams=4, service=9)
    assert sleeper.slot == 0
    assert bell.asleep(Kind.WORKER) == 0, "the flag of the one before is gone"
    assert bell.sleeper(Kind.WORKER).slot == 2, "that of a live process is not taken"
    sleeper.prepare()
    assert bell.ring_workers(ALL) == 0
    assert bell.ring_waiters(4) == 1
    assert sleeper.sleep(PATIENCE)
    live.fall_asleep()
    assert bell.ring_workers(ALL) == 1
    assert live.answer() == "True"


def test_slots_are_given_back(bell: Doorbell, folder: Path) -> None:
    first, second = bell.sleeper(Kind.WORKER), bell.sleeper(Kind.WORKER)
    assert (first.slot, second.slot) == (0, 1)
    first.prepare()
    first.close()
    first.close()
    assert bell.asleep(Kind.WORKER) == 0
    with Doorbell(folder) as other:
        again = other.sleeper(Kind.WORKER)
        assert again.slot == 0
        again.prepare()
        assert bell.ring_workers(ALL) == 1, "a ringer keeps nothing of the slot's last owner"
        assert again.sleep(PATIENCE)
    assert bell.sleeper(Kind.WORKER).slot == 0
    with pytest.raises(RuntimeError, match="closed"):
        first.prepare()


def test_no_descriptors_are_left(folder: Path) -> None:
    before = open_descriptors()
    for _ in range(3):
        with Doorbell(folder) as bell:
            bell.sleeper(Kind.WORKER)
            with bell.sleeper(Kind.WAITER) as waiter:
                waiter.prepare()
    assert open_descriptors() == before


def test_a_ring_not_taken_goes_to_the_next_of_the_service(bell: Doorbell) -> None:
    leaving, stranger, staying = (bell.sleeper(Kind.WORKER, service=each) for each in (1, 2, 1))
    for each in (leaving, stranger, staying):
        each.prepare()
    assert bell._ring(Kind.WORKER, ALL, everyone=False, only=1) == 1
    leaving.close()
    assert staying.sleep(PATIENCE)
    assert not stranger.sleep(0)
    staying.prepare()
    bell.sleeper(Kind.WORKER, service=1).close()
    assert not staying.sleep(0), "nothing to hand on"


def test_many_processes_create_at_once(folder: Path, remote: Callable[..., Remote]) -> None:
    crowd = [remote(claim=False) for _ in range(6)]
    for each in crowd:  # sent to all before the first answer is read
        each.send(f"open {folder}")
        each.send(f"claim WORKER {ALL} 0")
    assert {each.answer() for each in crowd} == {"ok"}
    assert sorted(int(each.answer()) for each in crowd) == list(range(6))
    for each in crowd:
        each.fall_asleep()
    with Doorbell(folder) as bell:
        assert bell.ring_workers(ALL, everyone=True) == 6
    assert [each.answer() for each in crowd] == ["True"] * 6
    assert sorted(path.name for path in folder.glob(".*")) == [], "no half-made page is left"


def test_beyond_the_last_slot_sleepers_only_poll(bell: Doorbell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bell_page, "FIFOS", bell_page.FIFOS[:2])
    assert [bell.sleeper(Kind.WORKER).slot for _ in range(3)] == [0, 1, None]


# The fast path


def test_a_ring_with_nobody_asleep_only_looks_at_memory(
    bell: Doorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, waiter = bell.sleeper(Kind.WORKER), bell.sleeper(Kind.WAITER)

    def never(*_: object, **__: object) -> int:
        raise AssertionError("not on the fast path")

    monkeypatch.setattr(doorbell, "flagged", never)
    waiter.prepare()
    assert bell.ring_workers(ALL) == 0
    assert bell.ring_workers(ALL, everyone=True) == 0
    waiter.cancel()
    worker.prepare()
    assert bell.ring_waiters(ALL) == 0
    assert not bell.waiters_present()
    with pytest.raises(AssertionError):
        bell.ring_workers(ALL)


@pytest.mark.parametrize("kind", Kind)
def test_the_last_slot_is_seen(bell: Doorbell, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """The areas of the page meet here: a bound off by one shows in the last slot or the first."""
    last = bell_page.SLOTS - 1
    with monkeypatch.context() as patched:
        # All but the last are taken.
        flock = fcntl.flock
        tried: list[int] = []

        def busy(fd: int, operation: int) -> None:
            tried.append(fd)
            if len(tried) <= last:
                raise BlockingIOError
            flock(fd, operation)

        patched.setattr(fcntl, "flock", busy)
        claimed = bell._claim((1 << 63, ALL))
    assert claimed is not None
    assert claimed[0] == last
    first = bell.sleeper(kind, streams=1)
    flag = kind.value + last
    bell._page[flag] = 1
    ring, other = bell.ring_workers, bell.ring_waiters
    if kind is Kind.WAITER:
        ring, other = other, ring  # type: ignore[assignment]
    assert other(ALL) == 0
    assert ring(1 << 63) == 1
    assert os.read(claimed[1][0], 10) == b"!"
    first.prepare()
    assert ring(1) == 1
    assert first.sleep(PATIENCE)
    for fd in claimed[1]:
        os.close(fd)


# What breaks degrades


def test_a_full_fifo_is_not_rung(bell: Doorbell, folder: Path) -> None:
    full, other = bell.sleeper(Kind.WORKER), bell.sleeper(Kind.WORKER)
    full.prepare()
    other.prepare()
    fd = os.open(folder / f"bell-{full.slot}", os.O_WRONLY | os.O_NONBLOCK)
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while True:
                os.write(fd, b"x" * size)
    os.close(fd)
    assert bell.ring_workers(ALL) == 1
    assert other.sleep(PATIENCE)
    assert full.sleep(0), "it wakes all the same"
    assert not full.sleep(0), "and has emptied it"


def test_a_ringer_in_trouble_leaves_the_sleeper_to_others(
    bell: Doorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = bell.sleeper(Kind.WORKER)
    sleeper.prepare()

    def exhausted(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "open", exhausted)
    assert bell.ring_workers(ALL) == 0
    monkeypatch.undo()
    assert bell.ring_workers(ALL) == 1
    assert sleeper.sleep(0)


def test_a_sleeper_that_dies_under_the_ringers_hand(bell: Doorbell, monkeypatch: pytest.MonkeyPatch) -> None:
    dying, live = bell.sleeper(Kind.WORKER), bell.sleeper(Kind.WORKER)
    dying.prepare()
    live.prepare()
    write = os.write

    def late(fd: int, data: bytes) -> int:
        dying._release()
        return write(fd, data)

    monkeypatch.setattr(os, "write", late)
    assert bell.ring_workers(ALL) == 1
    assert live.sleep(PATIENCE)


def test_a_deleted_folder(bell: Doorbell, folder: Path) -> None:
    sleeper = bell.sleeper(Kind.WORKER)
    sleeper.prepare()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert bell.ring_workers(ALL) == 0
    assert not sleeper.sleep(0)
    late = bell.sleeper(Kind.WORKER)
    assert late.slot is None
    # The next to open makes a new one. Slots of the same number in the old and the new one are strangers.
    with Doorbell(folder) as new:
        fresh = new.sleeper(Kind.WORKER)
        assert fresh.slot == sleeper.slot
        fresh.prepare()
        sleeper.prepare()
        assert bell.ring_workers(ALL) == 0
        assert new.ring_workers(ALL) == 1
        assert fresh.sleep(PATIENCE)
        assert not sleeper.sleep(0)


def degraded_in(folder: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if case == "no such parent":
        folder.parent.rmdir()
    elif case == "a file in the way":
        folder.write_bytes(b"")
    elif case == "another version's page":
        Doorbell(folder).close()
        with (folder / "bell").open("r+b") as page:
            page.write(b"respbel0")
    elif case == "a short page":
        folder.mkdir()
        (folder / "bell").write_bytes(b"respbel1")
    elif case == "a link for a page":
        Doorbell(folder).close()
        (folder / "bell").rename(folder / "elsewhere")
        (folder / "bell").symlink_to("elsewhere")
    else:
        # Root writes where it likes, so that the error itself has to be made.
        def read_only(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(Path, "mkdir", read_only)


@pytest.mark.parametrize(
    "case",
    [
        "no such parent",
        "a file in the way",
        "another version's page",
        "a short page",
        "a link for a page",
        "read-only",
    ],
)
def test_degraded(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    folder = tmp_path / "data" / "queue.db-run"
    degraded_in(folder, case, monkeypatch)
    before = open_descriptors()
    read_fd, write_fd = os.pipe()
    bell = Doorbell(folder)
    assert str(folder) in bell.degraded
    worker = bell.sleeper(Kind.WORKER, wake_fds=(read_fd,))
    waiter = bell.sleeper(Kind.WAITER)
    assert worker.slot is None
    worker.prepare()
    waiter.prepare()
    worker.set_mask(1)
    assert bell.ring_workers(ALL) == bell.ring_workers(ALL, everyone=True) == bell.ring_waiters(ALL) == 0
    assert not bell.waiters_present()
    assert not waiter.sleep(0.001)
    assert select.select([waiter.fileno()], [], [], 0)[0] == []
    os.write(write_fd, b"x")
    assert not worker.sleep(PATIENCE), "wake_fds still end it"
    worker.cancel()
    bell.close()
    os.close(read_fd)
    os.close(write_fd)
    assert open_descriptors() == before


def test_slots_that_cannot_be_used_are_left_out(bell: Doorbell, folder: Path) -> None:
    (folder / "bell-0").write_bytes(b"")
    sleeper = bell.sleeper(Kind.WORKER)
    assert sleeper.slot == 1
    assert (folder / "bell-0").read_bytes() == b""


def test_a_closed_doorbell_rings_nobody(bell: Doorbell, folder: Path) -> None:
    own = bell.sleeper(Kind.WORKER)
    with Doorbell(folder) as other:
        sleeper = other.sleeper(Kind.WORKER)
        sleeper.prepare()
        bell.close()
        bell.close()
        assert bell.degraded
        assert bell.ring_workers(ALL) == 0
        assert bell.sleeper(Kind.WORKER).slot is None
        assert other.ring_workers(ALL) == 1
    with pytest.raises(RuntimeError, match="closed"):
        own.sleep(0)


def test_the_folders_rights_follow_the_databases(tmp_path: Path) -> None:
    private, shared = tmp_path / "private", tmp_path / "shared"
    private.mkdir(0o700)
    shared.mkdir()
    shared.chmod(0o1777)
    before = os.umask(0o027)
    try:
        for parent in (private, shared):
            with Doorbell(parent / "run") as bell:
                bell.sleeper(Kind.WORKER)
    finally:
        os.umask(before)
    assert (private / "run").stat().st_mode & 0o7777 == 0o700
    assert (shared / "run").stat().st_mode & 0o7777 == 0o750
    for name in ("bell", "bell-0", "bell-0.lock"):
        assert (shared / "run" / name).stat().st_mode & 0o777 == 0o640


def test_the_page_is_complete_on_disk(bell: Doorbell, folder: Path) -> None:
    """No holes: writing to one through the mapping would kill the process when the disk is full."""
    with (folder / "bell").open("rb") as page:
        os.fsync(page.fileno())  # file systems allocate late
        status = os.fstat(page.fileno())
    assert status.st_size == bell_page.SIZE <= status.st_blocks * 512
    assert bell_page.ENTRIES % 8 == 0, "the entries are aligned"


# Fork


def test_a_forked_child_is_told_to_open_its_own(bell: Doorbell, folder: Path) -> None:
    sleeper = bell.sleeper(Kind.WORKER)
    sleeper.prepare()
    calls: list[Callable[[], object]] = [
        lambda: bell.ring_workers(ALL),
        lambda: bell.ring_waiters(ALL),
        lambda: bell.waiters_present(),
        lambda: bell.asleep(Kind.WORKER),
        lambda: bell.sleeper(Kind.WORKER),
        lambda: sleeper.prepare(),
        lambda: sleeper.sleep(0),
        lambda: sleeper.cancel(),
        lambda: sleeper.set_mask(1),
        lambda: sleeper.fileno(),
    ]
    pid = os.fork()
    if pid == 0:
        failed = 1
        try:
            told = 0
            for call in calls:
                try:
                    call()
                except RuntimeError as error:
                    told += "fork" in str(error)
            sleeper.close()
            bell.close()
            with Doorbell(folder) as own:
                # Closing in the child has not touched the parent's flag.
                failed = not (told == len(calls) and own.ring_workers(ALL) == 1)
        finally:
            os._exit(failed)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert sleeper.sleep(PATIENCE), "rung by the child, through its own"
    with Doorbell(folder) as other:
        assert other.sleeper(Kind.WORKER).slot == 1, "the child's closing has not given up the parent's slot"
