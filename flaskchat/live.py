"""The live runs in memory: events as encoded bytes, and who waits for them.

Holds this worker's runs and, while it follows the journal, those of the host's other workers. A run is only ever
appended to, in the order of its seqs; what stands in it has been committed to the log before. Knows nothing of
sockets.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left
from typing import Protocol

from . import tasks
from .log.base import Append

CHUNK = 65536
"""Bytes of one joined write to a reader that is behind."""


class Bell(Protocol):
    def wake(self) -> None: ...


class LiveRun:
    """One run's events from `base + 1` on, each as its frame."""

    __slots__ = (
        "_last", "_stock", "bells", "closed", "ended", "ended_at", "held", "own", "run_id",
    )  # fmt: skip

    def __init__(self, run_id: str, *, own: bool) -> None:
        self.run_id = run_id
        self.own = own
        # How many of the first events are not held any more; of the others, one buffer and where each frame in it ends:
        # an object for each frame would be half as large again. Together, so that a thread which looks finds all three
        # as they belong together, whatever is let go of meanwhile.
        self._stock = (0, array("Q"), bytearray())
        self._last = (-1, -1, b"")
        """What is likely to be taken next, with its cursors: others who watch the same run ask for the same."""
        self.ended = False
        """The last frame is the terminal one."""
        self.closed = False
        """Nothing more will come from here, though the run has not ended: its readers go elsewhere."""
        self.ended_at = 0.0
        self.bells: set[Bell] = set()
        self.held: list[Append] | None = None
        """While the run's past is being read from the log: what was appended meanwhile."""

    @property
    def base(self) -> int:
        """How many of the first events are not held any more."""
        return self._stock[0]

    @property
    def last_seq(self) -> int:
        base, ends, _ = self._stock
        return base + len(ends)

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self._stock[2])

    @property
    def frames(self) -> list[bytes]:
        """All that are held, each by itself."""
        _, ends, buffer = self._stock
        ends = ends[:]  # first: of what comes meanwhile, neither is looked at
        data, start, found = bytes(buffer), 0, []
        for end in ends:
            found.append(data[start:end])
            start = end
        return found

    @property
    def joined(self) -> bytes:
        return bytes(self._stock[2])

    def extend(self, frames: list[bytes], ended: bool) -> None:
        base, ends, data = self._stock
        for frame in frames:
            data += frame
            ends.append(len(data))
        if len(frames) == 1:  # as nearly always: whoever is up to date takes just that
            after = base + len(ends)
            self._last = (after - 1, after, frames[0])
        if ended:
            self.ended = True
            self.ended_at = time.monotonic()

    def forget(self) -> None:
        """Let go of all events that are held; the log has them."""
        self._stock = (self.last_seq, array("Q"), bytearray())

    def wake(self) -> None:
        for bell in tuple(self.bells):
            bell.wake()

    def close(self) -> None:
        self.closed = True
        self.wake()

    def take(self, cursor: int) -> tuple[bytes, int]:
        """Frames after `cursor`, joined, at most about CHUNK bytes, and the cursor after them.

        :raises LookupError: events after the cursor are not held here any more; the log has them.
        """
        base, ends, buffer = self._stock
        index = cursor - base
        if index < 0:
            raise LookupError(self.run_id)
        end = len(ends)
        if end <= index:
            return b"", cursor
        start = ends[index - 1] if index else 0
        if ends[-1] - start > CHUNK:
            end = bisect_left(ends, start + CHUNK, index) + 1
        after = base + end
        before, until, data = self._last
        if before != cursor or until != after:
            data = bytes(buffer[start : ends[end - 1]])
            self._last = (cursor, after, data)
        return data, after


class Live:
    """The live runs of this worker's memory, by id."""

    def __init__(self, max_bytes: int) -> None:
        """:param max_bytes: of others' runs that are held; past it the oldest events of the longest are let go."""
        self._max_bytes = max_bytes
        self.watchers = 0
        """How many wait here for runs of other workers."""
        self._runs: dict[str, LiveRun] = {}
        self._changing = tasks.native_lock()

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, run_id: str) -> LiveRun | None:
        return self._runs.get(run_id)

    def add(self, run: LiveRun) -> LiveRun:
        """Readers of one that stood in its place, brought from the log, are sent away to find this one."""
        with self._changing:
            before = self._runs.get(run.run_id)
            self._runs[run.run_id] = run
        if before is not None:
            before.close()
        return run

    def drop(self, run: LiveRun) -> None:
        """Let go of a run; another may stand in its place by now."""
        with self._changing:
            if self._runs.get(run.run_id) is run:
                del self._runs[run.run_id]

    def drop_foreign(self) -> None:
        """Let go of all that other workers write, and send their readers away."""
        for run in self.foreign():
            self.drop(run)
            run.close()

    def watch(self, run: LiveRun, bell: Bell) -> None:
        """Ring `bell` when the run moves or is closed."""
        run.bells.add(bell)
        self.watchers += not run.own

    def unwatch(self, run: LiveRun, bell: Bell) -> None:
        if bell in run.bells:
            run.bells.discard(bell)
            self.watchers -= not run.own

    def foreign(self) -> list[LiveRun]:
        return [run for run in tuple(self._runs.values()) if not run.own]  # others may add to them

    def own(self) -> list[LiveRun]:
        return [run for run in tuple(self._runs.values()) if run.own]

    def apply(self, entry: Append) -> None:
        """Take in what another worker has appended. What is there already is passed over; a gap closes the run, as does
        an end that comes before what is there.
        """
        run = self._runs.get(entry.run_id)
        if run is None:
            if entry.seq != 1:
                return  # its beginning was never seen; a reader that asks for it makes us look again
            run = self.add(LiveRun(entry.run_id, own=False))
        if run.held is not None:
            with self._changing:
                if run.held is not None:
                    run.held.append(entry)
                    return
        self._take_in(run, entry)

    def _take_in(self, run: LiveRun, entry: Append) -> None:
        if run.own or run.ended or run.closed:
            return
        skip = run.last_seq + 1 - entry.seq
        if skip < 0:
            self.drop(run)
            run.close()
            return
        if skip < len(entry.frames):
            run.extend(entry.frames[skip:] if skip else entry.frames, entry.ended)
            run.wake()
        elif entry.ended:  # before what was seen here: the log has lost some, and whoever reads it has to be told
            self.drop(run)
            run.close()

    def loading(self, run_id: str) -> LiveRun:
        """A run whose past is about to be read from the log: appends wait until `loaded`."""
        run = LiveRun(run_id, own=False)
        run.held = []
        return self.add(run)

    def loaded(self, run: LiveRun, past: list[Append]) -> None:
        """Takes in the past and then what was appended since. Another thread may append meanwhile: that waits until all
        that came before it is in.
        """
        while run.held is not None:
            for entry in past:
                self._take_in(run, entry)
            with self._changing:
                past = run.held
                run.held = [] if past else None

    def tidy(self, *, keep_ended: float) -> None:
        """Let go of others' runs that ended `keep_ended` seconds ago, and of the oldest events past the limit."""
        now = time.monotonic()
        foreign = self.foreign()
        for run in foreign:
            if run.ended and now - run.ended_at > keep_ended:
                self.drop(run)
        total = sum(run.size for run in foreign)
        for run in sorted(foreign, key=lambda run: run.size, reverse=True):
            if total <= self._max_bytes:
                break
            total -= run.size
            run.forget()

    def close(self) -> None:
        for run in list(self._runs.values()):
            run.close()
        self._runs.clear()
