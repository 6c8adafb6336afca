"""The log in Redis Streams: a stream for each live run, read by whichever worker has readers of it.

Deliberate choices; do not change one without reading why:

 1. The id of an entry is the seq of its last frame. Redis itself refuses an id that is not above the last one, so a
    repeated append cannot stand twice, and whoever reads from a cursor is given all that has something new in it.
 2. An append that is refused, or finds its stream gone, is looked at (`_settle`): what stands there must be, byte for
    byte, what we have. Then the rest is written from memory, where all events of our live runs are until they end. So
    is what a Redis lost that came back without its last seconds: each new connection is compared first (`_mend`).
 3. Whoever takes a run over first seals its stream, with an entry whose id is above all others, and only then reads it.
    So an owner that was held up and goes on cannot append after the reading. Before the seal its append is read, at the
    seal it is refused, and it learns that it is fenced; there is nothing between. Two that take over at once seal once
    and read the same; the store decides who ends the run. The terminal event follows the seal, at the id above it.
 4. A seal may be lost with a Redis that loses data. So nobody writes a stream anew without asking the store for the
    lease, which is the truth; and when the store says that a run has ended, nothing in Redis matters any more.
 5. A run ends in the store first, whole, and then in its stream. The first is beside the tick (finisher.py): while
    the store stands still, what has ended waits, and the other runs go on. Where the second does not happen (the worker
    died, or Redis is away) the run has ended all the same; it is found in the store (readers.py: `look_after`).
 6. Live streams are never trimmed, only expire where nobody has renewed them for a day. One that has ended stays some
    minutes, for those that are behind.
 7. Entries are small messages of our own (rows.py), each with its version, so that two versions can share a Redis while
    one follows the other.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa

from .. import tasks
from ..errors import Unavailable
from ..store.base import Ending, Fenced, Lease
from ..store.engine import Database
from ..store.schema import runs, workers
from . import streams
from .base import Append, Control, Entry, LogUnavailable, Orphan
from .endings import Endings
from .link import Command, Link, Seldom, Where, refused, sound
from .rows import Rows, finish_orphans
from .server import Server
from .tail import Memory, Tail

logger = logging.getLogger("flaskchat")

TOGETHER = 200
"""Streams that are looked at in one go."""
AT_ONCE = 4 << 20
"""Bytes of lost events that are sent in one go, and one run's beyond it."""


class RedisLog:
    tells = True
    apart = True

    def __init__(self, place: Where, prefix: str, database: Database, memory: Memory) -> None:
        """:param memory: the live runs of this worker."""
        self.calls: tasks.Caller = tasks.Errands()
        self.on_news: Callable[[], None] = lambda: None
        self.behind = False
        self._database = database
        self._memory = memory
        self._keys = streams.Keys(prefix)
        self._endings = Endings(database)
        self._rows = Rows(database)
        """What the database's own log has left, from before this one was chosen; until it is pruned."""
        self._link = Link(place)
        self._server = Server()
        self._tail = Tail(lambda: Link(place), self._keys, memory, lambda: self.on_news())
        self._mended = 0
        """On which connection our runs were compared with their streams."""
        self._doubted = False
        """Whether something was refused, and nothing was written since: that it answers says little then."""
        self._beside = Seldom(place)
        """For all calls but the pump's."""
        self._errands = tasks.Errands()
        self._unwatched: set[str] = set()
        self._forgotten: set[str] = set()
        """Runs whose streams are still to be deleted."""
        self._ended: set[str] = set()
        """Runs that ended while their streams could not be told to expire."""

    def start(self) -> None:
        tasks.spawn(self._greet, name="flaskchat-redis")

    def _greet(self) -> None:
        """Say what is wrong with it before anybody needs it."""
        try:
            self._errands.call(lambda: self._server.look_at(self._beside))
        except LogUnavailable as error:
            logger.warning("%s; it is tried again when it is needed", error)

    def stop(self) -> None:
        self._tail.stop()

    # -- the pump's ------------------------------------------------------------------------------------------------

    def finish(self, lease: Lease, endings: list[Ending], *, patient: bool) -> None:
        self._endings.write(lease, endings, patient=patient)

    def doubt(self) -> None:
        self._mended = 0  # so they are compared, and a seal is met
        self.on_news()

    def turn(self, lease: Lease | None, entries: list[Append], endings: list[Ending]) -> list[Entry]:
        assert not endings
        try:
            if lease is not None:
                self._append(lease, entries)
            elif self._tail.running:
                self._tail.look(self._open())
        except LogUnavailable:
            self._doubted = True
            raise
        if not entries and self._tail.failed is not None:
            raise LogUnavailable(str(self._tail.failed))
        return self._tail.taken()

    def without(self, entries: list[Append]) -> Collection[str]:
        ended = {entry.run_id for entry in entries if entry.ended}
        self._ended.update(ended)
        return ended

    def follow(self) -> list[Entry]:
        link = self._open()
        (now,) = sound(link.ask([b"TIME"]))
        now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
        since = now_ms - streams.CONTROL_KEPT
        (rows,) = sound(link.ask([b"XRANGE", self._keys.control, b"%d" % since, b"+"]))
        self._tail.start(streams.parse_id(rows[-1][0]) if rows else (since, 0))
        return streams.controls(rows, now_ms)

    def listen(self, wanted: bool) -> int | None:
        return None

    def heard(self) -> None:
        pass

    def unfollow(self) -> None:
        self._tail.stop()

    def read(self, run_id: str) -> list[Append]:
        return [entry for rows in self._pages(self._open(), run_id) for entry in streams.appends(rows)]

    def close(self) -> None:
        self._tail.join()
        self._link.close()
        self._beside.close()
        self._database.offload(self._endings.close)

    def _open(self) -> Link:
        """The pump's connection; a new one is looked at first."""
        if not self._link.usable():
            self._link.connect()
            self._server.look_at(self._link)
        return self._link

    def _append(self, lease: Lease, entries: list[Append]) -> None:
        mine = any(run.last_seq for run in self._memory.own())
        changed = mine and (not self._link.usable() or self._mended != self._link.generation)
        if not entries and not self._doubted and not changed:
            return
        link = self._open()
        if self._mended != link.generation:
            self._mend(lease, link)
        commands: list[Command] = []
        for entry in entries:
            key = self._keys.run(entry.run_id)
            commands.append(streams.append(key, entry))
            if entry.ended:
                commands.append(streams.expire(key, streams.ENDED_SECONDS))
            elif entry.seq == 1:
                commands.append(streams.expire(key, streams.LIVE_SECONDS))
        if self._doubted and not entries:
            sound(link.ask(streams.probe(self._keys.probe)))
        replies = iter(link.ask(*commands, stay=True) if commands else ())
        unlike = []
        for entry in entries:
            if refused(next(replies)):
                run = self._memory.get(entry.run_id)
                if run is None or not run.own:  # abandoned meanwhile
                    raise Fenced(lease.worker_id)
                unlike.append((run, entry))
            if entry.ended or entry.seq == 1:
                next(replies)
        if unlike:
            self._settle(lease, link, unlike)
        self._doubted = False

    def _mend(self, lease: Lease, link: Link) -> None:
        """Compare the streams of our live runs with what has been appended to them, and write what they lack."""
        link.ask(streams.newest(self._keys.control))  # of a cluster, the node that has our keys is the one compared
        generation = link.generation
        self._settle(lease, link, [(run, None) for run in self._memory.own() if run.last_seq])
        self._mended = generation

    def _settle(self, lease: Lease, link: Link, ours: Sequence[tuple[Any, Append | None]]) -> None:
        """Make streams of ours hold all that we have.

        :param ours: the runs in memory, each with an entry that is not there yet.
        :raises Fenced: one is sealed, or somebody else has written to it.
        """
        held, mended = False, 0
        for at in range(0, len(ours), TOGETHER):
            some = ours[at : at + TOGETHER]
            found = sound(link.ask(*[streams.newest(self._keys.run(run.run_id)) for run, _ in some]))
            lacking: deque[tuple[Any, Append | None, int]] = deque()
            for (run, entry), rows in zip(some, found, strict=True):
                upto = streams.parse_id(rows[0][0])[0] if rows else 0
                if entry is None and run.last_seq <= upto < streams.MAX_SEQ:
                    continue  # more: an append whose answer was lost, and which is made again
                have = run.last_seq + (len(entry.frames) if entry is not None else 0)
                if upto > have:  # a seal's is above all
                    raise Fenced(lease.worker_id)
                if rows:
                    tasks.sleep(0)  # of a long run, that takes a while
                    known = _known(run, entry)
                    if any(found.frames != known[found.seq - 1 : upto] for found in streams.appends(rows)):
                        raise Fenced(lease.worker_id)
                if upto < have:
                    lacking.append((run, entry, upto))
            if lacking and not held and not self._holds(lease):
                raise Fenced(lease.worker_id)
            lacking = self._kept(lacking)
            held, mended = held or bool(lacking), mended + len(lacking)
            while lacking:
                self._write_again(link, lacking)
        if mended:
            logger.warning("Redis had lost events of %d live runs; they were written again", mended)

    def _write_again(self, link: Link, lacking: deque[tuple[Any, Append | None, int]]) -> None:
        """Take the first of what is lacking, as much as is sent at once, and write it."""
        commands: list[Command] = []
        size = 0
        while lacking and size < AT_ONCE:
            tasks.sleep(0)
            run, entry, upto = lacking.popleft()
            rest = Append(run.run_id, upto + 1, _known(run, entry)[upto:], entry is not None and entry.ended)
            key, size = self._keys.run(run.run_id), size + sum(map(len, rest.frames))
            seconds = streams.ENDED_SECONDS if rest.ended else streams.LIVE_SECONDS
            commands += [streams.append(key, rest), streams.expire(key, seconds)]
        if any(refused(written) for written in link.ask(*commands, stay=True)[::2]):
            raise LogUnavailable("Redis: a stream changes while it is mended")

    def _holds(self, lease: Lease) -> bool:
        held = sa.select(workers.c.id).where(workers.c.id == lease.worker_id, workers.c.epoch == lease.epoch)
        try:
            return self._database.read(lambda c: c.execute(held).scalar()) is not None
        except Unavailable as error:
            raise LogUnavailable(error.detail) from error

    def _kept(self, lacking: deque[tuple[Any, Append | None, int]]) -> deque[tuple[Any, Append | None, int]]:
        """Without those whose streams are gone because their conversations were deleted: they do not come back."""
        there = sa.select(runs.c.id).where(runs.c.id.in_([run.run_id for run, _, _ in lacking]))
        try:
            found = set(self._database.read(lambda c: c.execute(there).scalars().all())) if lacking else set()
        except Unavailable as error:
            raise LogUnavailable(error.detail) from error
        return deque(one for one in lacking if one[0].run_id in found)

    def _pages(self, link: Link, run_id: str) -> Iterator[list[Any]]:
        start = b"-"
        while True:
            command = [b"XRANGE", self._keys.run(run_id), start, b"+", b"COUNT", b"%d" % streams.PAGE]
            (rows,) = sound(link.ask(command))
            yield rows
            if len(rows) < streams.PAGE:
                return
            start = b"(" + rows[-1][0]
            tasks.sleep(0)

    # -- any task's ------------------------------------------------------------------------------------------------

    def _ask(self, *commands: Command) -> list[Any]:
        """:raises Unavailable:"""
        try:
            return sound(self._errands.call(self._beside.ask, *commands))
        except LogUnavailable as error:
            raise _unavailable() from error

    def announce(self, entry: Control) -> None:
        self._ask(streams.tell(self._keys.control, entry))

    def past(self, run_ids: Collection[str]) -> dict[str, list[bytes]]:
        select = sa.select(runs.c.id).where(runs.c.id.in_(run_ids))
        known = self._database.read(lambda c: list(c.execute(select).scalars()))
        before = {} if self._rows.empty() else self._rows.past(known)
        try:
            return {run_id: self._errands.call(self._sealed, run_id) or before.get(run_id, []) for run_id in known}
        except LogUnavailable as error:
            raise _unavailable() from error

    def _sealed(self, run_id: str) -> list[bytes]:
        """A run's frames, to which nothing is added any more."""
        key = self._keys.run(run_id)
        sealed, _ = self._beside.ask(streams.seal(key), streams.expire(key, streams.LIVE_SECONDS))
        refused(sealed)  # it was sealed before
        where = self._beside.generation
        found = streams.joined([e for rows in self._pages(self._beside, run_id) for e in streams.appends(rows)])
        if self._beside.generation != where:
            raise LogUnavailable("Redis: another server than was sealed")
        return found

    def end(self, orphans: Sequence[Orphan]) -> list[str]:
        ended = self._database.write(lambda c: finish_orphans(self._database.executor(c), orphans))
        commands = []
        for orphan in orphans:
            if orphan.ending.run_id in ended:
                key = self._keys.run(orphan.ending.run_id)
                commands += [streams.append_last(key, orphan.last)] if orphan.last.frames else []
                commands += [streams.expire(key, streams.ENDED_SECONDS)]
        try:
            if commands:
                self._errands.call(self._beside.ask, *commands)
        except LogUnavailable:
            self._ended.update(ended)
            logger.info("runs %s: their end could not be told over Redis; the store has it", ", ".join(ended))
        return ended

    def empty(self) -> bool:
        mine = self._memory.own() or self._memory.foreign() or self._forgotten or self._ended
        return not mine and self._rows.empty()

    def prune(self) -> None:
        self._rows.prune()
        self._let_go()
        mine = [run.run_id for run in self._memory.own() if run.last_seq]
        try:
            self._errands.call(self._renew, mine)
            self._errands.call(self._tell, self._forgotten, streams.delete)
            self._errands.call(self._tell, self._ended, partial(streams.expire, seconds=streams.ENDED_SECONDS))
        except LogUnavailable:
            pass  # the pump says so

    def _renew(self, run_ids: list[str]) -> None:
        """Put the expiry of live streams off; one that is not there any more is written again."""
        for at in range(0, len(run_ids), TOGETHER):
            some = run_ids[at : at + TOGETHER]
            found = self._beside.ask(*[streams.expire(self._keys.run(r), streams.LIVE_SECONDS) for r in some])
            live = [self._memory.get(run_id) for run_id in some]
            if any(reply == 0 and run is not None for reply, run in zip(found, live, strict=True)):
                self._mended = 0
                self.on_news()

    def _let_go(self) -> None:
        """Of others' runs that nobody has watched for a round."""
        before = self._unwatched
        self._unwatched = set()
        for run in self._memory.foreign():
            if run.bells or run.held is not None:
                continue
            if run.run_id in before:
                self._memory.drop(run)
                run.close()
            else:
                self._unwatched.add(run.run_id)

    def forget(self, run_ids: Collection[str], first_row: int) -> None:
        if not self._rows.empty():
            self._rows.forget(run_ids, first_row)
        self._forgotten.update(run_ids)
        try:
            self._errands.call(self._tell, self._forgotten, streams.delete)
        except LogUnavailable as error:
            logger.warning("deleted runs are still in Redis, and go as soon as it can be used: %s", error)

    def _tell(self, run_ids: set[str], what: Callable[[bytes], Command]) -> None:
        """Tell Redis something about the streams of runs, which are taken out of `run_ids` when it has heard it."""
        left = list(run_ids)
        for at in range(0, len(left), TOGETHER):
            some = left[at : at + TOGETHER]
            sound(self._beside.ask(*[what(self._keys.run(run_id)) for run_id in some]))
            run_ids.difference_update(some)

    def ready(self) -> None:
        try:
            self._ask(streams.probe(self._keys.probe))  # one without memory answers a PING, and so does a replica
        except Unavailable as error:
            raise LogUnavailable(str(error.__cause__)) from error


def _known(run: Any, entry: Append | None) -> list[bytes]:
    """All frames of a run of ours."""
    known: list[bytes] = run.frames
    return known if entry is None else known + entry.frames


def _unavailable() -> Unavailable:
    return Unavailable("Replies cannot be read at the moment.", code="log_unavailable", retry_after=2)
