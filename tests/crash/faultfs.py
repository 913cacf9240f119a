"""I/O faults and power cuts below SQLite: a VFS in Python on apsw, over the default unix one.

    with FaultFS(folder) as fs:
        db = fs.connect("q.db")                 # or apsw.Connection(fs.uri("q.db"), flags=fs.FLAGS)
        fault = fs.fail("EIO", op="sync", kind="wal")
        ...
        fs.clear()
        fs.cut(other_folder, keep="prefix", torn=True, rng=random.Random(1))

What it models. A file is what was there at its last sync plus the writes and truncations since, in order.
Creating and deleting a file are pending too: a file's own sync keeps its name, the first sync of a newly
opened journal or WAL keeps every name in its folder (the unix VFS syncs the folder then), and so does a
delete with `syncdir`. A power cut keeps what is durable and a choice of what is pending. A failed sync
"forgets" by default, as Linux does: what it should have written is never written by a later sync, unless it
is written again (S3).

What it does not see: shared memory (the base's own methods serve it; a cut loses it), temporary files, files
outside `root`, and writes by other processes. No real file is ever opened beside SQLite while it is in use
(S2): contents come from memory, and at first opening from the handle SQLite itself is given. A sync reaches
the model only, not the real disk.

One thing differs from a real disk: apsw raises an injected error from the call that was running even where
SQLite swallows it and carries on (the automatic checkpoint after a commit, the one at close). There, the
commit has happened and the caller sees an error. `wal_autocheckpoint=0` and explicit checkpoints avoid it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args
from urllib.parse import quote, urlencode

import apsw

Keep = Literal["none", "all", "prefix", "random"]
Op = Literal["read", "write", "sync", "truncate", "delete", "open"]
Kind = Literal["db", "wal", "journal"]
ErrorName = Literal["EIO", "ENOSPC"]

KEEPS: tuple[Keep, ...] = get_args(Keep)
OPS: tuple[Op, ...] = get_args(Op)
SECTOR = 512

_IOERR: dict[Op, int] = {
    "read": apsw.SQLITE_IOERR_READ,
    "write": apsw.SQLITE_IOERR_WRITE,
    "sync": apsw.SQLITE_IOERR_FSYNC,
    "truncate": apsw.SQLITE_IOERR_TRUNCATE,
    "delete": apsw.SQLITE_IOERR_DELETE,
}
_OPEN_DB, _OPEN_WAL = apsw.SQLITE_OPEN_MAIN_DB, apsw.SQLITE_OPEN_WAL
_OPEN_JOURNALS = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL
_count = itertools.count(1)
_still_open: list[Any] = []  # file systems closed with connections open: apsw must not free their VFS


def kind_of(file: str) -> Kind:
    """The kind of a file, by its name."""
    if file.endswith("-wal"):
        return "wal"
    return "journal" if "-journal" in file or "-mj" in file else "db"


def _error(error: ErrorName, op: Op, text: str) -> apsw.Error:
    """What the unix VFS makes of this errno for this operation."""
    if op == "open":
        return apsw.CantOpenError(text)
    if error == "ENOSPC" and op == "write":
        return apsw.FullError(text)
    exc = apsw.IOError(text)
    exc.extendedresult = _IOERR[op]  # type: ignore[attr-defined]
    return exc


class CutFailed(AssertionError):
    """A check failed on a cut; the message says which, the cause says why."""


@dataclass(frozen=True, slots=True)
class Event:
    """The n-th (from 1) write, sync, truncate or delete, about to happen."""

    n: int
    op: str
    file: str

    @property
    def kind(self) -> Kind:
        return kind_of(self.file)


@dataclass(eq=False, slots=True)
class _Inode:
    """One file's content that survives a power cut. A deleted and recreated file is another one."""

    durable: bytearray = field(default_factory=bytearray)
    shared: bool = False  # a snapshot looks at `durable`: copy it before changing it


@dataclass(frozen=True, slots=True)
class _Pending:
    """One change not yet durable. `at` is the offset of a write or the size of a truncation."""

    seq: int
    what: Literal["write", "truncate", "link", "unlink"]
    inode: _Inode
    at: int = 0
    data: bytes = b""
    name: str = ""
    stuck: bool = False  # a sync that covered it failed: later syncs pass it over

    @property
    def end(self) -> int:
        return self.at + len(self.data)

    def apply(self, buf: bytearray) -> None:
        size = self.at
        if len(buf) < size:
            buf.extend(bytes(size - len(buf)))
        if self.what == "truncate":
            del buf[size:]
        else:
            buf[self.at : self.end] = self.data

    def without(self, other: _Pending) -> Iterable[_Pending]:
        """What is left of this write once `other`, which came later, is durable."""
        stop = min(self.end, other.at)
        if stop > self.at:
            yield replace(self, data=self.data[: stop - self.at])
        start = max(self.at, other.end)
        if other.what == "write" and start < self.end:
            yield replace(self, at=start, data=self.data[start - self.at :])

    def tears(self) -> range:
        """The sector boundaries inside this write, as lengths of its head."""
        return range(SECTOR - self.at % SECTOR, len(self.data), SECTOR) if self.what == "write" else range(0)

    def torn(self, rng: random.Random) -> _Pending:
        head = rng.choice(self.tears())
        if rng.random() < 0.5:
            return replace(self, data=self.data[:head])
        return replace(self, at=self.at + head, data=self.data[head:])


@dataclass(frozen=True)
class Snapshot:
    """The disk at one moment: what is durable, what is pending, and what was acknowledged before it."""

    event: Event | None
    acked: tuple[Any, ...]
    _durable: tuple[tuple[_Inode, bytearray], ...]
    _names: dict[str, _Inode]
    _pending: tuple[_Pending, ...]

    @property
    def unsynced(self) -> int:
        return len(self._pending)

    def choose(self, keep: Keep, torn: bool, rng: random.Random) -> list[_Pending]:
        """The pending changes a power cut leaves. With `torn`, one write, if one is long enough, is left in
        part: for "prefix" the first that is not kept (else the last kept), otherwise any kept one, and for
        "none" any at all."""
        pending = list(self._pending)
        if keep == "none":
            long = [p for p in pending if p.tears()]
            return [rng.choice(long).torn(rng)] if torn and long else []
        if keep == "prefix":
            n = rng.randint(0, len(pending))
            kept = pending[:n]
            if torn and n < len(pending) and pending[n].tears():
                return [*kept, pending[n].torn(rng)]
            if torn and kept and kept[-1].tears():
                kept[-1] = kept[-1].torn(rng)
            return kept
        share = rng.random()
        kept = pending if keep == "all" else [p for p in pending if rng.random() < share]
        where = [i for i, p in enumerate(kept) if p.tears()]
        if torn and where:
            i = rng.choice(where)
            kept[i] = kept[i].torn(rng)
        return kept

    def files(
        self, keep: Keep = "none", torn: bool = False, rng: random.Random | None = None
    ) -> dict[str, bytes]:
        """The files found after a power cut at this moment: name to content."""
        content = dict(self._durable)
        copied: set[_Inode] = set()
        names = dict(self._names)
        for p in self.choose(keep, torn, rng or random.Random(0)):
            if p.what == "link":
                names[p.name] = p.inode
            elif p.what == "unlink":
                names.pop(p.name, None)
            else:
                if p.inode not in copied:
                    copied.add(p.inode)
                    content[p.inode] = bytearray(content.get(p.inode, b""))
                p.apply(content[p.inode])
        return {name: bytes(content.get(inode, b"")) for name, inode in sorted(names.items())}

    def write(
        self,
        folder: str | os.PathLike[str],
        keep: Keep = "none",
        torn: bool = False,
        rng: random.Random | None = None,
    ) -> Path:
        """Write those files into another, empty folder."""
        return _write_files(Path(folder), self.files(keep, torn, rng))


def _write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty")
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@dataclass(eq=False)
class Fault:
    """An armed error; see `FaultFS.fail`. `fired` is set at its first failure (wait on it, do not sleep)."""

    error: ErrorName
    ops: frozenset[str]
    kinds: frozenset[str]
    at: int
    once: bool
    partial: bool
    forget: bool
    where: Callable[[str], bool] | None
    _fs: FaultFS
    seen: int = 0  # matching operations so far
    hits: int = 0  # those that failed
    fired: threading.Event = field(default_factory=threading.Event)

    def clear(self) -> None:
        self._fs.clear(self)

    def strikes(self, op: Op, file: str) -> bool:
        if op not in self.ops or kind_of(file) not in self.kinds or (self.where and not self.where(file)):
            return False
        self.seen += 1
        if self.seen < self.at or (self.once and self.hits):
            return False
        self.hits += 1
        self.fired.set()
        return True


class FaultFS:
    """A VFS under a name, the model of the disk below `root`, and the faults armed."""

    FLAGS = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI

    def __init__(self, root: str | os.PathLike[str], name: str | None = None) -> None:
        self.root = Path(os.path.realpath(root))
        self.root.mkdir(parents=True, exist_ok=True)
        self.name = name or f"faultfs-{os.getpid()}-{next(_count)}"
        self.events = 0
        self.acked: list[Any] = []
        self.on_event: Callable[[str, str, int], None] | None = None
        self._lock = threading.RLock()
        self._seq = 0
        self._names: dict[str, _Inode] = {}  # as after a power cut
        self._live: dict[str, _Inode] = {}  # as now
        self._pending: list[_Pending] = []
        self._faults: list[Fault] = []
        self._handles: set[_File] = set()
        self._event: Event | None = None
        self._vfs: _VFS | None = _VFS(self)

    # -- opening

    def path(self, file: str | os.PathLike[str] = "") -> Path:
        return self.root / file

    def uri(self, file: str | os.PathLike[str], **params: str | int) -> str:
        """The URI of a file (relative to `root`, or absolute) on this VFS."""
        return f"file:{quote(str(self.path(file)))}?{urlencode({'vfs': self.name, **params})}"

    def connect(
        self, file: str | os.PathLike[str], *, sync: str = "FULL", wal: bool = True
    ) -> apsw.Connection:
        """A connection on this VFS, in WAL mode unless told otherwise."""
        db = apsw.Connection(self.uri(file), flags=self.FLAGS)
        db.set_busy_timeout(10_000)
        if wal:
            db.execute("pragma journal_mode=wal")
        db.execute(f"pragma synchronous={sync}")
        return db

    def close(self) -> None:
        """Unregister the name. Connections still open keep working."""
        if self._vfs is not None:
            self._vfs.unregister()
            if self._handles:
                _still_open.append(self._vfs)
            self._vfs = None

    def __enter__(self) -> FaultFS:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    # -- power cuts

    def ack(self, *values: Any) -> None:
        """Note what is promised from now on: later snapshots carry it in `acked`."""
        with self._lock:
            self.acked.extend(values)

    def snapshot(self) -> Snapshot:
        """The disk now; cheap (nothing is copied until it changes), and may be taken inside `on_event`."""
        with self._lock:
            inodes = {*self._names.values(), *(p.inode for p in self._pending)}
            for inode in inodes:
                inode.shared = True
            return Snapshot(
                event=self._event,
                acked=tuple(self.acked),
                _durable=tuple((inode, inode.durable) for inode in inodes),
                _names=dict(self._names),
                _pending=tuple(self._pending),
            )

    def cut(
        self,
        folder: str | os.PathLike[str],
        keep: Keep = "none",
        torn: bool = False,
        rng: random.Random | None = None,
    ) -> Path:
        """Write the files as a power cut now would leave them into another, empty folder."""
        if Path(os.path.realpath(folder)) == self.root:
            raise ValueError("a cut needs a folder of its own (S2)")
        return self.snapshot().write(folder, keep, torn, rng)

    def power_off(self) -> Snapshot:
        """The disk is gone: every operation fails from now on. May be called inside `on_event`."""
        with self._lock:
            self.fail("EIO", op=OPS, once=False)
            return self.snapshot()

    def verify(self) -> None:
        """Compare the model with what the open handles read. Only while no statement runs."""
        with self._lock:
            for handle in tuple(self._handles):
                if bytes(self._content(handle.inode)) != handle.whole():
                    raise AssertionError(f"the model of {handle.file} differs from the file")

    # -- faults

    def fail(
        self,
        error: ErrorName = "EIO",
        *,
        op: Op | Iterable[Op] = ("write", "sync", "truncate"),
        kind: Kind | Iterable[Kind] = ("db", "wal", "journal"),
        at: int = 1,
        once: bool = True,
        partial: bool = False,
        forget: bool = True,
        where: Callable[[str], bool] | None = None,
    ) -> Fault:
        """Let the `at`-th matching operation from now on fail: only that one, or (`once=False`) it and all
        after it until cleared. `partial`: a failing write leaves a part behind. `forget`: what a failing sync
        should have written is not written by later ones. `where`: further choice by the file's name."""
        ops, kinds = ((op,) if isinstance(op, str) else op), ((kind,) if isinstance(kind, str) else kind)
        if at < 1 or not set(ops) <= set(OPS) or not set(kinds) <= set(get_args(Kind)):
            raise ValueError(f"fail({op=}, {kind=}, {at=})")
        fault = Fault(error, frozenset(ops), frozenset(kinds), at, once, partial, forget, where, self)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self, fault: Fault | None = None) -> None:
        """Disarm one fault, or all."""
        with self._lock:
            self._faults = [f for f in self._faults if fault is not None and f is not fault]

    # -- called by the VFS, with the lock held

    def _before(self, op: Op, file: str) -> Fault | None:
        """Count the event, tell the hook, and return the fault that strikes."""
        if op not in ("read", "open"):
            self.events += 1
            if self.on_event is not None:
                event, self._event = self._event, Event(self.events, op, file)
                try:
                    self.on_event(op, file, self.events)
                finally:
                    self._event = event
        struck = [f for f in self._faults if f.strikes(op, file)]  # all count, the first decides
        return struck[0] if struck else None

    def _raise(self, fault: Fault, op: Op, file: str) -> None:
        raise _error(fault.error, op, f"injected {fault.error} at {op} of {file}")

    def _tracked(self, path: str) -> str | None:
        return os.path.relpath(path, self.root) if path.startswith(f"{self.root}{os.sep}") else None

    def _push(self, what: Any, inode: _Inode, at: int = 0, data: bytes = b"", name: str = "") -> None:
        self._seq += 1
        self._pending.append(_Pending(self._seq, what, inode, at, data, name))

    def _content(self, inode: _Inode) -> bytearray:
        buf = bytearray(inode.durable)
        for p in self._pending:
            if p.inode is inode and p.what in ("write", "truncate"):
                p.apply(buf)
        return buf

    def _adopt(self, file: str, content: bytes) -> _Inode:
        """A file that was there before us, or that others changed while it was closed: taken as durable."""
        inode = self._live.get(file)
        if inode is None or self._content(inode) != content:
            self._pending = [p for p in self._pending if p.name != file and p.inode is not inode]
            inode = self._live[file] = self._names[file] = _Inode(bytearray(content))
        return inode

    def _created(self, file: str) -> _Inode:
        inode = self._live[file] = _Inode()
        self._push("link", inode, name=file)
        return inode

    def _deleted(self, file: str, syncdir: bool) -> None:
        inode = self._live.pop(file, None) or self._names.get(file)
        if inode is not None:
            self._push("unlink", inode, name=file)
        if syncdir:
            self._keep_names(lambda name: os.path.dirname(name) == os.path.dirname(file))

    def _keep_names(self, which: Callable[[str], bool]) -> None:
        """Make pending creations and deletions durable, and drop what no name leads to any more."""
        rest = []
        for p in self._pending:
            if p.what == "link" and which(p.name):
                self._names[p.name] = p.inode
            elif p.what == "unlink" and which(p.name):
                self._names.pop(p.name, None)
            else:
                rest.append(p)
        alive = {*self._names.values(), *self._live.values(), *(p.inode for p in rest if p.name)}
        self._pending = [p for p in rest if p.inode in alive]

    def _synced(self, inode: _Inode) -> None:
        if inode.shared:
            inode.durable, inode.shared = bytearray(inode.durable), False
        stuck: list[_Pending] = []
        rest: list[_Pending] = []
        for p in self._pending:
            if p.inode is not inode or p.name:
                rest.append(p)
            elif p.stuck:
                stuck.append(p)
            else:
                p.apply(inode.durable)
                stuck = [part for s in stuck for part in s.without(p)]
        self._pending = sorted(rest + stuck, key=lambda p: p.seq)

    def _sync_failed(self, inode: _Inode) -> None:
        self._pending = [
            replace(p, stuck=True) if p.inode is inode and p.what == "write" else p for p in self._pending
        ]


class _File(apsw.VFSFile):
    """An open database, WAL or journal. Everything not named here goes to the unix VFS."""

    def __init__(self, fs: FaultFS, file: str, name: str | apsw.URIFilename, flags: list[int]) -> None:
        existed = os.path.exists(fs.root / file)  # a stat opens nothing (S2)
        super().__init__("", name, flags)
        self.fs, self.file = fs, file
        journal = flags[0] & (_OPEN_WAL | _OPEN_JOURNALS)
        self._sync_names = bool(journal and flags[0] & apsw.SQLITE_OPEN_CREATE)
        if file in fs._live and any(h.file == file for h in fs._handles):
            self.inode = fs._live[file]
        elif existed:
            self.inode = fs._adopt(file, self.whole())
        else:
            self.inode = fs._created(file)
        fs._handles.add(self)

    def whole(self) -> bytes:
        size = super().xFileSize()
        return super().xRead(size, 0) if size else b""

    def xClose(self) -> None:
        with self.fs._lock:
            self.fs._handles.discard(self)
        super().xClose()

    def xDeviceCharacteristics(self) -> int:
        return super().xDeviceCharacteristics() & ~apsw.SQLITE_IOCAP_BATCH_ATOMIC

    def xFileControl(self, op: int, ptr: int) -> bool:
        if op == apsw.SQLITE_FCNTL_CHUNK_SIZE:  # would let the base grow the file behind the model
            return True
        return super().xFileControl(op, ptr)

    def xRead(self, amount: int, offset: int) -> bytes:
        fs = self.fs
        if fs._faults:
            with fs._lock:
                if fault := fs._before("read", self.file):
                    fs._raise(fault, "read", self.file)
        return super().xRead(amount, offset)

    def xWrite(self, data: Any, offset: int) -> None:
        fs, data = self.fs, bytes(data)
        with fs._lock:
            fault = fs._before("write", self.file)
            if fault:
                ends = range(SECTOR - offset % SECTOR, len(data), SECTOR) if fault.partial else ()
                data = data[: ends[len(ends) // 2]] if ends else b""
            if data:
                super().xWrite(data, offset)
                fs._push("write", self.inode, offset, data)
            if fault:
                fs._raise(fault, "write", self.file)

    def xTruncate(self, newsize: int) -> None:
        fs = self.fs
        with fs._lock:
            if fault := fs._before("truncate", self.file):
                fs._raise(fault, "truncate", self.file)
            changes = super().xFileSize() != newsize
            super().xTruncate(newsize)
            if changes:
                fs._push("truncate", self.inode, newsize)

    def xSync(self, flags: int) -> None:
        fs = self.fs
        with fs._lock:
            if fault := fs._before("sync", self.file):
                if fault.forget:
                    fs._sync_failed(self.inode)
                fs._raise(fault, "sync", self.file)
            fs._synced(self.inode)  # the model's sync is enough; the real one would only cost time
            folder, all_names = os.path.dirname(self.file), self._sync_names
            self._sync_names = False
            if all_names:
                fs._keep_names(lambda name: os.path.dirname(name) == folder)
            elif fs._live.get(self.file) is self.inode:
                fs._keep_names(lambda name: name == self.file)


class _VFS(apsw.VFS):
    def __init__(self, fs: FaultFS) -> None:
        self.fs = fs
        super().__init__(fs.name, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        file = self.fs._tracked(path) if path else None
        if name is None or file is None or not flags[0] & (_OPEN_DB | _OPEN_WAL | _OPEN_JOURNALS):
            return apsw.VFSFile("", name, flags)
        fs = self.fs
        with fs._lock:
            if fault := fs._before("open", file):
                fs._raise(fault, "open", file)
            opened = _File(fs, file, name, flags)
            if flags[0] & _OPEN_DB:  # what lies beside it belongs to it, opened yet or not
                for end, kind in (("-wal", _OPEN_WAL), ("-journal", apsw.SQLITE_OPEN_MAIN_JOURNAL)):
                    beside = f"{fs.root / file}{end}"
                    if file + end not in fs._live and os.path.exists(beside):
                        reader = _Reader("", beside, [apsw.SQLITE_OPEN_READONLY | kind, 0])
                        fs._adopt(file + end, reader.whole())
                        reader.xClose()
            return opened

    def xDelete(self, filename: str, syncdir: bool) -> None:
        fs = self.fs
        file = fs._tracked(filename)
        with fs._lock:
            if file is None:
                return super().xDelete(filename, syncdir)
            if os.path.exists(filename) and (fault := fs._before("delete", file)):
                fs._raise(fault, "delete", file)
            super().xDelete(filename, syncdir)
            fs._deleted(file, bool(syncdir))


class _Reader(apsw.VFSFile):
    def whole(self) -> bytes:
        size = self.xFileSize()
        return self.xRead(size, 0) if size else b""


@dataclass(frozen=True)
class Cut:
    """A folder as found after a power cut. `event` had not happened yet; None is the end of the run."""

    folder: Path
    event: Event | None
    keep: Keep
    torn: bool
    round: int
    acked: tuple[Any, ...]


def for_each_cut(
    run: Callable[[FaultFS], None],
    check: Callable[[Cut], None],
    work: str | os.PathLike[str],
    *,
    keep: Sequence[Keep] = KEEPS,
    torn: Sequence[bool] = (False, True),
    rounds: int = 1,
    seed: int = 0,
    only: Callable[[Event], bool] | None = None,
    start: Callable[[Path], None] | None = None,
) -> int:
    """Do `run` once, cutting the power before each of its events and at its end, in every way asked for, and
    `check` each cut in a folder of its own. What `run` passed to `fs.ack` before an event is in that cut's
    `acked`. Equal cuts with equal promises are checked once. Returns the number checked.

    `rounds`: tries of the random ways. `only`: which events. `start` fills the folder before the run.
    `run` works in `fs.root`; the checks happen after it, outside of SQLite's calls. A failed check leaves its
    folder and names it.
    """
    work = Path(work)
    root = work / "disk"
    root.mkdir(parents=True)
    if start is not None:
        start(root)
    shots: list[Snapshot] = []
    with FaultFS(root) as fs:

        def hook(op: str, file: str, n: int) -> None:
            if only is None or only(Event(n, op, file)):
                shots.append(fs.snapshot())

        fs.on_event = hook
        run(fs)
        fs.on_event = None
        shots.append(fs.snapshot())

    seen: set[bytes] = set()
    for shot in shots:
        n = shot.event.n if shot.event else 0
        for how, tear in itertools.product(keep, torn):
            chancy = tear or how in ("prefix", "random")
            for i in range(rounds if chancy else 1):
                files = shot.files(how, tear, random.Random(f"{seed}/{n}/{how}/{tear}/{i}"))
                digest = hashlib.blake2b(repr(len(shot.acked)).encode())
                for file, content in files.items():
                    digest.update(f"/{file}/{len(content)}/".encode() + content)
                if digest.digest() in seen:
                    continue
                seen.add(digest.digest())
                name = f"cut-{n or 'end'}-{how}-{'torn' if tear else 'whole'}-{i}"
                folder = _write_files(work / name, files)
                try:
                    check(Cut(folder, shot.event, how, tear, i, shot.acked))
                except Exception as exc:
                    what = f"{shot.event or 'the end'}, {how=}, {tear=}, round {i}, {seed=}"
                    raise CutFailed(f"cut before {what}, in {folder}: {exc!r}") from exc
                _remove(folder)
    return len(seen)


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
