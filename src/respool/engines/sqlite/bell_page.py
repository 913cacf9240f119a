"""The page and the folder of a doorbell: who is asleep, and for what. How it is used: `doorbell.py`."""

from __future__ import annotations

import enum
import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

ALL: Final = (1 << 64) - 1
"""The mask that matches every stream."""

SLOTS: Final = 1024
"""How many sleepers one database can have; any beyond that only poll."""

# The page: a header, one byte a slot for workers, one byte a slot for waiters, one entry a slot. The flags
# lie together so that "is anybody asleep?" is one `find`. Over all slots it takes as long as over eight
# (measured on 3.11 to 3.13), so no "highest slot in use" is kept, which would need a lock to be kept right.
_MAGIC: Final = b"respbel1"  # the last character is the layout's version
WORKERS: Final = 64
WAITERS: Final = WORKERS + SLOTS
ENTRIES: Final = WAITERS + SLOTS
# Mask and service; native and aligned, so that neither is ever read half written.
ENTRY: Final = struct.Struct("QQ")
SIZE: Final = ENTRIES + SLOTS * ENTRY.size
ASLEEP: Final = b"\x01"
FIFOS: Final = tuple(f"bell-{slot}" for slot in range(SLOTS))


class Kind(enum.Enum):
    """What a sleeper waits for."""

    WORKER = WORKERS
    """Records to run: rung by `Doorbell.ring_workers`, one worker of each service."""

    WAITER = WAITERS
    """Results: rung by `Doorbell.ring_waiters`, every waiter concerned."""


def mask_of(ids: Iterable[int]) -> int:
    """Return the mask in which the bit `id % 64` of each id is set.

    Two ids may share a bit, which costs a needless wake and never a missed one.
    """
    mask = 0
    for each in ids:
        mask |= 1 << (each & 63)
    return mask


def flagged(page: mmap.mmap, kind: Kind, mask: int) -> Iterator[tuple[int, int]]:
    """Yield slot and service of those that have their flag set and match."""
    flags = page[kind.value : kind.value + SLOTS]
    slot = flags.find(ASLEEP)
    while slot >= 0:
        wanted, service = ENTRY.unpack_from(page, ENTRIES + slot * ENTRY.size)
        if wanted & mask:
            yield slot, service
        slot = flags.find(ASLEEP, slot + 1)


def open_page(folder: Path) -> tuple[int, mmap.mmap]:
    """Open the folder and map its page, and make what is not there.

    All that follows goes through the folder's descriptor: page and FIFOs always belong together, even if
    another folder has taken the place of this one.
    """
    # Only those who can reach the database need the bell. 0o777: without sticky and set-group bits.
    folder.mkdir(folder.parent.stat().st_mode & 0o777, exist_ok=True)
    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flags = os.O_RDWR | os.O_NOFOLLOW
        try:
            fd = os.open("bell", flags, dir_fd=folder_fd)
        except FileNotFoundError:
            _create_page(folder_fd)
            fd = os.open("bell", flags, dir_fd=folder_fd)
        try:
            status = os.fstat(fd)
            usable = stat.S_ISREG(status.st_mode) and status.st_size >= SIZE
            if not usable or os.pread(fd, len(_MAGIC), 0) != _MAGIC:
                raise OSError(errno.EINVAL, "no doorbell's page, or another version's", str(folder / "bell"))
            return folder_fd, mmap.mmap(fd, SIZE)
        finally:
            os.close(fd)
    except BaseException:
        os.close(folder_fd)
        raise


def _create_page(folder_fd: int) -> None:
    """Make the page under another name and link it, so that nobody ever maps one that is not complete.

    It is written in full, not stretched: touching a hole of a mapped file on a full disk kills the process.
    """
    name = f".bell-{os.urandom(8).hex()}"
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=folder_fd)
    try:
        try:
            page = _MAGIC.ljust(SIZE, b"\0")
            if os.write(fd, page) != SIZE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(fd)
        with suppress(FileExistsError):  # another process was faster: its page is as good
            os.link(name, "bell", src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
    finally:
        os.unlink(name, dir_fd=folder_fd)


def claim_slot(
    folder: Path, folder_fd: int, page: mmap.mmap, mine: Collection[int | None], entry: tuple[int, int]
) -> tuple[int, tuple[int, ...]] | None:
    """Take the first slot nobody owns; return it and its descriptors (reader, writer, lock), or None.

    Parameters:
        mine: those of this process, which need not be tried.
        entry: mask and service.
    """
    lock_flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    for slot, name in enumerate(FIFOS):
        if slot in mine:
            continue
        fds: list[int] = []
        try:
            # A lock file, since macOS cannot flock a FIFO. It is never deleted: two processes could then
            # hold the lock of one slot, each on a file of its own.
            fds.append(os.open(f"{name}.lock", lock_flags, 0o666, dir_fd=folder_fd))
            fcntl.flock(fds[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The flags of an owner that died asleep.
            page[WORKERS + slot] = page[WAITERS + slot] = 0
            with suppress(FileExistsError):
                os.mkfifo(folder / name, 0o666)
            reader = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=folder_fd)
            fds.insert(0, reader)
            if not stat.S_ISFIFO(os.fstat(reader).st_mode):
                raise PermissionError(errno.EPERM, "not a FIFO", str(folder / name))
            # Our own writer keeps the FIFO from reporting its end each time a ringer closes it.
            fds.insert(1, os.open(name, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=folder_fd))
            ENTRY.pack_into(page, ENTRIES + slot * ENTRY.size, *entry)
            return slot, tuple(fds)
        except OSError as error:
            for fd in fds:
                os.close(fd)
            # Taken, another user's, or in the way: try the next. Anything else (no descriptors, folder
            # deleted, disk full) would be the same for all of them.
            if not isinstance(error, BlockingIOError | PermissionError):
                return None
    return None
