"""Spawn, event, sleep, lock: greenlets where gevent has patched the process, threads elsewhere.

The one place that knows which of the two it is. Nothing here is decided at import time: gunicorn's gevent worker
patches after it has loaded its configuration. With gevent's patches `threading` itself is made of greenlets, so most of
this is the standard library, looked up when called; what is not is `Offloader` and `Waiter`.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def Event() -> threading.Event:  # noqa: N802
    return threading.Event()


def Lock() -> threading.Lock:  # noqa: N802
    return threading.Lock()


def native_lock() -> Any:
    """A lock of the system's also where gevent has patched: for a few instructions in which nobody can wait."""
    if not cooperative():
        return threading.Lock()
    from gevent import monkey

    return monkey.get_original("_thread", "allocate_lock")()


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def cooperative() -> bool:
    """Whether this process runs on greenlets."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


class Task(Protocol):
    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, at most `timeout` seconds."""

    def kill(self) -> None:
        """Raise GreenletExit where it waits. Threads cannot be ended: for them this does nothing."""

    def is_alive(self) -> bool: ...


class _Greenlet:
    __slots__ = ("greenlet",)

    def __init__(self, greenlet: Any) -> None:
        self.greenlet = greenlet

    def join(self, timeout: float | None = None) -> None:
        self.greenlet.join(timeout)

    def kill(self) -> None:
        self.greenlet.kill(block=False)

    def is_alive(self) -> bool:
        return not self.greenlet.dead


class _Thread:
    __slots__ = ("thread",)

    def __init__(self, thread: threading.Thread) -> None:
        self.thread = thread

    def join(self, timeout: float | None = None) -> None:
        self.thread.join(timeout)

    def kill(self) -> None:
        pass

    def is_alive(self) -> bool:
        return self.thread.is_alive()


def spawn(function: Callable[..., object], *args: object, name: str = "flaskchat") -> Task:
    """Run `function` beside the caller. Whoever spawns owns the task; the function logs its own end."""
    if cooperative():
        import gevent

        return _Greenlet(gevent.spawn(function, *args))
    thread = threading.Thread(target=function, args=args, name=name, daemon=True)
    thread.start()
    return _Thread(thread)


def _call(given: list[Any], function: Callable[..., object], args: Any, kwargs: Any) -> None:
    """For `_given`, in another task. The exception is carried as a value: whoever runs the task would print every one.
    Many are answers.
    """
    try:
        answer = (function(*args, **kwargs), None)
        if not given:
            given.append(answer)
    except BaseException as error:
        if not given:
            given.append((None, error))


_GONE = object()
"""Stands where a call gives its answer, once nobody waits for it."""


def _given(given: list[Any]) -> Any:
    """What a call gave: returned, or raised, so that no frame keeps the error. Else the error, the frames that it came
    through and all that is in them would hold each other until the collector comes.
    """
    value, error = given.pop()
    if error is None:
        return value
    try:
        raise error
    finally:
        del error


class Offloader:
    """A few native threads for calls that may wait in C (a database lock, a file's sync), so that the hub never does.

    Without gevent the caller's own thread does it, but no more of them at once either: whoever asks for one thread
    uses something that is not made for two. A pool of its own, not the hub's: that one looks up names, and a name
    server that does not answer would hold the database up.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._places = threading.BoundedSemaphore(size)
        self._pool: Any = None

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` and see it through: a greenlet that is killed while it waits goes only after the function has
        ended, so that what the function uses (a connection, say) is never handed on while a thread is still in it.
        """
        if not cooperative():
            with self._places:
                return function(*args, **kwargs)
        if self._pool is None:
            from gevent.threadpool import ThreadPool

            self._pool = ThreadPool(self._size)
        given: list[Any] = []
        result = self._pool.spawn(_call, given, function, args, kwargs)
        try:
            result.get()
        except BaseException:
            while not result.ready():
                with contextlib.suppress(BaseException):  # whoever is told to go once more has been told
                    result.wait()
            given.clear()
            raise
        value: T = _given(given)
        return value

    def close(self) -> None:
        if self._pool is not None:
            self._pool.kill()
            self._pool = None


class Errands:
    """One at a time, for calls that wait without holding the hub, but must not be cut in two: each is made in a
    greenlet that nobody knows of, so that whoever kills its caller does not kill it. Without gevent nobody is killed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function`; it comes to its end also where the caller does not."""
        if not cooperative():
            with self._lock:
                return function(*args, **kwargs)
        import gevent

        given: list[Any] = []
        try:
            gevent.spawn(self._carry_out, given, function, args, kwargs).get()
        except BaseException:
            given[:] = [_GONE]
            raise
        value: T = _given(given)
        return value

    def _carry_out(self, given: list[Any], function: Callable[..., object], args: Any, kwargs: Any) -> None:
        with self._lock:
            _call(given, function, args, kwargs)

    def close(self) -> None:
        pass


class Caller(Protocol):
    """An `Offloader` or `Errands`."""

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...

    def close(self) -> None: ...


def wait_readable(fd: int, timeout: float) -> bool:
    """Wait until `fd` can be read, or its peer has closed it, at most `timeout` seconds.

    Nobody may close `fd` meanwhile: libev ends the process over a watched descriptor that is not open.

    :returns: whether it can.
    """
    if cooperative():
        from gevent import socket

        try:
            socket.wait_read(fd, timeout=timeout, timeout_exc=TimeoutError())
        except TimeoutError:
            return False
        return True
    poll = select.poll()  # `select` takes no descriptor above 1023, which a server with many readers has
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def shut(sock: Any, how: int) -> None:
    """Shut a socket down under whoever waits on it, so that a read finds its end and a write a broken pipe.

    Past gevent, whose own `shutdown` raises EBADF in the greenlet that waits; servers log the stack of that, as the
    fault that it would be elsewhere.

    :raises OSError: it is not connected any more.
    """
    same = _socket.socket(fileno=os.dup(sock.fileno()))  # another descriptor of the same connection
    try:
        same.shutdown(how)
    finally:
        same.close()


class Waiter(Protocol):
    """A one-place bell between one that waits and any that wake. A wake before the wait is not lost."""

    def wait(self) -> None: ...

    def wake(self) -> None: ...


class _ThreadWaiter:
    __slots__ = ("_bell",)

    def __init__(self) -> None:
        self._bell = threading.Event()

    def wait(self) -> None:
        self._bell.wait()
        self._bell.clear()

    def wake(self) -> None:
        self._bell.set()


class _GreenletWaiter:
    """A switch into the hub and back: no timer, no queue, no lock. Only for greenlets of one hub."""

    __slots__ = ("_current", "_greenlet", "_hub", "_rung")

    def __init__(self) -> None:
        import gevent

        self._current = gevent.getcurrent
        self._hub = gevent.get_hub()
        self._greenlet: Any = None
        self._rung = False

    def wait(self) -> None:
        if not self._rung:
            self._greenlet = self._current()
            try:
                while not self._rung:
                    self._hub.switch()
            finally:
                self._greenlet = None
        self._rung = False

    def wake(self) -> None:
        if not self._rung:
            self._rung = True
            if self._greenlet is not None:
                self._hub.loop.run_callback(self._switch)

    def _switch(self) -> None:
        if self._greenlet is not None:
            self._greenlet.switch()


def waiter() -> Waiter:
    return _GreenletWaiter() if cooperative() else _ThreadWaiter()


class Answer:
    """One that waits for a yes or no of another task."""

    __slots__ = ("_given", "_waiter")

    def __init__(self) -> None:
        self._waiter = waiter()
        self._given = False

    def wait(self) -> bool:
        """As it was given, also when that was before."""
        self._waiter.wait()
        return self._given

    def give(self, answer: bool) -> None:
        self._given = answer
        self._waiter.wake()
