"""The sweep: every worker renews its lease, ends the runs of workers that are gone, and keeps the journal short.

Deliberate choices; do not change one without reading why:

 1. A lease is a counter, not a time. Whoever holds it counts up every ROUND seconds; whoever looks counts its own
    rounds in which it stood still. So no clock is compared with another, and a clock that is set minds nobody.
 2. A round of looking counts only when it could write. While somebody else locks the database no worker can renew its
    lease, and no worker can count its neighbour out either.
 3. A worker is gone after GONE_AFTER such rounds: 10 to 12 seconds, with the ending inside the 15 that are promised.
 4. Taking over deletes the lease's row, in the same breath as checking that its counter still stands. What the old
    owner appends later is refused by the log, because the row it names is not there any more.
 5. Rows leave the journal only when no running run began before them and KEEP seconds have passed, so that a
    follower which was held up finds them.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from . import sse, tasks
from .errors import Unavailable
from .feed import encode_parts
from .log.base import Append, Entry
from .log.journal import VERSION, decode_row, encode_row
from .models import Interrupted, Start
from .replay import Replay
from .store import finish
from .store.base import Ending, Lease
from .store.engine import Database
from .store.lease import Holding
from .store.schema import conversations, journal, runs, workers

logger = logging.getLogger("flaskchat")

ROUND = 2.0
GONE_AFTER = 5
CHORES = 600
KEEP = 30.0
PRUNE_ROWS = 2000
CONTROL = "control"
"""Rows of the journal under this name are for everybody, also for the worker that wrote them."""


def announce(entry: Entry) -> sa.Insert:
    """The statement that puts an entry for everybody into the journal."""
    return sa.insert(journal).values(worker_id=CONTROL, version=VERSION, data=encode_row([entry]))


WORKER_LOST = "The server that was writing this reply went away. What it had written is kept."


class Sweeper:
    """One per worker, in a task of its own."""

    def __init__(
        self, database: Database, holding: Holding, *, busy: Callable[[], bool], on_fenced: Callable[[Lease], None],
        claim: Callable[[], None] = lambda: None, chores: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """:param busy: whether this worker has runs, and so a lease to renew.
        :param on_fenced: called when the lease turns out to be lost.
        :param chores: called every CHORES rounds.
        :param claim: called every round while the lease is held, so that no run under it is nobody's.
        """
        self._database = database
        self._holding = holding
        self._busy = busy
        self._on_fenced = on_fenced
        self._claim = claim
        self._chores = chores
        self._still: dict[tuple[str, int], tuple[int, int]] = {}
        """Of each other lease: its counter, and for how many rounds it has stood there."""
        self._marks: deque[tuple[float, int]] = deque()
        self._end = tasks.Event()
        self._task: tasks.Task | None = None

    def start(self) -> None:
        self._task = tasks.spawn(self._run, name="flaskchat-sweep")

    def close(self) -> None:
        self._end.set()
        if self._task is not None:
            self._task.join(2.0)

    def _run(self) -> None:
        rounds = random.randrange(CHORES)  # not all workers at once, and the first time before long
        while not self._end.wait(ROUND * random.uniform(0.9, 1.0)):
            rounds += 1
            try:
                self.round()
                if rounds % CHORES == 0:
                    self._chores()
            except Unavailable:
                pass  # does not count as a round, see 2.
            except Exception:
                logger.exception("a sweep failed; the next comes in %.0f s", ROUND)

    def round(self) -> None:
        """:raises Unavailable: the database could not be written."""
        lease = self._holding.lease
        if not self._holding.registered and not self._database.read(lambda c: self._anything(c, lease)):
            self._still.clear()
            self._database.checkpoint()
            return
        held, orphans = self._database.write(self._count)
        if held:
            self._claim()
        else:
            self._on_fenced(lease)
        past = self._database.read(lambda c: past_of(c, orphans)) if orphans else {}
        for run_id, frames in past.items():
            if self._database.write(lambda c, run_id=run_id, frames=frames: end_orphan(c, run_id, frames)):  # type: ignore[misc]
                logger.warning("run %s: its worker is gone; ended as interrupted", run_id)
        self._prune()
        self._database.checkpoint()

    def _anything(self, c: Connection, lease: Lease) -> bool:
        others = sa.select(workers.c.id).where(workers.c.id != lease.worker_id).exists()
        rows = sa.select(journal.c.id).exists()
        return bool(c.execute(sa.select(sa.or_(others, rows, _orphans().exists()))).scalar())

    def _count(self, c: Connection) -> tuple[bool, list[str]]:
        held = True
        if self._busy():
            held = self._holding.beat(c)
        else:
            self._holding.release(c)
        seen = {}
        for row in c.execute(sa.select(workers).where(workers.c.id != self._holding.lease.worker_id)).all():
            beats, rounds = self._still.get((row.id, row.epoch), (-1, 0))
            rounds = rounds + 1 if beats == row.beats else 0
            if rounds >= GONE_AFTER:
                c.execute(sa.delete(workers).where(workers.c.id == row.id, workers.c.beats == row.beats))
                logger.warning("worker %s (pid %d on %s) is gone", row.id, row.pid, row.host)
            else:
                seen[row.id, row.epoch] = (row.beats, rounds)
        self._still = seen
        return held, [row.id for row in c.execute(_orphans()).all()]

    def _prune(self) -> None:
        now = time.monotonic()
        newest = self._database.read(lambda c: c.execute(sa.select(sa.func.max(journal.c.id))).scalar())
        if newest is None:
            return
        self._marks.append((now, newest))
        mark = None
        while self._marks and now - self._marks[0][0] > KEEP:
            mark = self._marks.popleft()[1]
        if mark is not None:
            self._database.write(lambda c: self._delete(c, mark))

    @staticmethod
    def _delete(c: Connection, mark: int) -> None:
        first = c.execute(sa.select(sa.func.min(runs.c.first_row)).where(runs.c.state == "running")).scalar()
        until = mark if first is None else min(mark, first)
        old = sa.select(journal.c.id).where(journal.c.id <= until).order_by(journal.c.id).limit(PRUNE_ROWS)
        c.execute(sa.delete(journal).where(journal.c.id.in_(old)))


def _orphans() -> sa.Select[Any]:
    """Running runs whose lease is not there any more."""
    owner = sa.and_(workers.c.id == runs.c.worker_id, workers.c.epoch == runs.c.epoch)
    return sa.select(runs.c.id).where(runs.c.state == "running", ~sa.exists().where(owner))


def past_of(c: Connection, run_ids: list[str]) -> dict[str, list[bytes]]:
    """The events of runs whose worker is gone, as far as they came; nothing is added to them any more.

    Read once for all, and not within the transactions that end them: each row holds a tick of all runs of a worker.
    """
    began = c.execute(sa.select(runs.c.id, runs.c.worker_id, runs.c.first_row).where(runs.c.id.in_(run_ids))).all()
    past: dict[str, list[bytes]] = {row.id: [] for row in began}
    rows = (
        sa.select(journal.c.version, journal.c.data)
        .where(journal.c.worker_id.in_({row.worker_id for row in began}))
        .where(journal.c.id > min((row.first_row for row in began), default=0))
        .order_by(journal.c.id)
    )
    for version, data in c.execute(rows):
        for entry in decode_row(version, data):
            if type(entry) is Append and entry.run_id in past:
                frames = past[entry.run_id]
                skip = len(frames) + 1 - entry.seq
                if skip >= 0:  # else a damaged row lies between: what comes after it has no place any more
                    frames.extend(entry.frames[skip:])
    return past


def end_orphan(c: Connection, run_id: str, frames: list[bytes]) -> bool:
    """End one run whose worker is gone, with the text that is in the log. One transaction.

    :returns: whether it was still to be ended.
    """
    row = c.execute(
        sa.select(runs, conversations.c.title)
        .join(conversations, conversations.c.id == runs.c.conversation_id)
        .where(runs.c.id.in_(_orphans().where(runs.c.id == run_id)))
    ).first()
    if row is None:
        return False
    ending, last = orphan_ending(row, frames)
    entries: list[Entry] = [Append(run_id, len(frames) + 1, last, True)]
    c.execute(sa.insert(journal).values(worker_id=CONTROL, version=VERSION, data=encode_row(entries)))
    finish.write(c.connection.driver_connection, Lease(row.worker_id, row.epoch), ending)
    return True


def orphan_ending(row: Row[Any], frames: list[bytes]) -> tuple[Ending, list[bytes]]:
    """:returns: what the store keeps of the run, and the frames that its log lacks."""
    last: list[bytes] = []
    seq = len(frames)
    if not frames:
        seq += 1
        last.append(
            sse.encode(
                seq,
                Start(
                    run_id=row.id, conversation_id=row.conversation_id, message_id=row.message_id,
                    user_message_id=row.user_message_id, model=row.model, title=row.title,
                ),
            )
        )  # fmt: skip
    said = Replay(frames)
    event = Interrupted(WORKER_LOST)
    last.append(sse.encode(seq + 1, event))
    ending = Ending(
        run_id=row.id,
        message_id=row.message_id,
        conversation_id=row.conversation_id,
        state="interrupted",
        text=said.text,
        parts=encode_parts(said.reasoning, said.tools),
        error=msgspec.json.encode(event),
        last_seq=seq + 1,
        frames=b"".join([*frames, *last]),
    )
    return ending, last
