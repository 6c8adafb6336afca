"""Places that all workers of a host share: so many for a key, held by file locks.

Open streams have to be counted over several workers, exactly, and what a worker had must not be left behind when it
dies. A row in the database for each stream would be a write per stream, and those of a killed worker would have to be
found and taken back. A count that workers publish now and then is always a little old, so that twenty clients who come
at once find places for twenty at each worker. The kernel has what is wanted: a lock on one byte of a file is had by one
process or by none, is taken and given back in microseconds without a write, and is gone as soon as its process is.

So a key (an owner, an address) has a stretch of bytes somewhere in a file of 60 bits, as long as the number of its
places, and whoever has a place holds the lock on one of them. The bytes are never written; the files stay empty.

Deliberate choices; do not change one without reading why:

 1. Locks of the open file (`F_OFD_SETLK`), not of the process, where the system has them: those of a process are lost
    when anything in it closes the same file.
 2. Sixteen files, by the key. The kernel looks through all locks of a file for each one that is asked for: with four
    thousand in one file that took 0.4 ms, with a sixteenth of them in each it takes 10 µs.
 3. A worker begins to look somewhere of its own and goes on where it took a place last, so that what it holds of a
    key lies together: the kernel keeps neighbours as one lock. Where a place is taken, the kernel says how far that
    lock goes, and the search goes on behind it.
 4. Where the files cannot be locked, a worker counts by itself, and says so once.
 5. That a key has no place left is remembered for FULL seconds: whoever hammers at a full key must not make this
    worker look through all its places each time.
 6. Nobody waits here: no call blocks.
 7. A place also shows that whoever holds it is alive: the one of a worker's lease is looked at by the host's other
    workers, which so learn of its death at once.

On several hosts each counts for itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import socket
import struct
import sys
import time
from pathlib import Path

from . import tasks
from .config import PLACES
from .log.base import clock

logger = logging.getLogger("flaskchat")

FILES = 16
STRETCH = PLACES
"""Bytes that a key has."""
FULL = 0.05

_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, process
_TAKEN = (BlockingIOError, PermissionError)


class Place:
    """One place that is held. Giving it back again changes nothing."""

    __slots__ = ("_key", "_number", "_places")

    def __init__(self, places: Places, key: str, number: int) -> None:
        self._places: Places | None = places
        self._key = key
        self._number = number

    def release(self) -> None:
        places, self._places = self._places, None
        if places is not None:
            places._release(self._key, self._number)


class Places:
    """One worker's side of it. Opened after the fork."""

    def __init__(self, folder: Path) -> None:
        """:param folder: is made, for its owner alone; the same for all workers that are to be counted together."""
        self._lock = tasks.Lock()
        self._held: dict[str, set[int]] = {}
        self._full: dict[str, float] = {}
        """Until when (monotonic) a key is not looked at again."""
        self._next: dict[str, int] = {}
        """Where to look next for a place of a key."""
        self._first = int.from_bytes(os.urandom(4), "big")
        self._files: list[int] = []
        self._open_file_locks = sys.platform == "linux"
        self.host = socket.gethostname()
        """Of all processes that see each other's places, and of no others; begins with the host's name."""
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            if folder.stat().st_uid != os.geteuid():  # in a folder that all may write to, somebody may have been first
                raise PermissionError("it is somebody else's")
            for number in range(FILES):
                self._files.append(os.open(folder / f"{number:x}", os.O_RDWR | os.O_CREAT, 0o600))
            self._try_out()
            self.host += f" {clock()} {self._names_files()}"
        except OSError as error:
            logger.warning("files in %s cannot be locked (%s): each worker counts by itself", folder, error)
            self.close()

    def _try_out(self) -> None:
        try:
            self._set(self._files[0], fcntl.F_RDLCK, STRETCH << 41, self._open_file_locks)
        except OSError:
            self._open_file_locks = False
            self._set(self._files[0], fcntl.F_RDLCK, STRETCH << 41, False)

    def _names_files(self) -> str:
        """Names these very files. Not their folder: where it has been cleared meanwhile, as is done with what is old in
        /tmp, the processes from before hold locks on files that are seen no more, and must not be taken for dead.
        """
        digest = hashlib.blake2b(digest_size=8)
        for file in self._files:
            at = os.fstat(file)
            digest.update(b"%x:%x " % (at.st_dev, at.st_ino))
        return digest.hexdigest()

    def take(self, key: str, most: int) -> Place | None:
        """A place of the key's, if fewer than `most` are held on this host; None otherwise."""
        with self._lock:
            held = self._held.get(key, set())
            if len(held) >= most or self._is_full(key):
                return None
            number = self._free(key, held, most) if self._files else self._own(held)
            if number is None:
                self._full[key] = time.monotonic() + FULL
                return None
            self._held.setdefault(key, set()).add(number)
            self._next[key] = number + 1
        return Place(self, key, number)

    def gone(self, host: str, key: str) -> bool:
        """Whether whoever took the key's one place is gone, as far as can be seen from here.

        :param host: theirs, of `host`. Of another's nothing is known.
        """
        if host != self.host or not (self._files and self._open_file_locks):
            return False
        file, begin = self._stretch(key)
        return self._holder(file, begin)[0] == fcntl.F_UNLCK

    def _is_full(self, key: str) -> bool:
        until = self._full.get(key)
        if until is None or time.monotonic() < until:
            return until is not None
        now = time.monotonic()
        self._full = {other: until for other, until in self._full.items() if until > now}
        return False

    def _release(self, key: str, number: int) -> None:
        with self._lock:
            self._full.pop(key, None)
            held = self._held.get(key)
            if held is None or number not in held:
                return  # closed meanwhile
            held.discard(number)
            if not held:
                del self._held[key], self._next[key]
            if self._files:
                file, begin = self._stretch(key)
                self._set(file, fcntl.F_UNLCK, begin + number, self._open_file_locks)

    def close(self) -> None:
        """Give everything back."""
        with self._lock:
            for file in self._files:
                os.close(file)
            self._files = []
            self._held.clear()
            self._next.clear()

    @staticmethod
    def _own(held: set[int]) -> int:
        return next(number for number in range(len(held) + 1) if number not in held)

    def _stretch(self, key: str) -> tuple[int, int]:
        """The key's file, and its first byte there."""
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        number = int.from_bytes(digest, "big")
        return self._files[number % FILES], (number >> 4 & (1 << 40) - 1) * STRETCH

    def _free(self, key: str, held: set[int], most: int) -> int | None:
        """Lock the first free place there is, beginning where this worker took one last."""
        file, begin = self._stretch(key)
        first = self._next.get(key, self._first) % most
        for number, end in ((first, most), (0, first)):
            while number < end:
                if number not in held:
                    behind = self._lock_byte(file, begin + number)
                    if behind is None:
                        return number
                    number = max(number, behind - begin - 1)
                number += 1
        return None

    def _lock_byte(self, file: int, at: int) -> int | None:
        """:returns: None once it is locked; else the first byte behind the lock that is in the way."""
        try:
            self._set(file, fcntl.F_WRLCK, at, self._open_file_locks)
        except _TAKEN:
            if not self._open_file_locks:
                return at + 1
            kind, behind = self._holder(file, at)
            return at + 1 if kind == fcntl.F_UNLCK else behind
        return None

    @staticmethod
    def _holder(file: int, at: int) -> tuple[int, int]:
        """The kind of lock that is in the way of one on this byte, and the first byte behind it."""
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0)
        kind, _, start, length, _ = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))
        return kind, int(start + length)

    @staticmethod
    def _set(file: int, kind: int, at: int, open_file_locks: bool) -> None:
        if open_file_locks:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, at, 1, 0))
        else:
            operation = {fcntl.F_UNLCK: fcntl.LOCK_UN, fcntl.F_RDLCK: fcntl.LOCK_SH | fcntl.LOCK_NB}
            fcntl.lockf(file, operation.get(kind, fcntl.LOCK_EX | fcntl.LOCK_NB), 1, at)
