"""A bell between the processes of a host: a file into which whoever rings writes a byte, and inotify, by which the
kernel tells those that listen. What is rung before somebody looks is one ring; nothing goes through the file itself.

Where there is no inotify (it is Linux'), or no more of it for this user, one can ring and not listen.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from .. import tasks

_MODIFY = 0x2  # linux/inotify.h; its flags for a new instance are those of open(2)


class Bell:
    def __init__(self, path: str) -> None:
        """:raises OSError: the file cannot be made."""
        self._path = os.fsencode(path)
        self._file = self._made()
        self._lock = tasks.native_lock()
        """So that nothing is written once the number is another file's."""
        self._ctypes: Any = None
        self._libc: Any = None
        self._ears = self._watch = -1

    def _made(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _open(self) -> None:
        try:
            import ctypes  # which not every Python has

            self._ctypes, self._libc = ctypes, ctypes.CDLL(None, use_errno=True)
            self._ears = self._called(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        except (ImportError, AttributeError) as error:
            raise OSError(f"there is no inotify: {error}") from None

    def _called(self, result: int) -> int:
        if result < 0:
            number = self._ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    def _renew(self) -> None:
        """Ring where others listen: the file may have been cleared away, and made anew by a worker that came later."""
        file = self._made()
        with contextlib.closing(os.fdopen(file, "wb", buffering=0)), self._lock:
            if not os.path.sameopenfile(file, self._file):
                os.dup2(file, self._file, inheritable=False)

    def ring(self) -> None:
        """Waits for the file system. Never raises: what is not heard is found later."""
        with self._lock, contextlib.suppress(OSError):
            if self._file >= 0:
                os.pwrite(self._file, b"!", 0)

    def listen(self, wanted: bool) -> int:
        """:returns: the descriptor that is readable once somebody has rung.
        :raises OSError: there is nothing to listen with.
        """
        if self._ears < 0:
            self._open()
        if wanted and self._watch < 0:
            self._renew()
            self._watch = self._called(self._libc.inotify_add_watch(self._ears, self._path, _MODIFY))
        elif not wanted and self._watch >= 0:
            self._libc.inotify_rm_watch(self._ears, self._watch)
            self._watch = -1
            self.heard()
        return self._ears

    def heard(self) -> None:
        """Take what was rung so far."""
        if self._ears >= 0:
            with contextlib.suppress(BlockingIOError):
                os.read(self._ears, 4096)

    def close(self) -> None:
        with self._lock:
            file, self._file = self._file, -1
        os.close(file)
        if self._ears >= 0:
            os.close(self._ears)
