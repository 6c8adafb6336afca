"""What the decoder tests share: a reply fed in any pieces, as joined events and the error that ended it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flaskchat.errors import ModelError
from flaskchat.models import Delta, Event, Reasoning
from flaskchat.providers.base import Decoder

Outcome = tuple[list[Event], type[ModelError] | None]


def joined(events: Iterable[Event]) -> list[Event]:
    """Neighbouring texts of one kind as one event."""
    whole: list[Event] = []
    for event in events:
        if whole and type(whole[-1]) is type(event) and isinstance(event, Delta | Reasoning):
            whole[-1] = type(event)(whole[-1].text + event.text)
        else:
            whole.append(event)
    return whole


def play(decoder: Decoder, pieces: Iterable[bytes], close: bool = True) -> Outcome:
    """What a source would see: every piece fed, an error that is pending fetched, the body's end told."""
    events: list[Event] = []
    try:
        for piece in pieces:
            events += decoder.feed(piece)
            if decoder.pending:
                decoder.feed(b"")
        if close:
            events += decoder.close()
            if decoder.pending:
                decoder.feed(b"")
    except ModelError as error:
        return joined(events), type(error)
    return joined(events), None


def splits(data: bytes) -> Iterator[list[bytes]]:
    """Every division into two, and into single bytes."""
    for at in range(len(data) + 1):
        yield [data[:at], data[at:]]
    yield [data[at : at + 1] for at in range(len(data))]


def assert_same_at_every_split(make: Callable[[], Decoder], data: bytes, expected: Outcome) -> None:
    for pieces in splits(data):
        assert play(make(), pieces) == expected, pieces


def sse(*bodies: Any, event: str = "") -> bytes:
    """A stream of one frame for each body; texts and bytes stand as they are."""
    frames = []
    for body in bodies:
        data = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
        frames.append((f"event: {event}\n".encode() if event else b"") + b"data: " + data + b"\n\n")
    return b"".join(frames)
