"""One connection to a model's server: name lookup, TCP and TLS, with a time limit on each and a close from anywhere.

Owns sockets and nothing above them: HTTP is `http`'s.

Deliberate choices; do not change one without reading why:

 1. The sockets are `_socket.socket`, the C type below `socket.socket`, never in blocking mode; waiting is
    `select.poll`, looked up when it is called. So the same code waits in a thread, or yields where gevent has patched
    `select`; a stream carries no hub watchers, and a read is one system call without Python around it.
 2. TLS runs over memory buffers (`wrap_bio`). What a read brought is decrypted at once and completely, so nothing is
    ever hidden from epoll inside the TLS layer, and a read is one system call instead of two per record.
 3. `shut` and `close` are two things. A descriptor is closed only by whoever is not using it, or a read could fall on
    a reused number, which is somebody else's reply. `shut` may be called by anyone at any time: the server sees the end
    at once, and whoever waits here is woken.
 4. The end says nothing in TLS and waits for nothing: a model that is stopped should stop.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

from .. import tasks
from ..errors import ModelClosedEarly, ModelUnreachable
from .endpoint import Endpoint

_DAY = 86_400_000  # milliseconds; poll() takes no number that C cannot hold


class Connection:
    __slots__ = ("_bell", "_endpoint", "_incoming", "_outgoing", "_shut", "_sock", "_tls", "ended")

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._sock: _socket.socket | None = None
        self._tls: ssl.SSLObject | None = None
        self._bell: threading.Event | None = None
        self._shut = False
        self.ended = False
        """Whether TLS has ended although the socket may stay open: it will not become readable again."""

    def fileno(self) -> int | None:
        sock = self._sock
        number = -1 if sock is None or self._shut else sock.fileno()
        return number if number >= 0 else None

    @property
    def receive(self) -> Callable[[int], bytes]:
        """A function as `recv` of a socket that does not block: no bytes mean the end. Not kept here, but by whoever
        calls it often: a bound method of its own would make the connection a cycle.
        """
        assert self._sock is not None
        return self._sock.recv if self._tls is None else self._receive_tls

    def open(self, by: float) -> None:
        """Connect to the first address that answers.

        :param by: when it has to be done, on the monotonic clock.
        :raises ModelUnreachable: no connection, or the server's certificate is not trusted.
        :raises ModelClosedEarly: `shut` was called meanwhile.
        """
        try:
            self._connect(self._lookup(by), by)
            if self._endpoint.secure:
                self._handshake(by)
        except TimeoutError:
            raise ModelUnreachable(f"{self._endpoint}: no connection in time") from None
        except OSError as error:  # ssl.SSLError is one
            self._check()
            raise ModelUnreachable(f"{self._endpoint}: {error}") from None

    def shut(self) -> None:
        """End the connection, without giving up its descriptor."""
        self._shut = True
        bell, sock = self._bell, self._sock
        if bell is not None:
            bell.set()
        if sock is not None:
            try:
                sock.shutdown(_socket.SHUT_RDWR)
            except OSError:
                pass  # not connected, or closed already

    def close(self) -> None:
        """Give up the descriptor. Only for whoever uses the connection, or knows that nobody does."""
        if self._sock is not None:
            self._sock.close()

    def send(self, data: bytes, by: float) -> None:
        """:raises TimeoutError: it was not taken until then.
        :raises OSError: the connection broke.
        """
        if self._tls is not None:
            self._tls.write(data)
            data = self._outgoing.read()
        self._send_all(data, by)

    def wait(self, by: float) -> None:
        """Until `receive` has something to give.

        :raises TimeoutError: nothing came until then.
        """
        self._poll(select.POLLIN, by)

    def _check(self) -> None:
        if self._shut:
            raise ModelClosedEarly("closed here while it was opened")

    def _lookup(self, by: float) -> list[Any]:
        """The addresses, looked up in a task of its own: a resolver can neither be interrupted nor be given a time."""
        host, port = self._endpoint.host, self._endpoint.port
        try:
            return _socket.getaddrinfo(host, port, 0, _socket.SOCK_STREAM, 0, _socket.AI_NUMERICHOST)
        except OSError:
            pass  # a name
        found: list[Any] = []
        bell = self._bell = tasks.Event()

        def look() -> None:
            try:
                found.append(socket.getaddrinfo(host, port, type=_socket.SOCK_STREAM))
            except (OSError, UnicodeError) as error:
                found.append(str(error))  # not itself: its frames hold what it would be kept in
            finally:
                bell.set()

        self._check()  # `shut` before this line saw no bell
        tasks.spawn(look, name="flaskchat-lookup")
        if not bell.wait(by - time.monotonic()):
            raise ModelUnreachable(f"{host}: no address in time")
        self._bell = None
        self._check()
        if isinstance(found[0], str):
            raise ModelUnreachable(f"{host}: {found[0]}")
        return list(found[0])

    def _connect(self, addresses: list[Any], by: float) -> None:
        problem: object = "the name has no address"
        for number, (family, kind, protocol, _, address) in enumerate(addresses):
            now = time.monotonic()
            try:
                sock = self._sock = _socket.socket(family, kind, protocol)
                sock.setblocking(False)
                code = sock.connect_ex(address)
                self._check()  # after connecting began: until then `shut` has nothing to shut
                if code == errno.EINPROGRESS:
                    self._poll(select.POLLOUT, now + (by - now) / (len(addresses) - number))
                    code = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
                if code == 0:
                    sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
                    return
                problem = f"{address[0]}: {os.strerror(code)}"
            except TimeoutError:
                problem = f"{address[0]}: no connection in time"
            except OSError as error:
                problem = f"{address[0]}: {error}"
            self.close()
        raise ModelUnreachable(f"{self._endpoint}: {problem}")

    def _handshake(self, by: float) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self._endpoint.context().wrap_bio(self._incoming, self._outgoing, server_hostname=self._endpoint.host)
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                self._send_all(self._outgoing.read(), by)
                self._take_encrypted(by)
            except ssl.SSLError:
                self._answer()  # the alert that says why: the server's operator will look there first
                raise
            else:
                break
        self._send_all(self._outgoing.read(), by)
        self._tls = tls

    def _take_encrypted(self, by: float) -> None:
        receive = self.receive
        while True:
            try:
                data = receive(16384)
            except BlockingIOError:
                self.wait(by)
            else:
                break
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _receive_tls(self, size: int) -> bytes:
        """As `recv`, but all that came is decrypted, which may be a little less or, when it was held back, more."""
        tls, sock = self._tls, self._sock
        assert tls is not None
        assert sock is not None
        data = b"" if self.ended else sock.recv(size)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        pieces: list[bytes] = []
        try:
            while piece := tls.read(size):
                pieces.append(piece)
            self.ended = True
        except ssl.SSLWantReadError:
            if not pieces:
                raise BlockingIOError(errno.EAGAIN, "half a record") from None
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            self.ended = True  # whether the reply was whole is for its body to say
        if self._outgoing.pending:
            self._answer()  # to a key update
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _answer(self) -> None:
        try:
            if self._sock is not None:
                self._sock.send(self._outgoing.read())
        except OSError:
            pass  # a dead connection shows itself when it is read

    def _send_all(self, data: bytes, by: float) -> None:
        assert self._sock is not None
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._sock.send(rest) :]
            except BlockingIOError:
                self._poll(select.POLLOUT, by)

    def _poll(self, events: int, by: float) -> None:
        self._check()
        assert self._sock is not None
        left = by - time.monotonic()
        poll = select.poll()
        poll.register(self._sock.fileno(), events)
        ready = left > 0 and poll.poll(min(max(1.0, left * 1000), _DAY))
        self._check()
        if not ready:
            raise TimeoutError
