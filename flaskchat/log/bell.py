"""A bell between the processes of a host: a file into which whoever rings writes a byte, and inotify, by which the
kernel tells those that listen. What is rung before somebody looks is one ring; nothing goes through the file itself.

Where there is no inotify (it is Linux'), or no more of it for this user, one can ring and not listen.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Any

_MODIFY = 0x2  # linux/inotify.h; its flags for a new instance are those of open(2)


class Bell:
    def __init__(self, path: str) -> None:
        """:raises OSError: the file cannot be made."""
        self._path = os.fsencode(path)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._libc: Any = None
        self._ears = self._watch = -1

    def _open(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        try:
            self._ears = self._called(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        except AttributeError:
            raise OSError("there is no inotify") from None

    @staticmethod
    def _called(result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    def ring(self) -> None:
        """Never raises: what is not heard is found later."""
        with contextlib.suppress(OSError):
            os.pwrite(self._file, b"!", 0)

    def listen(self, wanted: bool) -> int:
        """:returns: the descriptor that is readable once somebody has rung.
        :raises OSError: there is nothing to listen with.
        """
        if self._ears < 0:
            self._open()
        if wanted and self._watch < 0:
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
        os.close(self._file)
        if self._ears >= 0:
            os.close(self._ears)
