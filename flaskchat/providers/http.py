"""A model behind HTTP/1.1: one connection per reply, opened in a task of its own and then read by the pump.

Owns the request, the answer's head and framing, and the order of text and errors. Knows no provider's format: a decoder
is chosen by the answer's content type.

Deliberate choices; do not change one without reading why:

 1. Reads rely on a level-triggered selector: a read that is not full is taken to have emptied the socket.
 2. One feed of the parser and one of the decoder per read, whatever it brought.
 3. Text that was received comes before the error that ended it: `read` returns the text, `pending` becomes true, and
    the next `read` raises. The selector would not say so; the socket may never be readable again.
 4. `_busy` and `_closed` decide who closes the descriptor: `close` writes `_closed` and then looks at `_busy`; `open`
    and `read` write `_busy` and then look at `_closed`, as they begin and as they end. So at least one sees the other.
    No lock: `read` is called for every stream fifty times a second.
 5. Redirects are refused: they would carry the key, and the conversation, to an address nobody configured. The
    environment's proxies are not used, for the same reason.
 6. The body's end is what the decoder says, not what the framing says: with its last word read, a connection that broke
    right after does not matter; without it, a proper end does not help.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httptools

from ..errors import ModelClosedEarly, ModelError, ModelProtocolError, ModelTimeout, ModelUnreachable
from ..models import Done, Event
from . import base
from .connection import Connection
from .decoding import shown
from .endpoint import Endpoint, refusal

CHUNK = 16384
"""Bytes of one system call; small enough that the allocator keeps the memory at hand."""
MAX_READ = 262144
"""Bytes taken in one `read`, so that one fast model does not keep the others waiting."""
MAX_HEAD = 65536
"""Bytes of the answer's head, and of framing without content later on."""
MAX_REFUSAL = 2048
REFUSAL_WAIT = 2.0
"""Seconds given to the rest of an error's body, which only the log wants."""

_NOT_HTTP = (httptools.HttpParserError, httptools.HttpParserUpgrade)

DecoderFor = Callable[[str], base.Decoder | None]


class _Answer:
    """What the parser reports. Body pieces go straight into a list: no Python call for each."""

    __slots__ = ("complete", "headers", "on_body", "parser", "pieces", "status")

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.pieces: list[bytes] = []
        self.on_body = self.pieces.append
        self.complete = False
        self.parser: Any = None
        """Only while the head is read: kept longer, it would be a cycle that waits for the collector."""

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:  # trailers are not kept
            self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if not self.status:
            status = self.parser.get_status_code()
            if status >= 200:
                self.status = status
            else:  # 100 Continue, 103 Early Hints: the answer is still to come
                self.headers.clear()

    def on_message_complete(self) -> None:
        self.complete = self.status != 0

    def header(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1").strip()


class HTTPSource:
    """One attempt at one reply. See `base.Source` for the contract.

    :param body: the request's JSON.
    :param decoder_for: gives the decoder for a content type, None where that cannot be a reply.
    """

    __slots__ = (
        "__weakref__",
        "_answer",
        "_body",
        "_busy",
        "_closed",
        "_connection",
        "_decoder",
        "_decoder_for",
        "_endpoint",
        "_error",
        "_feed",
        "_framing",
        "_opened",
        "_receive",
        "pending",
    )

    def __init__(self, endpoint: Endpoint, body: bytes, decoder_for: DecoderFor) -> None:
        self._endpoint = endpoint
        self._body = body
        self._decoder_for = decoder_for
        self._decoder: base.Decoder | None = None
        self._connection = Connection(endpoint)
        self._answer = _Answer()
        self._error: ModelError | None = None
        self._framing = 0
        self._busy = False
        self._closed = False
        self._opened = False
        self.pending = False
        """Whether `read` has something to give or to raise though the socket may never become readable again."""

    def fileno(self) -> int | None:
        return self._connection.fileno()

    def open(self) -> None:
        self._busy = True
        try:
            if self._closed:
                raise ModelClosedEarly("closed here before it was opened")
            self._open()
            self._opened = True
        finally:
            self._busy = False
            if self._closed or not self._opened:
                self._connection.close()
        if self._closed:
            raise ModelClosedEarly("closed here while it was opened")

    def read(self) -> list[Event]:
        if not self._opened:  # `_busy` is the opener's until then
            return []
        self._busy = True
        try:
            return [] if self._closed else self._read()
        except ModelError as error:
            if self._closed:  # that was us
                error.bare()
                return []
            raise
        finally:
            self._busy = False
            if self._closed:
                self._connection.close()

    def close(self) -> bool:
        self._closed = True
        self._connection.shut()
        if not self._busy:
            self._connection.close()
        return True

    def _read(self) -> list[Event]:
        decoder = self._decoder
        if decoder is None:
            return []
        if self.pending:
            self.pending = False
            if self._error is not None:
                raise self._error
        ended = False
        problem: ModelError | None = None
        data = b""
        try:
            data = self._receive(CHUNK)
        except BlockingIOError:
            pass
        except OSError as error:  # ssl.SSLError is one
            problem = ModelClosedEarly(f"{self._endpoint}: {error}")
        else:
            if len(data) >= CHUNK:
                data = self._more(data)
            ended = not data or self._connection.ended
        answer = self._answer
        pieces = answer.pieces
        if data:
            try:
                self._feed(data)
            except _NOT_HTTP as error:
                if not answer.complete:
                    problem = ModelProtocolError(f"{self._endpoint}: not HTTP: {error}")
            if pieces:
                self._framing = 0
            else:
                self._framing += len(data)
                if self._framing > MAX_HEAD:
                    problem = ModelProtocolError(f"{self._endpoint}: {self._framing} bytes of framing without content")
        if pieces:
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
        else:
            body = b""
        events = decoder.feed(body) if body or decoder.pending else []
        if decoder.pending:
            self.pending = True
        elif ended or problem is not None or answer.complete:
            return self._last(decoder, events, problem)
        return events

    def _more(self, data: bytes) -> bytes:
        pieces, size = [data], len(data)
        while size < MAX_READ and not self._connection.ended:
            try:
                data = self._receive(CHUNK)
            except OSError:
                break  # empty; or broken, which the next read will see again
            pieces.append(data)
            size += len(data)
            if len(data) < CHUNK:
                break
        return b"".join(pieces)

    def _last(self, decoder: base.Decoder, events: list[Event], problem: ModelError | None) -> list[Event]:
        if events and isinstance(events[-1], Done):
            return events
        try:
            events = events + decoder.close()
        except ModelError as error:
            error.bare()  # the decoder keeps it, also where another says more
            if problem is not None and isinstance(error, ModelClosedEarly):
                error = problem
            if not events:
                raise error from None
            self._error = error
            self.pending = True
        else:
            self.pending = decoder.pending
        return events

    def _open(self) -> None:
        endpoint, connection = self._endpoint, self._connection
        started = time.monotonic()
        by = started + endpoint.first_byte_timeout
        connection.open(min(by, started + endpoint.connect_timeout))
        self._receive = connection.receive
        try:
            self._read_head(self._send(by), by)
        except TimeoutError:
            raise ModelTimeout(f"{endpoint}: no answer within {endpoint.first_byte_timeout:g} s") from None
        except _NOT_HTTP as error:
            raise ModelProtocolError(f"{endpoint}: not HTTP: {error}") from None
        except OSError as error:
            raise ModelUnreachable(f"{endpoint}: {error}") from None
        finally:
            self._answer.parser = None

    def _send(self, by: float) -> OSError | None:
        """Send the request. A server may answer and close before it has read all of it, so a failure is only noted."""
        data, self._body = self._endpoint.head(len(self._body)) + self._body, b""
        try:
            self._connection.send(data, by)
        except (BrokenPipeError, ConnectionResetError) as error:
            return error
        return None

    def _wait_and_receive(self, by: float) -> bytes:
        """Some bytes of the answer; none when it has ended."""
        while True:
            try:
                return self._receive(16384)
            except BlockingIOError:
                self._connection.wait(by)

    def _read_head(self, broken: OSError | None, by: float) -> None:
        answer, size = self._answer, 0
        parser = answer.parser = httptools.HttpResponseParser(answer)
        self._feed = parser.feed_data
        while not answer.status:
            if size > MAX_HEAD:
                raise ModelProtocolError(f"{self._endpoint}: a head of more than {MAX_HEAD} bytes")
            data = self._wait_and_receive(by)
            if not data:
                if self._closed:
                    raise ModelClosedEarly("closed here while it was opened")
                raise ModelUnreachable(f"{self._endpoint}: {broken or 'closed before it answered'}")
            size += len(data)
            self._feed_head(data)
        if not 200 <= answer.status < 300:
            raise refusal(self._endpoint, answer.status, answer.header, self._excerpt(by))
        if answer.header(b"content-encoding").lower() not in ("", "identity"):
            raise ModelProtocolError(f"{self._endpoint}: the answer is compressed, which was not asked for")
        media_type = answer.header(b"content-type").partition(";")[0].strip().lower()
        self._decoder = self._decoder_for(media_type)
        if self._decoder is None:
            found = f"{answer.status} {media_type or 'without a content type'}"
            raise ModelProtocolError(f"{self._endpoint}: {found}: ", said=self._excerpt(by))
        self.pending = bool(answer.pieces) or answer.complete or self._connection.ended

    def _feed_head(self, data: bytes) -> None:
        try:
            self._feed(data)
        except _NOT_HTTP:
            if not self._answer.complete:
                raise

    def _excerpt(self, by: float) -> str:
        """The beginning of a body that is no reply, without the secrets that were sent."""
        by = min(by, time.monotonic() + REFUSAL_WAIT)
        pieces = self._answer.pieces
        try:
            while not self._answer.complete and sum(map(len, pieces)) < MAX_REFUSAL:
                data = self._wait_and_receive(by)
                if not data:
                    break
                self._feed_head(data)
        except (OSError, *_NOT_HTTP):
            pass  # what has come will do; TimeoutError is an OSError
        return self._endpoint.without_secrets(shown(b"".join(pieces)[:MAX_REFUSAL], MAX_REFUSAL))
