"""What the tests of the log in Redis share: keys and commands, and a run that is watched by another worker."""

from __future__ import annotations

from typing import Any

from flaskchat import sse
from flaskchat.live import LiveRun
from flaskchat.log import streams
from flaskchat.log.base import Append
from flaskchat.models import Delta
from flaskchat.store.base import Begun
from tests.rooms import Rooms


def key(rooms: Rooms, begun: Begun) -> bytes:
    found: bytes = rooms.journal._keys.run(begun.run_id)
    return found


def redis(rooms: Rooms, *words: bytes | str) -> Any:
    (reply,) = rooms.journal._beside.ask([word if isinstance(word, bytes) else word.encode() for word in words])
    assert not isinstance(reply, Exception), reply
    return reply


def events(rooms: Rooms, begun: Begun) -> list[bytes]:
    return streams.joined(rooms.journal.read(begun.run_id))


class Bell:
    def wake(self) -> None:
        pass


def watch(rooms: Rooms, begun: Begun) -> LiveRun:
    """Another worker's run, as a reader brings it into memory."""
    run = rooms.memory.loading(begun.run_id)
    rooms.memory.loaded(run, rooms.journal.read(begun.run_id))
    rooms.memory.watch(run, Bell())
    return run


def delta(rooms: Rooms, begun: Begun, text: str) -> Append:
    seq = len(rooms.live[begun.run_id]) + 1
    return Append(begun.run_id, seq, [sse.encode(seq, Delta(text))])
