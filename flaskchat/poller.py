"""One selector per worker: epoll, or kqueue on macOS and BSD, under gevent as well as under threads.

gevent takes `select.epoll` away and offers a selector with a watcher per descriptor. The original is cheaper by far:
the hub watches the selector's own descriptor, one for all sockets, and only while somebody waits.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable
from typing import Any

from . import tasks

READ = 1
HANGUP = 2
_GONE = getattr(select, "EPOLLRDHUP", 0) | getattr(select, "EPOLLHUP", 0) | getattr(select, "EPOLLERR", 0)


def _original(name: str) -> Any:
    if tasks.cooperative():
        from gevent import monkey

        with contextlib.suppress(AttributeError):
            return monkey.get_original("select", name)
    return getattr(select, name, None)


class _Epoll:
    def __init__(self, epoll: Callable[[], Any]) -> None:
        self._epoll = epoll()
        self.fileno: Callable[[], int] = self._epoll.fileno
        self.close: Callable[[], None] = self._epoll.close
        self.unregister: Callable[[int], None] = self._epoll.unregister

    def register(self, fd: int, kind: int) -> None:
        # HUP and ERR are always reported. RDHUP is the client's FIN, without reading what it may have sent before.
        self._epoll.register(fd, select.EPOLLIN if kind == READ else select.EPOLLRDHUP)

    def modify(self, fd: int, writing: bool) -> None:
        self._epoll.modify(fd, select.EPOLLRDHUP | (select.EPOLLOUT if writing else 0))

    def poll(self, timeout: float) -> list[tuple[int, bool]]:
        return [(fd, bool(mask & _GONE)) for fd, mask in self._epoll.poll(timeout, 1024)]


class _Kqueue:
    def __init__(self, kqueue: Callable[[], Any]) -> None:
        self._kqueue = kqueue()
        self.fileno: Callable[[], int] = self._kqueue.fileno
        self.close: Callable[[], None] = self._kqueue.close
        self._hangups: set[int] = set()

    def register(self, fd: int, kind: int) -> None:
        if kind == HANGUP:
            self._hangups.add(fd)
        self._kqueue.control([select.kevent(fd, select.KQ_FILTER_READ, select.KQ_EV_ADD)], 0)  # type: ignore[attr-defined]

    def unregister(self, fd: int) -> None:
        self._hangups.discard(fd)
        self._kqueue.control([select.kevent(fd, select.KQ_FILTER_READ, select.KQ_EV_DELETE)], 0)  # type: ignore[attr-defined]

    def modify(self, fd: int, writing: bool) -> None:
        flag = select.KQ_EV_ADD if writing else select.KQ_EV_DELETE  # type: ignore[attr-defined]
        self._kqueue.control([select.kevent(fd, select.KQ_FILTER_WRITE, flag)], 0)  # type: ignore[attr-defined]

    def poll(self, timeout: float) -> list[tuple[int, bool]]:
        found = []
        for event in self._kqueue.control(None, 1024, timeout):
            gone = bool(event.flags & select.KQ_EV_EOF)  # type: ignore[attr-defined]
            # bytes that a client sent ahead are no news
            if gone or event.ident not in self._hangups or event.filter == select.KQ_FILTER_WRITE:  # type: ignore[attr-defined]
                found.append((event.ident, gone))
        return found


class Poller:
    """Descriptors and whom they belong to. Safe to call from any task; `wait` and `ready` are the pump's."""

    def __init__(self) -> None:
        epoll = _original("epoll")
        self._selector: Any = _Epoll(epoll) if epoll is not None else _Kqueue(_original("kqueue"))
        self._owners: dict[int, Any] = {}
        self._bell_read, self._bell_write = os.pipe()
        for fd in (self._bell_read, self._bell_write):
            os.set_blocking(fd, False)
        self._selector.register(self._bell_read, READ)
        self._rung = False
        self._lock = tasks.native_lock()
        """So that nothing is written once the number is another file's: a model's code may end after all the rest."""

    def register(self, fd: int, kind: int, owner: object) -> None:
        """:param kind: READ, or HANGUP for a peer that has closed its side."""
        self._owners[fd] = owner
        self._selector.register(fd, kind)

    def modify(self, fd: int, *, writing: bool) -> None:
        """Of a HANGUP registration: whether to tell also when the descriptor takes more."""
        self._selector.modify(fd, writing)

    def unregister(self, fd: int) -> None:
        """Must come before the descriptor is closed: its number is given to the next socket at once."""
        if self._owners.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._selector.unregister(fd)

    def ring(self) -> None:
        """Make `wait` return, now or the next time."""
        if not self._rung:
            self._rung = True
            with self._lock, contextlib.suppress(OSError):
                if self._bell_write >= 0:
                    os.write(self._bell_write, b"!")

    def wait(self, timeout: float) -> None:
        """Wait until a descriptor is ready or the bell was rung, at most `timeout` seconds."""
        if tasks.cooperative():
            from gevent import socket

            with contextlib.suppress(TimeoutError):
                socket.wait_read(self._selector.fileno(), timeout=timeout, timeout_exc=TimeoutError())
        else:
            # Level-triggered: looking takes nothing away from `ready`.
            self._selector.poll(timeout)

    def ready(self) -> list[tuple[Any, bool]]:
        """The owners of what is ready, without waiting, each with whether its peer has gone."""
        found = []
        for fd, gone in self._selector.poll(0):
            if fd == self._bell_read:
                with contextlib.suppress(OSError):
                    os.read(self._bell_read, 64)
                self._rung = False  # after the read: a ring in between is seen by the tick that follows
            else:
                owner = self._owners.get(fd)
                if owner is not None:
                    found.append((owner, gone))
        return found

    def close(self) -> None:
        self._owners.clear()
        self._selector.close()
        with self._lock:
            written, self._bell_write = self._bell_write, -1
        os.close(self._bell_read)
        os.close(written)
