"""One worker's store, lease, log and sweep on a real database, without a server around them."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from flaskchat import sse, sweep
from flaskchat.config import Settings
from flaskchat.live import Live, LiveRun
from flaskchat.log.base import Append
from flaskchat.log.open import open_log
from flaskchat.models import Delta, Done, Start
from flaskchat.store import migrate
from flaskchat.store.base import Begun, Command, Ending, Lease
from flaskchat.store.kinds import open_database
from flaskchat.store.lease import Holding
from flaskchat.store.schema import conversations, journal, messages, run_events, runs, workers
from flaskchat.store.sql import Store
from tests.backends import Backend

OWNER = "user:1"
ROOT = Path(__file__).parent.parent
_numbers = itertools.count(1)


class Rooms:
    """A worker that is asked step by step."""

    def __init__(self, where: Path | str, settings: Settings = Settings()) -> None:  # noqa: B008
        """:param where: SQLite's file, or a database's URL.
        :param settings: those that say which log it is.
        """
        self.database = open_database(where if isinstance(where, str) else f"sqlite:///{where}", timeout=1.0)
        migrate.upgrade(self.database)
        self.store = Store(self.database)
        self.holding = Holding()
        self.memory = Live(1 << 20)
        self.journal: Any = open_log(settings, self.database, self.memory)
        self.live: dict[str, list[bytes]] = {}
        self.fenced: list[Lease] = []
        self.sweeper = sweep.Sweeper(
            self.database, self.journal, self.holding, busy=lambda: bool(self.live), on_fenced=self.fenced.append
        )

    def begin(self, text: str = "Hi", **more: Any) -> Begun:
        command = {"action": "send", "client_id": uuid.uuid4().hex, "body_hash": "h", "text": text, **more}
        begun = self.store.begin(OWNER, Command(**command), self.holding, lambda before: before or "parrot")
        if begun.created:
            self.live[begun.run_id] = []
            self.memory.add(LiveRun(begun.run_id, own=True))
        return begun

    def append(self, begun: Begun, *texts: str, lease: Lease | None = None) -> list[bytes]:
        """Put a delta for each text into the log, before them the start where it is not there yet."""
        known = self.live[begun.run_id]
        frames = [] if known else [start_frame(begun)]
        frames += [sse.encode(len(known) + len(frames) + n, Delta(text)) for n, text in enumerate(texts, 1)]
        self.journal.turn(lease or self.holding.lease, [Append(begun.run_id, len(known) + 1, frames)], [])
        self.known(begun, frames)
        return frames

    def known(self, begun: Begun, frames: list[bytes]) -> None:
        """They have been appended."""
        self.live[begun.run_id].extend(frames)
        run = self.memory.get(begun.run_id)
        assert run is not None
        run.extend(frames, False)

    def finish(self, begun: Begun, text: str, *, patient: bool = False) -> None:
        known = self.live[begun.run_id]
        last = sse.encode(len(known) + 1, Done())
        ending = ending_of(begun, text, [*known, last])
        self.end([Append(begun.run_id, len(known) + 1, [last], True)], [ending], patient=patient)
        del self.live[begun.run_id]
        run = self.memory.get(begun.run_id)
        assert run is not None
        self.memory.drop(run)

    def end(
        self, entries: list[Append], endings: list[Ending], lease: Lease | None = None, *, patient: bool = False
    ) -> None:
        """As the pump does it, with its finisher."""
        lease = lease or self.holding.lease
        if self.journal.apart and endings:
            self.journal.finish(lease, endings, patient=patient)
            endings = []
        self.journal.turn(lease, entries, endings)

    def run(self, begun: Begun, *texts: str) -> None:
        """A whole short run."""
        self.append(begun, *texts)
        self.finish(begun, "".join(texts))

    def rows(self, statement: Any) -> list[Any]:
        return list(self.database.read(lambda c: c.execute(statement).all()))

    def state(self, begun: Begun) -> str:
        found = self.store.run(begun.run_id, OWNER)
        assert found is not None
        return found.state

    def text(self, begun: Begun) -> str:
        return str(self.rows(sa.select(messages.c.text).where(messages.c.id == begun.message_id))[0][0])

    def frames(self, begun: Begun) -> list[sse.Frame]:
        return sse.Decoder().feed(self.store.frames(begun.run_id) or b"")

    def leases(self) -> list[str]:
        return [row.id for row in self.rows(sa.select(workers.c.id))]

    def journal_ids(self) -> list[int]:
        return [row.id for row in self.rows(sa.select(journal.c.id).order_by(journal.c.id))]

    def close(self) -> None:
        self.journal.close()
        self.database.close()


def start_frame(begun: Begun) -> bytes:
    start = Start(
        run_id=begun.run_id, conversation_id=begun.conversation_id, message_id=begun.message_id,
        user_message_id=begun.user_message_id, model=begun.model, title=begun.title,
    )  # fmt: skip
    return sse.encode(1, start)


def ending_of(begun: Begun, text: str, frames: list[bytes]) -> Ending:
    return Ending(
        run_id=begun.run_id, message_id=begun.message_id, conversation_id=begun.conversation_id, state="done",
        text=text, parts=b"[]", finish_reason="stop", last_seq=len(frames), frames=b"".join(frames),
    )  # fmt: skip


def where(backend: Backend, folder: Path) -> str:
    """The URL of a backend's database."""
    return str(backend.settings().get("FLASKCHAT_DATABASE_URL", f"sqlite:///{folder / 'chat.sqlite3'}"))


@contextmanager
def worker_rooms(
    where: Path | str, settings: Settings = Settings()  # noqa: B008
) -> Iterator[Callable[[], Rooms]]:
    """Makes workers on one database and closes them all."""
    opened: list[Rooms] = []

    def make() -> Rooms:
        opened.append(Rooms(where, settings))
        return opened[-1]

    try:
        yield make
    finally:
        for rooms in opened:
            rooms.close()


def look(rooms: Rooms) -> list[Any]:
    """What others have appended since it looked last."""
    found: list[Any] = rooms.journal.turn(None, [], [])
    return found


def rounds(rooms: Rooms, number: int) -> None:
    for _ in range(number):
        rooms.sweeper.round()


def count(rooms: Rooms, table: Any) -> int:
    return int(rooms.rows(sa.select(sa.func.count()).select_from(table))[0][0])


TABLES = (conversations, messages, runs, run_events, workers, journal)
