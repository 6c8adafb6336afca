"""What a provider is: how to ask a model, and a decoder for the answer.

A provider makes a `Source` for a request. `runs` opens the source in a short task of its own (it may wait: name
lookup, TLS, the head of the answer), then gives it to the pump, which reads it once per tick until it has ended.

A source never waits in `read`, and never touches the log, the store or Flask.
"""

from __future__ import annotations

from typing import Protocol

from ..models import Event, Request


class Decoder(Protocol):
    """Bytes of a response's body in, events out. Pure: no I/O, any split of the bytes gives the same text."""

    @property
    def pending(self) -> bool:
        """Whether the next `feed` raises, without any further bytes."""

    def feed(self, data: bytes) -> list[Event]:
        """Events that these bytes completed. Neighbouring deltas are joined: one `Delta` for one call.

        The last event is `Done`; what follows it is passed over.

        :raises ModelError: the answer is not a reply, or the server reported an error in the stream. Text that came
            before it in the same bytes is not lost: it is returned, and the error raised by the next call.
        """

    def close(self) -> list[Event]:
        """The body has ended. Returns `Done` where the reply was whole without saying so (a missing `[DONE]`).

        :raises ModelClosedEarly: the reply was not whole.
        """


class Source(Protocol):
    """What one run reads from: a model's socket with its decoder, or a Python generator."""

    def open(self) -> None:
        """Ask the model and read the head of its answer. May wait; called in a task of its own.

        :raises ModelBusy: 429 or 5xx; `retry_after` in seconds where the server gave it. A fresh source may be tried.
        :raises ModelUnreachable: no connection; a fresh source may be tried.
        :raises ModelError: anything else; final.
        """

    def fileno(self) -> int | None:
        """The descriptor to watch for reading, or None where the source calls `on_ready` itself."""

    def read(self) -> list[Event]:
        """What has come since the last call, without waiting; ends with a terminal event when the reply is whole.

        :raises ModelError: the model failed; nothing comes after it.
        """

    def close(self) -> bool:
        """Let go of the model at once, from any task and at any time, also while `open` waits.

        :returns: whether the model's connection is closed (or its generator ended) when this returns.
        """


class Provider(Protocol):
    """An adapter to a model's API. One per application, made with it and perhaps before the fork: it opens nothing."""

    name: str

    def source(self, request: Request) -> Source:
        """A source for one attempt at one run. Does no I/O."""
