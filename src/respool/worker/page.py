"""What a child shares with its supervisor, and with whoever comes after both: a mapped file.

One file a worker, one slot a child. The child writes what it has claimed, what it is running and how
finished runs ended *before* the next run starts, so that nothing of that is lost with it (H2). The file
is also the worker's sign of life on this host: its processes hold a shared lock on it for as long as
they live, so whoever gets an exclusive one knows that all of them are dead.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from ..clock import boottime_ns
from ..delivery.model import MAX_LEASE, Verdict
from ..errors import ConfigError

# Words of a slot, 8 bytes each.
SEQ = 0  # odd while the child changes what it has claimed
LEASE = 1
GROUP = 2
ROWS = 3  # records of the lease
STARTED = 4  # how many of them have been started …
FINISHED = (
    5  # … and how many are known to be finished; all but the last one started are, too, unless TOGETHER
)
BOUND = 6  # none is started at or beyond this number (P7)
BUFFER = 7  # bytes of verdicts
STOP = 8  # set by the supervisor: start nothing more
DEADLINE = 9  # boottime in ns: past it the supervisor cannot prove that it lives; start nothing (H5)
BEGAN = 10  # boottime in ns when the running record was started
SOFT_AT = 11  # boottime in ns when its soft time limit is reached, 0: none
HARD_AT = 12
DONE = 13  # records run since the child started
PID = 14
BUSY = 15
LEASE_BEGAN = 16  # wall clock in µs
SOFT_FOR = 17  # for which soft time limit (its SOFT_AT) the child was sent a signal
USER = 18  # 1 while the code of a record with limits runs
SETTLED = 19  # how many records of the lease the child has settled itself
LEASES = 20  # leases counted so far in this slot, those of dead children too: no id is used twice
TOGETHER = 21  # while a batch runs: one past the last record of what is run at once, from FINISHED on; else 0
LOOKING = 22  # 1 while what was claimed is not run yet, and a user's code says its batch, or its limit
_WORDS = 32
NO_BOUND = (1 << 64) - 1

_HEADER = _WORDS * 8
_ROWS_BYTES = MAX_LEASE * 8
BUFFER_BYTES = 256 * 1024
SLOT_BYTES = _HEADER + _ROWS_BYTES + BUFFER_BYTES
_ENTRY = struct.Struct("<QI")  # position and length of a result; or one of these, which are no positions:
_ENTRY_BYTES, _put_entry = _ENTRY.size, _ENTRY.pack_into
_VERDICT, _RESULTS = 0, 1  # before a packed verdict, before packed results
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Verdict).decode
_unpack_results = msgspec.msgpack.Decoder(list[tuple[int, bytes]]).decode
_AT_ONCE = 1 << 20  # bytes of a new file that are written at once
_MAP_FIXED = 0x10  # on Linux, macOS and the BSDs
_libc = ctypes.CDLL(None)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_ssize_t)


def lease_number(worker: int, child: int) -> int:
    """Return what a child's lease ids count up from; each is used once for good."""
    return (worker << 40) | (child << 32)


@dataclass
class Snapshot:
    """What a child's slot said at one moment."""

    lease: int
    group: int
    rows: list[int]
    started: int
    finished: int
    endings: bytes = b""  # how finished runs ended, as it stands in the buffer
    began: float = 0.0  # boottime of the running record's start
    lease_began: float = 0.0
    settled: int = 0
    together: int = 0
    looking: bool = False  # they are not run yet

    @property
    def running(self) -> list[int]:
        """The positions of what is being run: a record, or the records of a batch."""
        return self.rows[self.finished : self.together or self.started]

    @property
    def unstarted(self) -> list[int]:
        """The positions that were not begun."""
        return self.rows[self.started :]

    @property
    def through(self) -> list[int]:
        """The positions that were run to their end."""
        return self.rows[: self.finished]

    @property
    def verdicts(self) -> list[Verdict]:
        """What became of the finished records of which there is more to say than that they are done."""
        return self._ended[0]

    @property
    def results(self) -> list[tuple[int, bytes]]:
        """What finished runs returned, by position."""
        return self._ended[1]

    @cached_property
    def _ended(self) -> tuple[list[Verdict], list[tuple[int, bytes]]]:
        """Read how finished runs ended; a run whose end was just being written counts as unfinished."""
        verdicts: list[Verdict] = []
        results: list[tuple[int, bytes]] = []
        through, start, endings = set(self.through), 0, self.endings
        while start + _ENTRY_BYTES <= len(endings):
            pos, size = _ENTRY.unpack_from(endings, start)
            start += _ENTRY_BYTES
            data = endings[start : start + size]
            start += size
            if pos == _VERDICT:
                verdict = _unpack(data)
                if verdict.pos in through:
                    verdicts.append(verdict)
            elif pos == _RESULTS:
                results += [result for result in _unpack_results(data) if result[0] in through]
            elif pos in through:
                results.append((pos, data))
        results.sort()  # a batch may have been of records that do not stand side by side
        return verdicts, results


def _open_new(path: Path, private: bool) -> int:
    folder, flags = path.parent, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_TRUNC
    if not private:
        folder.mkdir(folder.parent.stat().st_mode & 0o777, exist_ok=True)
        return os.open(path, flags, 0o666)
    while True:
        try:
            folder.mkdir(0o700)
        except FileExistsError:
            pass  # whosever it is
        try:
            _refuse_others(folder)
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            continue  # the last worker to end has just removed it


def _refuse_others(folder: Path) -> None:
    """Raise ConfigError for a folder that somebody else has made, or may use."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"{folder} must be a folder that only the user {os.getuid()} may use: remove it, or set TMPDIR"
        )


def _create(path: Path, size: int, private: bool) -> int:
    """Make a worker's file, held and of its full size before anybody can see it; return its descriptor.

    One left at that place belongs to a database that is no more: it is replaced, not written into. It is
    filled, not stretched: touching a hole of a mapped file on a full disk kills the process.
    """
    new = path.with_name(f"{path.name}.{os.getpid()}")
    fd = _open_new(new, private)
    try:
        with open(fd, "wb", closefd=False) as file:
            for left in range(size, 0, -_AT_ONCE):
                file.write(bytes(min(left, _AT_ONCE)))
        fcntl.flock(fd, fcntl.LOCK_SH)
        new.rename(path)
    except BaseException:
        new.unlink(missing_ok=True)
        os.close(fd)
        raise
    return fd


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise


class WorkerFile:
    """The mapped file of one worker.

    `private`: its folder is not beside a database, but where everybody has folders. It is made for this
    user alone, and removed when the file is and no other worker has one.
    """

    def __init__(self, path: Path, children: int, *, create: bool = False, private: bool = False) -> None:
        self.path, self._private = path, private
        if create:
            self.fd = _create(path, children * SLOT_BYTES, private)
        else:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            size = os.fstat(self.fd).st_size
            self.map = mmap.mmap(self.fd, size)
        except BaseException:
            os.close(self.fd)
            raise
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.children = size // SLOT_BYTES
        self._slots: list[Slot] = []

    def hold(self) -> None:
        """Take the shared lock that says: a process of this worker lives."""
        fcntl.flock(self.fd, fcntl.LOCK_SH)
        os.register_at_fork(after_in_child=self._let_go)

    def _let_go(self) -> None:
        """A process that a task forks must neither keep the worker alive nor write into its slot."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
            _libc.mmap(self._address, len(self.map), mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)

    def seize(self) -> bool:
        """Take the exclusive lock; False where a process of the worker is alive."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def keep(self) -> None:
        """Make it look used: what is old in a folder for temporary files is removed there by the system."""
        os.utime(self.fd)

    def _is_at_its_path(self) -> bool:
        try:
            return self.fd >= 0 and os.path.samestat(os.stat(self.path), os.fstat(self.fd))
        except FileNotFoundError:
            return False

    def slot(self, index: int) -> Slot:
        """Return a child's slot."""
        slot = Slot(memoryview(self.map)[index * SLOT_BYTES : (index + 1) * SLOT_BYTES])
        self._slots.append(slot)
        return slot

    def close(self, *, remove: bool = False) -> None:
        """Unmap the file, give up the lock, and remove the file where asked."""
        for slot in self._slots:
            slot.release()
        self._slots.clear()
        self.map.close()
        if remove and self._is_at_its_path():
            self.path.unlink(missing_ok=True)
            if self._private:
                _remove_if_empty(self.path.parent)
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Slot:
    """One child's part of the file. The child writes, but for BOUND, STOP, DEADLINE and SOFT_FOR."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self.words = memory[:_HEADER].cast("Q")
        self._rows = memory[_HEADER : _HEADER + _ROWS_BYTES].cast("Q")
        self._buffer = memory[_HEADER + _ROWS_BYTES :]

    def release(self) -> None:
        """Let go of the mapping."""
        self.words.release()
        self._rows.release()
        self._buffer.release()
        self._memory.release()

    def clear(self) -> None:
        """Forget the child that had the slot before, but for the leases it had: some may still be there."""
        for word in range(_WORDS):
            if word != LEASES:
                self.words[word] = 0

    def claimed(self, lease: int, group: int, rows: Sequence[int], began: float) -> None:
        """Say which records were claimed, in the order in which they will be run."""
        words = self.words
        words[SEQ] += 1
        words[STARTED] = words[FINISHED] = words[SETTLED] = words[BUFFER] = 0
        words[SOFT_AT] = words[HARD_AT] = words[SOFT_FOR] = words[TOGETHER] = words[LOOKING] = 0
        words[BOUND] = 0 if words[STOP] else NO_BOUND
        for index, pos in enumerate(rows):
            self._rows[index] = pos
        words[ROWS] = len(rows)
        words[GROUP] = group
        words[LEASE_BEGAN] = int(began * 1e6)
        words[LEASE] = lease
        words[SEQ] += 1

    def looks_at(self, lease: int, group: int, rows: Sequence[int], began: float) -> None:
        """Say that code of the user's is asked about these, before it is known in which order they run.

        It may end the process, and nobody knows at which of them: they count as run together.
        """
        self.claimed(lease, group, rows, began)
        words = self.words
        words[LOOKING], words[BEGAN] = 1, boottime_ns()
        words[TOGETHER] = words[STARTED] = len(rows)

    def settled(self) -> None:
        """Say that nothing is claimed any more."""
        words = self.words
        words[SEQ] += 1
        words[LEASE] = words[ROWS] = words[STARTED] = words[FINISHED] = words[BUFFER] = 0
        words[SEQ] += 1

    def add(self, verdict: Verdict) -> bool:
        """Keep a verdict; False where there is no room, and the lease must be settled first."""
        return self.add_result(_VERDICT, _pack(verdict))

    def add_results(self, results: list[tuple[int, bytes]]) -> bool:
        """Keep what the runs of a batch returned; False where there is no room."""
        return self.add_result(_RESULTS, _pack(results))

    def add_result(self, pos: int, value: bytes) -> bool:
        """Keep what a run returned; False where there is no room."""
        words, size = self.words, len(value)
        start = words[BUFFER]
        body = start + _ENTRY_BYTES
        end = body + size
        if end > BUFFER_BYTES:
            return False
        _put_entry(self._buffer, start, pos, size)
        self._buffer[body:end] = value
        words[BUFFER] = end
        return True

    def forget_verdicts(self) -> None:
        """Empty the buffer: its verdicts are settled."""
        words = self.words
        words[SEQ] += 1
        words[BUFFER] = 0
        words[SEQ] += 1

    def snapshot(self) -> Snapshot | None:
        """Return what the slot says, None where nothing is claimed or it is just being changed."""
        words = self.words
        seq = words[SEQ]
        if seq % 2 or not words[LEASE]:
            return None
        # In this order: the child sets TOGETHER before STARTED, and clears it after FINISHED.
        started, together, finished = words[STARTED], words[TOGETHER], words[FINISHED]
        seen = Snapshot(
            words[LEASE],
            words[GROUP],
            list(self._rows[: min(words[ROWS], MAX_LEASE)]),
            max(started, together),
            finished if together else max(finished, started - 1, 0),
            began=words[BEGAN] / 1e9,
            lease_began=words[LEASE_BEGAN] / 1e6,
            settled=words[SETTLED],
            together=together,
            looking=bool(words[LOOKING]),
            # Copied, and read only once it is known to be of one moment: the child writes on meanwhile.
            endings=bytes(self._buffer[: min(words[BUFFER], BUFFER_BYTES)]),
        )
        return seen if words[SEQ] == seq else None

    def last_words(self) -> Snapshot | None:
        """Return the snapshot of a child that is dead, which may have died in the middle of a change."""
        if self.words[SEQ] % 2:
            # It was between two leases: what it had run was settled, what it claimed was not begun.
            return None
        return self.snapshot()
