"""What a log is: a place where events of live runs are kept before anybody is sent them.

All its calls may wait; the pump makes them off the hub. The log trusts its caller that seqs of a run are dense and
from 1; what it checks is the lease: an owner that has been taken over can append nothing more.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from ..errors import FlaskChatError
from ..store.base import Ending, Lease


class Append(msgspec.Struct, array_like=True, tag="a", frozen=True, gc=False):
    """Events of one run, as the frames that readers are sent. `seq` is that of the first."""

    run_id: str
    seq: int
    frames: list[bytes]
    ended: bool = False


class Stop(msgspec.Struct, array_like=True, tag="s", frozen=True, gc=False):
    """Somebody asked that the run be stopped. `asked_at` is the host's monotonic clock, in seconds."""

    run_id: str
    asked_at: float


class Leave(msgspec.Struct, array_like=True, tag="l", frozen=True, gc=False):
    """Streams that are to end: those of an owner, or the oldest one that follows a run for them, on whatever worker.
    Only what was there before `asked_at` is meant (the host's monotonic clock, in seconds).
    """

    owner: str
    run_id: str
    """Empty: all of the owner's streams."""
    asked_at: float


Entry = Append | Stop | Leave


class LogUnavailable(FlaskChatError):
    """The log cannot be written or read at the moment; the same call may be made again."""


class Log(Protocol):
    def turn(self, lease: Lease | None, entries: list[Append], endings: list[Ending]) -> list[Entry]:
        """Append what one tick brought and, for runs that ended, finish them in the store: all of it or nothing. Then
        return what others have appended since the last turn.

        :param lease: under which `entries` are appended; may be None where there are none.
        :raises Fenced: nothing was appended, and nothing more will be under this lease.
        :raises LogUnavailable: nothing was appended; call again with the same. Where there was nothing to append, the
            log cannot be read; a turn that has appended does not fail over that, and the next one returns more.
        """

    def follow(self) -> list[Entry]:
        """Every entry that is in the log, oldest first; `turn` goes on from there.

        :raises LogUnavailable: call again.
        """

    def read(self, run_id: str) -> list[Append]:
        """One run's entries, oldest first: for a reader that is behind what memory holds, and for a takeover.

        :raises LogUnavailable: call again.
        """

    def close(self) -> None: ...
