"""A stream's connection, taken over from the server: written to by whoever has news, without a task of its own.

A server that iterates over a response needs a greenlet for as long as the stream lives, and with it a stack, the
request's environment, a parser and buffers: three quarters of what an open stream costs. Once the head is out, none of
them is needed. So a duplicate of the socket is kept here, and the server lets go of the connection (`HandedOver`).

Deliberate choices; do not change one without reading why:

 1. Only where the server is known: gunicorn's gevent worker, plain HTTP/1.x, asked through its own `start_response`. A
    middleware that wraps that function may change what passes, and TLS and HTTP/2 have a state of their own; then the
    server goes on iterating.
 2. The descriptor is a duplicate: the server closes its own, which neither ends the connection nor sends anything.
 3. The head says `Connection: close`, because nobody reads a second request from here.
 4. What the kernel does not take is kept, and nothing is written after it before it is gone; so whoever writes asks
    for one piece at a time, and a client that does not read costs that piece.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import socket
import struct
from typing import Any, NamedTuple

_NO_LINGER = struct.pack("ii", 1, 0)


class HandedOver(BrokenPipeError):
    """Tells the server to let go of a connection without a word: it looks like a client that left."""

    def __init__(self) -> None:
        super().__init__(errno.EPIPE, "the connection was handed over")


class Offer(NamedTuple):
    """A connection that may be taken over once the head has been sent."""

    sock: Any
    chunked: bool
    """Whether the body is in chunks (RFC 9112, section 7.1); otherwise it ends with the connection."""


class Outlet:
    __slots__ = ("_chunked", "_finished", "_send", "_sock", "rest")

    def __init__(self, offer: Offer) -> None:
        """:raises OSError: the connection is closed, or no descriptor is free."""
        fd = os.dup(offer.sock.fileno())
        try:
            self._sock = _socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            raise
        self._sock.setblocking(False)
        self._chunked = offer.chunked
        self._finished = False
        self._send = self._sock.send
        self.rest = b""
        """What the kernel has not taken yet."""

    def fileno(self) -> int:
        return self._sock.fileno()

    def write(self, data: bytes) -> bool:
        """Only when everything before has gone.

        :returns: whether the kernel has taken all of it; if not, call `flush` when it takes more.
        :raises OSError: the connection is broken.
        """
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        return self._put(data)

    def finish(self) -> bool:
        """As `write`, with what says that the body ends here as it should; only once."""
        if self._finished or not self._chunked:
            return True
        self._finished = True
        return self._put(b"0\r\n\r\n")

    def _put(self, data: bytes) -> bool:
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        if sent == len(data):
            return True
        self.rest = data[sent:]
        return False

    def flush(self) -> bool:
        """As `write`, with what was left."""
        with contextlib.suppress(BlockingIOError):
            self.rest = self.rest[self._send(self.rest) :]
        return not self.rest

    def close(self) -> None:
        """Where the body was not finished, a client that knows its framing sees that it was cut."""
        self._sock.close()

    def abort(self) -> None:
        """What the kernel still holds is not to be sent when this is closed."""
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
