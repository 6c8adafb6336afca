"""What a log is: a place where events of live runs are kept before anybody is sent them.

The log trusts its caller that seqs of a run are dense and from 1; what it checks is the lease: an owner that has been
taken over can append nothing more.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from ..errors import FlaskChatError
from ..store.base import Ending, Lease
from ..tasks import Caller


class Append(msgspec.Struct, array_like=True, tag="a", frozen=True, gc=False):
    """Events of one run, as the frames that readers are sent. `seq` is that of the first."""

    run_id: str
    seq: int
    frames: list[bytes]
    ended: bool = False


class Orphan(NamedTuple):
    """A run whose worker is gone, and how it is to end."""

    lease: Lease
    """Under which it was begun."""
    ending: Ending
    last: Append
    """What its log lacks."""


@functools.cache
def clock() -> str:
    """Names the clock that `time.monotonic` reads: the same for all processes of a host until it is booted again."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""  # not Linux: one host is assumed


def _here(asked_at: float, its_clock: str) -> float:
    return asked_at if its_clock in ("", clock()) else time.monotonic()


class Stop(msgspec.Struct, array_like=True, tag="s", frozen=True, gc=False):
    """Somebody asked that the run be stopped. `asked_at` is their host's monotonic clock, in seconds."""

    run_id: str
    asked_at: float
    clock: str = ""

    def here(self) -> float:
        """When it was asked, by this host's clock; another's says nothing here, so that it is now."""
        return _here(self.asked_at, self.clock)


class Leave(msgspec.Struct, array_like=True, tag="l", frozen=True, gc=False):
    """Streams that are to end: those of an owner, or the oldest one that follows a run for them, on whatever worker.
    Only what was there before `asked_at` is meant (their host's monotonic clock, in seconds).
    """

    owner: str
    run_id: str
    """Empty: all of the owner's streams."""
    asked_at: float
    clock: str = ""
    at: float = 0.0
    """The same by the database's clock, where the log is there: one that every host can read, and that goes on over a
    boot. 0: not known.
    """

    def here(self) -> float:
        """As `Stop.here`."""
        return _here(self.asked_at, self.clock)


Control = Stop | Leave
Entry = Append | Control


class LogUnavailable(FlaskChatError):
    """The log cannot be written or read at the moment; the same call may be made again."""

    finished: Collection[str] = ()
    """Runs that have ended all the same: the store has them, whole. They are not to be appended again."""


class Log(Protocol):
    """One worker's side of it. `turn`, `follow` and `read` are the pump's: one call at a time, by way of `calls`. The
    others may be called by any task, and wait as the store's calls do.
    """

    calls: Caller
    """How the pump's calls are made, so that they neither hold the hub nor are cut in two."""
    tells: bool
    """Whether `on_news` is called for all that others append. Otherwise somebody who waits looks again each tick."""
    on_news: Callable[[], None]
    """Called when others may have appended something; from whatever thread."""
    apart: bool
    """Whether `finish` writes to the store what has ended, before a turn appends the end: where the log is elsewhere,
    or the store may take long. Otherwise a turn does both in one transaction.
    """
    behind: bool
    """Whether the last `follow` or `turn` returned only the first of what others have appended: there is more."""

    def start(self) -> None:
        """Begin what it does beside the pump's calls, such as to listen for news; called from a task, once."""

    def stop(self) -> None:
        """End that; called from a task, before `close`."""

    def listen(self, wanted: bool) -> int | None:
        """Whether to be told by a descriptor: it is readable from now on when others have appended something, until
        `heard` is called. One of the pump's calls.

        :returns: the descriptor; None where there is none.
        """

    def heard(self) -> None:
        """Take what the descriptor tells."""

    def finish(self, lease: Lease, endings: list[Ending], *, patient: bool) -> None:
        """Finish runs in the store whose last entries a turn appends afterwards; only for a log that is `apart`. Beside
        the pump's calls, and one at a time: while the store stands still, the turns go on. All of them or none.

        :param lease: under which they were begun.
        :param patient: they were refused before, perhaps because they take the store long.
        :raises Fenced: somebody else ends them, or has.
        :raises LogUnavailable: call again with the same.
        """

    def without(self, entries: list[Append]) -> Collection[str]:
        """These cannot be appended at the moment. Does not wait.

        :returns: the runs for which they need not be, because the store has their ends and can be read.
        """

    def doubt(self) -> None:
        """Our runs may have been taken over, and the store cannot say so at the moment: find out with the next turn,
        where the log knows. Does not wait.
        """

    def turn(self, lease: Lease | None, entries: list[Append], endings: list[Ending]) -> list[Entry]:
        """Append what one tick brought and, for runs that ended, finish them in the store: all of it or nothing. Then
        return what others have appended since the last turn, or, where that is much, the first of it (`behind`).

        :param lease: under which `entries` are appended. None, without entries: somebody waits for what others have
            appended, so it is looked for also by a log that tells.
        :param endings: none for a log that is `apart`: what ends in `entries` is finished already.
        :raises Fenced: nothing was appended, and nothing more will be under this lease.
        :raises LogUnavailable: nothing was appended; call again with the same. Where there was nothing to append, the
            log cannot be read, or would refuse again what it has refused; a turn that has appended does not fail over
            what it reads, and the next one returns more.
        """

    def follow(self) -> list[Entry]:
        """What is in the log, oldest first, as much at once as `turn` returns, which goes on from there. A log that is
        asked run by run has only what is for everybody here, and follows the others' runs that are in memory.

        :raises LogUnavailable: call again.
        """

    def unfollow(self) -> None:
        """Nobody waits here for what others append, until `follow` is called again. Does not wait."""

    def read(self, run_id: str) -> list[Append]:
        """One run's entries, oldest first: for a reader that is behind what memory holds.

        :raises LogUnavailable: call again.
        """

    def close(self) -> None:
        """Let go of what the pump's calls have opened."""

    def announce(self, entry: Control) -> None:
        """Tell all workers, this one as well.

        :raises Unavailable:
        """

    def past(self, run_ids: Collection[str]) -> dict[str, list[bytes]]:
        """The events of runs whose worker is gone, as far as they came; nothing is added to them any more.

        :returns: the frames by run; a run that the store does not know any more is left out.
        :raises Unavailable:
        """

    def end(self, orphans: Sequence[Orphan]) -> list[str]:
        """End runs whose workers are gone: finish them in the store, and append what their logs lack. In one
        transaction, so a few at a time.

        :returns: which of them were ended; the others somebody else has ended.
        :raises Unavailable:
        """

    def empty(self) -> bool:
        """Whether nothing is there that `prune` would have to look at.

        :raises Unavailable:
        """

    def ready(self) -> None:
        """Whether it can be used at the moment.

        :raises LogUnavailable: why not.
        """

    def prune(self) -> None:
        """Remove what nobody can need any more, and see to what was left undone; called every now and then.

        :raises Unavailable:
        """

    def forget(self, run_ids: Collection[str], first_row: int) -> None:
        """Take out what these runs have got: they are deleted.

        :param first_row: the smallest of theirs in the store.
        :raises Unavailable:
        """
