"""The watch on the hub: finds what holds a worker's one event loop, names it by its stack, and counts it.

Under gevent one greenlet that waits in C, or computes, stops every stream, health check and Stop of its worker. Nothing
tells: no exception, no log line, only latency.

Deliberate choices; do not change one without reading why:

 1. The hub's signs of life are its own: libev calls us before and after each wait for events, about 1 µs each. Nothing
    wakes an idle hub; what looks at it is a native thread.
 2. The thread takes the stack of a hub that has not come back, again and again. Stacks of one and the same call are a
    hold. Stacks that share nothing are a turn of many greenlets, each of them short: that is load, and no one's fault.
 3. A machine that is busy elsewhere is no hold: the time for which the kernel kept the hub's thread waiting for a
    processor is taken off, and that of other threads, which may have had the interpreter (Linux tells it in
    schedstat). Where the hub's thread does not sleep, or the watch itself came
    late (a stopped process, a virtual machine that was not run), only what the hub has computed counts.
 4. A call into C that computes without letting other threads run is seen afterwards: the watch came late, though it did
    not wait for a processor, and the hub had one. A virtual machine that was not run for a moment may look the same;
    therefore such a call counts from MUTE limits on.
 5. What was found is logged by a greenlet, because whoever was held may have held the logging's lock. A hold that does
    not end is written to standard error by the thread: after 30 s gunicorn kills the worker without a word.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate, chain, repeat
from operator import call, itemgetter
from types import FrameType
from typing import Any, NamedTuple

from . import tasks

logger = logging.getLogger("flaskchat")

PERIOD = 0.04
"""Seconds between looks at the hub, where its limit is not shorter."""
MUTE = 3
"""Limits for which a call that let nobody look must have computed, to be believed."""
STUCK = 5.0
"""Seconds after which a hold that has not ended is told."""
DEPTH = 15
"""Calls of a stack that are told, the innermost."""


class Turn(NamedTuple):
    """One turn of the hub, from its coming back with events to its next wait, that was longer than the limit."""

    number: int
    since: float
    until: float


class Look(NamedTuple):
    """What the thread saw at one moment."""

    at: float
    turn: int
    since: float
    """When the hub came back; 0 while it waits."""
    frames: list[FrameType]
    ran: float
    """Seconds for which the hub's thread has had a processor, and for which it has waited for one."""
    waited: float
    own_waited: float
    """Seconds for which this thread has waited for a processor."""
    others_waited: float | None = None
    """Seconds for which the process's other threads have waited for one, the interpreter in hand maybe; asked for only
    where the hub has been away for long, because it costs as much as all the rest.
    """
    busy: bool = False
    """Whether the hub's thread wants a processor, or has one: it does not sleep, in C or in wait of the interpreter."""


Found = tuple[float, list[traceback.FrameSummary]]
"""Seconds for which one call held the hub, and its stack."""


class Watch:
    """One per worker. Started in the hub's own thread; does nothing where gevent has not patched it."""

    def __init__(self, limit: float) -> None:
        """:param limit: seconds for which one greenlet may hold the hub; 0 for no watch."""
        self.limit = limit
        self.holds = 0
        """How often the hub was held for longer than the limit."""
        self.held_seconds = 0.0
        """For how long in all."""
        self.longest = 0.0
        """The longest hold in seconds, also of those below the limit as far as they were seen; see `reset`."""
        self._now = (0, 0.0)
        """The number of the hub's turn, and when it began; 0 while the hub waits. One value: it is read whole."""
        self._long: deque[Turn] = deque(maxlen=16)
        """The last turns that were longer than the limit, until the thread has looked at them."""
        self._closed = True
        self._watchers: list[Any] = []
        self._post: Callable[[Found], object] = lambda found: None

    def start(self) -> None:
        if not self.limit or not tasks.cooperative():
            return
        import gevent
        from gevent import monkey

        loop: Any = gevent.get_hub().loop
        self._post = lambda found: loop.run_callback_threadsafe(tasks.spawn, _tell, *found)
        # The first after the wait and the last before the next: gevent runs its own callbacks in between.
        before = loop.prepare(ref=False, priority=loop.MINPRI)
        after = loop.check(ref=False, priority=loop.MAXPRI)
        self._watchers = [before, after]
        self._closed = False
        before.start(self._waits)
        after.start(self._came_back)
        thread, hub = monkey.get_original("_thread", "start_new_thread"), monkey.get_original("_thread", "get_ident")()
        thread(self._run, (hub, _Usage(), monkey.get_original("time", "sleep")))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for watcher in self._watchers:
                watcher.stop()
                watcher.close()

    def reset(self) -> float:
        """:returns: seconds of the longest hold since the last call."""
        longest, self.longest = self.longest, 0.0
        return longest

    # -- in the hub ------------------------------------------------------------------------------------------------

    def _came_back(self) -> None:
        self._now = (self._now[0], time.perf_counter())

    def _waits(self) -> None:
        number, since = self._now
        if since:
            now = time.perf_counter()
            if now - since > self.limit:
                self._long.append(Turn(number, since, now))
        self._now = (number + 1, 0.0)

    # -- in the native thread --------------------------------------------------------------------------------------

    def _run(self, hub: int, usage: _Usage, sleep: Any) -> None:
        period = min(PERIOD, self.limit * 0.4)
        close = period * 0.4
        own = _Usage()
        case = _Case(self.limit)
        try:
            pause, before = period, self._look(hub, usage, own)
            while not self._closed:
                sleep(pause)
                now = self._look(hub, usage, own)
                found = case.add(before, now, pause, tuple(self._long))
                if found is not None:
                    self._note(found)
                if now.since and case.stuck(now):
                    told = "".join(traceback.format_list(case.stack))
                    so_far = f"worker {os.getpid()}: the hub is held, {now.at - now.since:.0f} s so far, by\n{told}"
                    os.write(2, so_far.encode())
                pause, before = close if now.since else period, now
        except Exception:
            os.write(2, traceback.format_exc().encode())
        finally:
            usage.close()
            own.close()

    def _look(self, hub: int, usage: _Usage, own: _Usage) -> Look:
        turn, since = seen = self._now
        frames = stack_of(hub) if since else []
        if self._now is not seen:
            since, frames = 0.0, []  # it has gone on meanwhile
        ran, waited = usage.read()
        own_waited = own.read()[1]
        now, busy, others = time.perf_counter(), False, None
        if since and now - since > min(PERIOD, self.limit * 0.4) / 2:
            busy = usage.busy()
            others = _waited_in_all() - waited - own_waited
        return Look(now, turn, since, frames, ran, waited, own_waited, others, busy)

    def _note(self, found: Found) -> None:
        held, _ = found
        self.longest = max(self.longest, held)
        if held > self.limit:
            self.holds += 1
            self.held_seconds += held
            self._post(found)


class _Case:
    """The looks at one turn of the hub, added up."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.held = 0.0
        """Seconds for which one call has held the hub, up to the last look."""
        self.worst = 0.0
        """The longest of those in this turn that were over before."""
        self.stack: list[traceback.FrameSummary] = []
        self._told_at = 0.0
        """What `held` was when the stack was taken."""
        self._told = 0
        self._worst_stack: list[traceback.FrameSummary] = []

    def add(self, before: Look, now: Look, pause: float, long: Sequence[Turn]) -> Found | None:
        """:param pause: seconds between the two looks, as they were meant.
        :param long: the last turns that were longer than the limit.
        :returns: what there was to find in a turn that has ended.
        """
        gap, ran = now.at - before.at, now.ran - before.ran
        late = gap - pause
        kept_away = late > pause
        mute = min(late - (now.own_waited - before.own_waited), ran) if kept_away else 0.0
        # The kernel counts a wait when it is over. So what is counted now may be of the gaps before, and be longer.
        net = gap - (now.waited - before.waited)
        if now.others_waited is not None and before.others_waited is not None:
            net -= max(0.0, now.others_waited - before.others_waited)  # less, where a thread has ended
        if kept_away or now.busy or (not now.since and before.busy):
            net = min(net, ran)
        if before.since and now.since and before.turn == now.turn:
            self._same_turn(before, now, net, mute)
            return None
        found: Found | None = None
        if before.since:
            ended = next((turn for turn in long if turn.number == before.turn), None)
            if ended is not None:
                tail = ended.until - before.at
                if not kept_away:
                    self.held += min(tail, net)
                elif mute > MUTE * self.limit:
                    self.held += min(tail, mute)
                found = self._end()
            self._begin()
        if found is None and mute > MUTE * self.limit and any(turn.since >= before.at for turn in long):
            found = mute, []  # a whole turn in which nobody could look
        if now.since:
            # Of what came before the first look others may have had their share.
            age = now.at - now.since
            self._begin()
            self.held = (min(mute, age) if mute > MUTE * self.limit else 0.0) if kept_away else age / 2
            self.stack = _summary(now.frames) if age > pause / 2 else []
        return found

    def _same_turn(self, before: Look, now: Look, net: float, mute: float) -> None:
        if _one(before.frames, now.frames):
            self.held += net
        else:
            self.held += min(0.0, net)
            self.worst, self._worst_stack = self._end()
            # A call that let nobody look stands where it ended, or has just returned.
            self.held, self._told_at = (mute if mute > MUTE * self.limit else 0.0), 0.0
        # That of the second half: at the last look the culprit may have returned.
        if self.held >= 2 * self._told_at:
            self.stack, self._told_at = _summary(now.frames), max(self.held, self.limit / 8)

    def _begin(self) -> None:
        self.held = self.worst = self._told_at = 0.0
        self.stack, self._worst_stack = [], []

    def _end(self) -> Found:
        if self.held >= self.worst:
            return self.held, self.stack
        return self.worst, self._worst_stack

    def stuck(self, now: Look) -> bool:
        """Whether to tell of this turn though it has not ended; once."""
        if self.held > STUCK and self._told != now.turn:
            self._told = now.turn
            return True
        return False


class _Usage:
    """For how long the thread that makes this has had a processor, and has waited for one; 0 where nobody tells."""

    def __init__(self) -> None:
        self._fd = self._stat = -1
        with contextlib.suppress(OSError):
            self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            self._stat = os.open("/proc/thread-self/stat", os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> tuple[float, float]:
        if self._fd < 0:
            return 0.0, 0.0
        ran, waited, _ = os.pread(self._fd, 100, 0).split()
        return int(ran) / 1e9, int(waited) / 1e9

    def busy(self) -> bool:
        return self._stat >= 0 and b") R " in os.pread(self._stat, 100, 0)

    def close(self) -> None:
        for fd in (self._fd, self._stat):
            if fd >= 0:
                os.close(fd)
        self._fd = self._stat = -1


def _waited_in_all() -> float:
    """Seconds for which all threads of this process have waited for a processor."""
    total = 0
    with contextlib.suppress(OSError):
        for task in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/schedstat", "rb") as file:
                total += int(file.read().split()[1])
    return total / 1e9


def stack_of(thread: int) -> list[FrameType]:
    """What another thread executes at the moment, from its greenlet's first call to the innermost.

    Taken in one call into C, within which the interpreter is nobody else's. A loop in Python gives it away between two
    frames, and the greenlets that run meanwhile move their stacks: `f_back` would follow an address into another's
    (CPython 3.12 and later). So would it where a frame's object is the one too many that starts the garbage collector,
    which runs finalizers (3.11; the same in `sys._current_frames` was gh-106883).

    :param thread: its ident; nothing is found of one that is gone.
    """
    found: deque[FrameType | None] = deque()
    innermost = map(itemgetter(thread), map(call, (sys._current_frames,)))
    collecting = gc.isenabled()
    gc.disable()
    try:
        # getattr(frame, "f_back") again and again, until there is none: None has no such attribute
        found.extend(accumulate(chain(innermost, repeat("f_back")), getattr))
    except (AttributeError, KeyError):
        pass
    finally:
        if collecting:
            gc.enable()
    return [frame for frame in reversed(found) if frame is not None]


def _one(before: list[FrameType], now: list[FrameType]) -> bool:
    """Whether two stacks are of one call that has not returned between them.

    A greenlet that loops, as the pump does, shares its outermost call with itself; so that one is not enough.
    """
    shared = sum(a is b for a, b in zip(before, now, strict=False))
    return shared >= 2 or (shared == 1 and 1 in (len(before), len(now)))


def _summary(frames: list[FrameType]) -> list[traceback.FrameSummary]:
    """The source's lines are looked up when it is told: files are not read here."""
    lines = ((frame, frame.f_lineno) for frame in frames[-DEPTH:])
    return list(traceback.StackSummary.extract(lines, lookup_lines=False))


def _tell(held: float, stack: list[traceback.FrameSummary]) -> None:
    told = "".join(traceback.format_list(stack)).rstrip() or "  a call that let no other thread look"
    logger.warning("worker %d: the hub was held for %.0f ms by\n%s", os.getpid(), held * 1000, told)
