"""Requests whose bodies are on their way: whoever takes too long to send one is cut off.

Neither gunicorn nor Werkzeug bounds the time of a body. One that comes a byte a second, or never, would hold its
connection for as long as the client likes; a worker has only so many, and health checks and Stop need them too. For the
same reason only so many are waited for at once.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

from . import tasks
from .errors import Unavailable
from .pump import Pump


class Bodies:
    """All bodies that one worker waits for. Has no timer: the pump's checks look, at most every five seconds."""

    def __init__(self, pump: Pump, timeout: float, most: int) -> None:
        """:param timeout: seconds that a body may take.
        :param most: bodies that are waited for at once.
        """
        self._timeout = timeout
        self._most = most
        self._arriving: dict[Arrival, float] = {}
        pump.checks.append(self.check)

    @contextlib.contextmanager
    def arriving(self, sock: Any) -> Iterator[Arrival]:
        """A block that reads a body from `sock`. Past the time its reads find the end of the connection.

        :raises Unavailable: `full`; the connection ends with the answer, else the server would wait for the body.
        """
        arrival = Arrival(sock)
        if len(self._arriving) >= self._most:
            arrival.cut()
            raise Unavailable("As many requests as may be are on their way already.", code="full", retry_after=2)
        self._arriving[arrival] = time.monotonic()
        try:
            yield arrival
        finally:
            del self._arriving[arrival]

    def check(self, now: float) -> None:
        for arrival, since in list(self._arriving.items()):
            if now - since > self._timeout:
                arrival.cut()


class Arrival:
    """One body being read; `late` once it was cut off."""

    def __init__(self, sock: Any) -> None:
        self._socket = sock
        self.late = False

    def cut(self) -> None:
        # The reading side alone: whoever waits there is woken, be it a greenlet or a thread, and the answer, which says
        # why, still gets out.
        self.late = True
        with contextlib.suppress(OSError, AttributeError):
            tasks.shut(self._socket, socket.SHUT_RD)
