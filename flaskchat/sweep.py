"""The sweep: every worker renews its lease, ends the runs of workers that are gone, and keeps the log short.

Deliberate choices; do not change one without reading why:

 1. A lease is a counter, not a time. Whoever holds it counts up every ROUND seconds; whoever looks counts its own
    rounds in which it stood still. So no clock is compared with another, and a clock that is set minds nobody.
 2. A round of looking counts only when it could write. While somebody else locks the database no worker can renew its
    lease, and no worker can count its neighbour out either.
 3. A worker is gone after GONE_AFTER such rounds: 8 to 10 seconds, so that the ending is within the 15 promised
    also on a machine that has much to do.
 4. A worker of the same host whose process is gone (`kill -9`) is seen to be gone in the next round: the kernel has
    taken back the lock that showed it alive (see places.py). The counting is for those that stand still, and for other
    hosts'.
 5. Counting up is on time whatever else there is to do: a sync of the disk and the endings of hundreds of runs take
    seconds, and who counts late looks gone to the others, and finds late that they are. So the rest of a round is in a
    task beside, one at a time, and takes up again what it had no time for.
 6. Taking over deletes the lease's row, in the same breath as checking that its counter still stands. What the old
    owner appends later is refused by the log, because the row it names is not there any more.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from . import metrics, sse, tasks
from .errors import Unavailable
from .feed import encode_parts
from .log.base import Append, Log, Orphan
from .models import Done, Error, Interrupted, Start, Stopped, Terminal
from .replay import Replay
from .store.base import Ending, Lease
from .store.engine import Database
from .store.lease import Holding
from .store.schema import conversations, runs, workers

logger = logging.getLogger("flaskchat")

NAME = "flaskchat-sweep"
ROUND = 2.0
GONE_AFTER = 4
CHORES = 600
TOGETHER = 20
"""Runs that are ended in one transaction: each waits for the database's one writer, and a worker may have hundreds."""

_ENDS: dict[str, type[Terminal]] = {kind.event: kind for kind in (Done, Error, Stopped, Interrupted)}

WORKER_LOST = "The server that was writing this reply went away. What it had written is kept."


class Sweeper:
    """One per worker, in a task of its own."""

    def __init__(
        self, database: Database, log: Log, holding: Holding, *, busy: Callable[[], bool],
        on_fenced: Callable[[Lease], None], claim: Callable[[], None] = lambda: None,
        look_after: Callable[[], None] = lambda: None, chores: Callable[[], bool] = lambda: False,
        gone: Callable[[str, str], bool] = lambda host, worker_id: False,
        counts: metrics.Metrics | None = None,
    ) -> None:  # fmt: skip
        """:param busy: whether this worker has runs, and so a lease to renew.
        :param on_fenced: called when the lease turns out to be lost.
        :param gone: whether a lease's process, on this host, is certainly gone; must not wait.
        :param look_after: called every round: others' runs that are watched here may be over.
        :param chores: called every CHORES rounds, and in the next one as long as it says that more is left.
        :param claim: called every round while the lease is held, so that no run under it is nobody's.
        """
        self._database = database
        self._log = log
        self._holding = holding
        self._busy = busy
        self._on_fenced = on_fenced
        self._claim = claim
        self._look_after = look_after
        self._chores = chores
        self._gone = gone
        self._metrics = counts or metrics.Metrics()
        self._still: dict[tuple[str, int], tuple[int, int]] = {}
        """Of each other lease: its counter, and for how many rounds it has stood there."""
        self._end = tasks.Event()
        self._task: tasks.Task | None = None
        self._rest: tasks.Task | None = None
        self._due = False
        """Whether the chores are to be done."""

    def start(self) -> None:
        self._task = tasks.spawn(self._run, name=NAME)

    def close(self) -> None:
        self._end.set()
        for task in (self._task, self._rest):
            if task is not None:
                task.join(2.0)

    def _run(self) -> None:
        rounds, pause = random.randrange(CHORES), 0.0  # chores not of all workers at once, and before long
        while not self._end.wait(pause):
            rounds += 1
            began = time.monotonic()
            try:
                orphans = self.look()
                if self._rest is None or not self._rest.is_alive():
                    self._due = self._due or rounds % CHORES == 0
                    self._rest = tasks.spawn(self._see_to_the_rest, orphans, name=NAME)
            except Unavailable:
                pass  # does not count as a round, see 2.
            except Exception:
                logger.exception("a sweep failed; the next comes in %.0f s", ROUND)
            pause = max(ROUND / 2, ROUND * random.uniform(0.9, 1.0) - (time.monotonic() - began))

    def _see_to_the_rest(self, orphans: list[str] | None) -> None:
        try:
            self.rest(orphans)
            if self._due:
                self._due = self._chores()
        except Unavailable:
            pass  # the next round finds it
        except Exception:
            logger.exception("a part of a sweep failed; it is tried again in %.0f s", ROUND)

    def round(self) -> None:
        """Look, and see to the rest.

        :raises Unavailable: the database could not be used.
        """
        self.rest(self.look())

    def look(self) -> list[str] | None:
        """Renew our lease, and count the others'.

        :returns: the runs whose worker is gone; None where there is nothing at all to look after.
        :raises Unavailable: the database could not be written.
        """
        lease = self._holding.lease
        if not (
            self._holding.registered
            or self._database.read(lambda c: self._anything(c, lease))
            or not self._log.empty()
        ):
            self._still.clear()
            return None
        held, orphans, self._still = self._database.write(self._count)
        if not held:
            self._on_fenced(lease)
        return orphans

    def rest(self, orphans: list[str] | None) -> None:
        """What need not be on time.

        :raises Unavailable: the database or the log could not be used.
        """
        self._claim()
        self._database.checkpoint()  # before the log is asked, which may be elsewhere and away
        self._look_after()
        if orphans:
            self.end(orphans)
        if orphans is not None:
            self._log.prune()

    def end(self, run_ids: Sequence[str]) -> None:
        """End runs whose worker is gone, with the text that is in the log. At most for about a round; those that are
        left are found again.
        """
        past, until = self._log.past(run_ids), time.monotonic() + ROUND
        found = list(past)
        random.shuffle(found)  # or one that takes too long would keep the same others each time
        for at in range(0, len(found), TOGETHER):
            some = found[at : at + TOGETHER]
            try:
                self._end_some({run_id: past[run_id] for run_id in some})
            except Unavailable:
                for run_id in some:
                    with contextlib.suppress(Unavailable):
                        self._end_some({run_id: past[run_id]})
                    if time.monotonic() > until + ROUND:
                        break
            if time.monotonic() > until:
                break

    def _end_some(self, past: dict[str, list[bytes]]) -> None:
        for run_id in self._log.end(self._database.read(partial(orphaned, past=past))):
            logger.warning("run %s: its worker is gone; ended as interrupted", run_id)
            self._metrics.add(metrics.TAKEOVERS)
            self._metrics.add(metrics.REPLIES_ENDED, "interrupted")

    def _anything(self, c: Connection, lease: Lease) -> bool:
        others = sa.select(workers.c.id).where(workers.c.id != lease.worker_id).exists()
        return bool(c.execute(sa.select(sa.or_(others, _orphans().exists()))).scalar())

    def _count(self, c: Connection) -> tuple[bool, list[str], dict[tuple[str, int], tuple[int, int]]]:
        """May be begun anew after a deadlock, and so changes nothing here."""
        held = True
        if self._busy():
            held = self._holding.beat(c)
        else:
            self._holding.release(c)
        seen = {}
        for row in c.execute(sa.select(workers).where(workers.c.id != self._holding.lease.worker_id)).all():
            beats, rounds = self._still.get((row.id, row.epoch), (-1, 0))
            rounds = rounds + 1 if beats == row.beats else 0
            if rounds >= GONE_AFTER or self._gone(row.host, row.id):
                c.execute(sa.delete(workers).where(workers.c.id == row.id, workers.c.beats == row.beats))
                logger.warning("worker %s (pid %d on %s) is gone", row.id, row.pid, row.host.partition(" ")[0])
            else:
                seen[row.id, row.epoch] = (row.beats, rounds)
        return held, [row.id for row in c.execute(_orphans()).all()], seen


def _orphans() -> sa.Select[Any]:
    """Running runs whose lease is not there any more."""
    owner = sa.and_(workers.c.id == runs.c.worker_id, workers.c.epoch == runs.c.epoch)
    return sa.select(runs.c.id).where(runs.c.state == "running", ~sa.exists().where(owner))


def orphaned(c: Connection, past: dict[str, list[bytes]]) -> list[Orphan]:
    """How those that are still running are to end. Puts their texts together, and so is not for the hub."""
    wanted = sa.select(runs, conversations.c.title).join(conversations, conversations.c.id == runs.c.conversation_id)
    orphans = []
    for row in c.execute(wanted.where(runs.c.id.in_(list(past)), runs.c.state == "running")).all():
        frames = past[row.id]
        ending, last = orphan_ending(row, frames)
        orphans.append(Orphan(Lease(row.worker_id, row.epoch), ending, Append(row.id, len(frames) + 1, last, True)))
    return orphans


def orphan_ending(row: Row[Any], frames: list[bytes]) -> tuple[Ending, list[bytes]]:
    """:returns: what the store keeps of the run, and the frames that its log lacks: none where it has the run's end,
        which only the database has lost.
    """
    said = Replay(frames)
    last: list[bytes] = []
    event: Terminal
    if said.terminal is not None:
        event = msgspec.json.decode(said.terminal.data, type=_ENDS[said.terminal.event])
    else:
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
        event = Interrupted(WORKER_LOST)
        last.append(sse.encode(seq + 1, event))
    usage = event.usage if isinstance(event, Done) else None
    ending = Ending(
        run_id=row.id,
        message_id=row.message_id,
        conversation_id=row.conversation_id,
        state=event.event,  # type: ignore[arg-type]  # a str to mypy, of the four that a state may be
        text=said.text,
        parts=encode_parts(said.reasoning, said.tools),
        finish_reason=event.finish_reason if isinstance(event, Done) else None,
        usage=msgspec.json.encode(usage) if usage is not None else None,
        tokens=usage.total if usage is not None else None,
        error=msgspec.json.encode(event) if isinstance(event, Error | Interrupted) else None,
        last_seq=len(frames) + len(last),
        frames=b"".join([*frames, *last]),
    )
    return ending, last
