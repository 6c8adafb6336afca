"""What an operator wants to know of the chat, counted by all workers of a host together: `GET /metrics`.

A scrape reaches one worker and must tell of all, also of what those that are gone have counted.

Deliberate choices; do not change one without reading why:

 1. Each worker counts in a file of its own that is mapped into its memory: adding is a store of eight bytes, and what
    a killed worker has counted is there.
 2. Whoever counts in a file holds the lock on it. A worker that begins takes over the file of one that has gone and
    counts on; so no count vanishes or is added twice, and there are never more files than there were workers at once.
    Gauges begin at zero, and in a file that nobody holds they say nothing.
 3. Every name and label is known beforehand and has its place in the file; what is not among them is `other`. So nobody
    can make series without end. A version that counts something else has files of other names.
 4. Not the multiprocess mode of `prometheus_client`: it is switched on for the whole process by a variable of the
    environment, the host's own metrics with it, keeps a file for each process id there ever was, and needs a hook in
    the server's configuration to let go of a dead worker's gauges.
 5. Where no file can be had, a worker counts by itself, and says so once.
"""

from __future__ import annotations

import bisect
import contextlib
import fcntl
import hashlib
import logging
import mmap
import os
import time
from pathlib import Path

from . import tasks
from .errors import model_codes, problem_codes
from .models import Done, Error, Terminal

logger = logging.getLogger("flaskchat")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
MOST = 1024
"""Files that are tried."""
OTHER = "other"


class Family:
    """One metric with all its series."""

    def __init__(
        self, kind: str, name: str, help: str, *, label: str = "", values: tuple[str, ...] = (),  # noqa: A002
        buckets: tuple[float, ...] = (),
    ) -> None:  # fmt: skip
        """:param kind: counter, gauge or histogram.
        :param values: all that the label can be.
        :param buckets: upper bounds, ascending; of a histogram.
        """
        self.kind, self.name, self.help, self.label, self.buckets = kind, f"flaskchat_{name}", help, label, buckets
        self.index = {value: number for number, value in enumerate((*values, OTHER))} if label else {"": 0}
        self.size = len(buckets) + 2 if buckets else len(self.index)
        self.at = 0
        """Its first place in the file."""


REFUSALS = tuple(code for status in (429, 503) for code in problem_codes()[status])

REPLIES_RUNNING = Family("gauge", "replies_running", "Replies being written.")
REPLIES_STARTED = Family("counter", "replies_started_total", "Replies that were begun.")
REPLIES_ENDED = Family(
    "counter", "replies_ended_total", "Replies that ended, by how.",
    label="state", values=("done", "error", "stopped", "interrupted"),
)  # fmt: skip
REPLY_ERRORS = Family(
    "counter", "reply_errors_total", "Replies that ended with an error, by its code.",
    label="code", values=tuple(model_codes()),
)  # fmt: skip
FIRST_TOKEN = Family(
    "histogram", "reply_first_token_seconds", "From the start of a reply to the first that its model sent.",
    buckets=(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
)  # fmt: skip
DURATION = Family(
    "histogram", "reply_duration_seconds", "From the start of a reply to its end.",
    buckets=(0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0),
)  # fmt: skip
TOKENS = Family(
    "counter", "tokens_total", "Tokens of finished replies, as their models counted them.",
    label="kind", values=("input", "output"),
)  # fmt: skip
EVENTS = Family("counter", "events_total", "Events that were appended to the log.")
TICK = Family(
    "histogram", "tick_seconds", "From reading the models' sockets to the end of the commit, where there was one.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
)  # fmt: skip
LOG_REFUSALS = Family("counter", "log_refusals_total", "Ticks that could not be committed; they come again.")
LOG_UNAVAILABLE = Family("gauge", "log_unavailable", "Workers that cannot write their log at the moment.")
STREAMS_OPEN = Family("gauge", "streams_open", "Open streams that follow a reply.")
STREAMS_CAPACITY = Family("gauge", "streams_capacity", "Streams that all workers together take.")
STREAMS_OPENED = Family("counter", "streams_opened_total", "Streams that were opened.")
STREAMS_LOST = Family(
    "counter", "streams_lost_total",
    "Streams that ended before their reply: the client vanished, did not read, or was sent away.",
    label="reason", values=("vanished", "stalled", "sent_away"),
)  # fmt: skip
HEARTBEATS = Family("counter", "heartbeats_total", "Heartbeats that were sent into silent streams.")
REFUSED = Family(
    "counter", "requests_refused_total", "Requests that were answered with 429 or 503, by the problem's code.",
    label="code", values=REFUSALS,
)  # fmt: skip
HUB_HOLDS = Family("counter", "hub_holds_total", "Calls that held a worker's event loop for too long.")
HUB_HELD = Family("counter", "hub_held_seconds_total", "For how long they did.")
TAKEOVERS = Family("counter", "takeovers_total", "Replies that were ended because their worker was gone.")
LEASES_LOST = Family("counter", "leases_lost_total", "Workers that were held up for so long that others took over.")

FAMILIES = (
    REPLIES_RUNNING, REPLIES_STARTED, REPLIES_ENDED, REPLY_ERRORS, FIRST_TOKEN, DURATION, TOKENS, EVENTS, TICK,
    LOG_REFUSALS, LOG_UNAVAILABLE, STREAMS_OPEN, STREAMS_CAPACITY, STREAMS_OPENED, STREAMS_LOST, HEARTBEATS, REFUSED,
    HUB_HOLDS, HUB_HELD, TAKEOVERS, LEASES_LOST,
)  # fmt: skip
SLOTS = 0
for _family in FAMILIES:
    _family.at = SLOTS
    SLOTS += _family.size
SIZE = SLOTS * 8
LAYOUT = hashlib.blake2b(
    repr([(family.name, list(family.index), family.buckets) for family in FAMILIES]).encode(), digest_size=4
).hexdigest()


class Metrics:
    """One worker's counts, and how all of them are read. Opened after the fork."""

    def __init__(self, folder: Path | None = None) -> None:
        """:param folder: the same for all workers of a host; absent: this one counts by itself."""
        self._folder = folder
        self._lock = tasks.native_lock()
        self._file = -1
        self._slots: memoryview[float] = memoryview(bytearray(SIZE)).cast("d")
        if folder is not None:
            try:
                self._open(folder)
            except OSError as error:
                self._folder = None
                logger.warning("files in %s cannot be used (%s): each worker counts by itself", folder, error)

    def _open(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.geteuid():  # in a folder that all may write to, somebody may have been first
            raise PermissionError("it is somebody else's")
        for path in folder.glob("metrics-*"):
            if LAYOUT not in path.name:
                self._remove(path)
        for number in range(MOST):
            file = os.open(folder / f"metrics-{LAYOUT}-{number}", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                missing = SIZE - os.fstat(file).st_size
                if missing > 0:  # written, not only said: on a full disk the first store would end the process
                    os.pwrite(file, bytes(missing), SIZE - missing)
                self._slots = memoryview(mmap.mmap(file, SIZE)).cast("d")
            except BlockingIOError:
                os.close(file)
                continue
            except BaseException:
                os.close(file)
                raise
            self._file = file
            for family in FAMILIES:
                if family.kind == "gauge":
                    self._slots[family.at] = 0.0
            return
        raise OSError(f"{MOST} files are in use")

    @staticmethod
    def _remove(path: Path) -> None:
        """Another version's file, once nobody counts in it."""
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(file)

    def close(self) -> None:
        """Let the next worker count on; whoever still counts here does it for nobody."""
        file, self._file = self._file, -1
        if file >= 0:
            self._slots = memoryview(bytearray(SIZE)).cast("d")
            os.close(file)

    # -- counting --------------------------------------------------------------------------------------------------

    def add(self, counter: Family, value: str = "", amount: float = 1.0) -> None:
        """:param value: of its label."""
        place = counter.index.get(value)
        if place is None:
            place = counter.index[OTHER]
        with self._lock:
            self._slots[counter.at + place] += amount

    def set(self, gauge: Family, value: float) -> None:
        self._slots[gauge.at] = value

    def observe(self, histogram: Family, value: float) -> None:
        at = histogram.at + bisect.bisect_left(histogram.buckets, value)
        with self._lock:
            self._slots[at] += 1.0
            self._slots[histogram.at + histogram.size - 1] += value

    def ticked(self, running: int, refused: bool) -> None:
        """:param refused: whether the log could not be used."""
        self.set(REPLIES_RUNNING, running)
        self.set(LOG_UNAVAILABLE, refused)
        if refused:
            self.add(LOG_REFUSALS)

    def committed(self, events: int, began: float) -> None:
        """:param began: when the tick did (monotonic)."""
        self.add(EVENTS, amount=events)
        self.observe(TICK, time.monotonic() - began)

    def reply_ended(self, terminal: Terminal, began: float, first: float | None) -> None:
        """:param began: when (monotonic).
        :param first: when its model sent anything first; None where it sent nothing.
        """
        self.add(REPLIES_ENDED, terminal.event)
        if isinstance(terminal, Error):
            self.add(REPLY_ERRORS, terminal.code)
        elif isinstance(terminal, Done) and terminal.usage is not None:
            self.add(TOKENS, "input", terminal.usage.input_tokens)
            self.add(TOKENS, "output", terminal.usage.output_tokens)
        if first is not None:
            self.observe(FIRST_TOKEN, first - began)
        self.observe(DURATION, time.monotonic() - began)

    # -- reading ---------------------------------------------------------------------------------------------------

    def text(self) -> str:
        """All workers' counts in Prometheus' text format. Reads files."""
        total, workers = self._total()
        lines = []
        for family in FAMILIES:
            lines += _head(family.name, family.kind, family.help)
            values = total[family.at : family.at + family.size]
            if family.buckets:
                count = 0.0
                for bound, value in zip((*map(_number, family.buckets), "+Inf"), values, strict=False):
                    count += value
                    lines.append(f'{family.name}_bucket{{le="{bound}"}} {_number(count)}')
                lines += [f"{family.name}_sum {_number(values[-1])}", f"{family.name}_count {_number(count)}"]
            elif family.label:
                labels = (f'{family.name}{{{family.label}="{value}"}}' for value in family.index)
                lines += (f"{name} {_number(value)}" for name, value in zip(labels, values, strict=True))
            else:
                lines.append(f"{family.name} {_number(values[0])}")
        lines += [*_head("flaskchat_workers", "gauge", "Workers that are there."), f"flaskchat_workers {workers}"]
        return "\n".join(lines) + "\n"

    def _total(self) -> tuple[list[float], int]:
        """:returns: the sum of all files, and how many of them somebody holds."""
        if self._folder is None:
            return list(self._slots), 1
        total, workers = [0.0] * SLOTS, 0
        for path in self._folder.glob(f"metrics-{LAYOUT}-*"):
            with contextlib.suppress(FileNotFoundError):
                values, held = _read(path)
                workers += held
                for family in FAMILIES:
                    if held or family.kind != "gauge":
                        for at in range(family.at, family.at + family.size):
                            total[at] += values[at]
        return total, workers


def _read(path: Path) -> tuple[memoryview[float], bool]:
    """:returns: what is in a file, and whether a worker holds it."""
    file = os.open(path, os.O_RDONLY)
    try:
        held = False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            held = True
        return memoryview(os.pread(file, SIZE, 0).ljust(SIZE, b"\0")).cast("d"), held
    finally:
        os.close(file)


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
