"""Moving from one database to another, in a test's process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from flaskchat import audit, transfer
from flaskchat.config import Settings
from flaskchat.store.engine import Database
from tests.rooms import Rooms, worker_rooms


@contextlib.contextmanager
def rooms_at(where: str) -> Iterator[Rooms]:
    with worker_rooms(where) as make:
        yield make()


@contextlib.contextmanager
def both(source: str, target: str) -> Iterator[tuple[Database, Database]]:
    with contextlib.ExitStack() as stack:
        found = [transfer.open_source(source), transfer.open_target(target)]
        for database in found:
            stack.callback(database.close)
        yield found[0], found[1]


def fill(rooms: Rooms, replies: int) -> None:
    """Conversations of up to ten replies each, finished, and the lease given back."""
    at = None
    for number in range(replies):
        begun = rooms.begin(f"Question {number} ‮é😀 'quoted' \\ %s", **({"conversation_id": at} if number % 10 else {}))
        at = begun.conversation_id
        rooms.run(begun, f"Answer {number}: ", "ünïcode 中文 " * (number % 7 + 1))
    release(rooms)


def release(rooms: Rooms) -> None:
    rooms.database.write(rooms.holding.release)


def copy(source: str, target: str, patience: float = 0.5, progress: audit.Progress = lambda words: None) -> list[str]:
    with both(source, target) as (one, other):
        return transfer.copy(one, other, past_of(one), progress, patience)


def past_of(source: Database) -> transfer.Past:
    return transfer.past_of(Settings(), source)
