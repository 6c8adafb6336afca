"""What a run has said so far: from memory, or from the log where memory has let go of it."""

from __future__ import annotations

from . import tasks
from .errors import Unavailable
from .live import LiveRun
from .log.base import LogUnavailable
from .models import Reset
from .pump import Pump
from .replay import Replay
from .store.sql import Store


class Past:
    """One per worker."""

    def __init__(self, pump: Pump, store: Store) -> None:
        self._pump = pump
        self._store = store
        self._turn = tasks.Lock()

    def frames(self, run: LiveRun) -> list[bytes]:
        """From the first one on; fewer than there were when some have left the log.

        :raises LogUnavailable:
        """
        if run.base == 0:
            return run.frames
        past: list[bytes] = []
        for entry in self._pump.read(run.run_id):
            if entry.seq > len(past) + 1:
                break
            past.extend(entry.frames[len(past) + 1 - entry.seq :])
        return past

    def reset(self, run: LiveRun) -> Reset:
        """For who has lost their place in it.

        :raises Unavailable: what memory has let go of is not to be had.
        """
        with self._turn:
            seq = run.last_seq  # before the log is read: the run goes on meanwhile
            try:
                past = self.frames(run)[:seq]
            except LogUnavailable:
                past = []
            if len(past) < seq:
                raise unreadable()
            return Reset(seq, self._text(past))

    def text(self, frames: bytes) -> str:
        """What the frames of a run that is over say."""
        with self._turn:
            return self._text([frames])

    def _text(self, frames: list[bytes]) -> str:
        """Off the hub: a reply of some minutes takes longer than it may be held. And one at a time: the threads are the
        database's, and the beat of this worker's lease must not wait behind as many resets as anybody may ask for.
        """
        return self._store.database.offload(lambda: Replay(frames).text)


def unreadable() -> Unavailable:
    return Unavailable("Replies cannot be read at the moment.", code="log_unavailable", retry_after=2)
