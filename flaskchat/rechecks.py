"""Asking again, while a stream lives, whether its reader may still have it.

Who somebody is was found out when the request came; the stream then goes on for minutes. A user who is deleted, or
whose right is taken away, must not go on reading. So every EVERY seconds each worker asks for all its streams, with
what their requests brought, as if they came now. A few tasks do it, beside the streams; those of one browser are asked
for once, and visitors who are known by our own cookie not at all: there is nothing that could have changed. A host that
does not answer for one of them keeps nobody else's turn from coming, and its silence is in the end taken for a no.

What this cannot see is a logout where the session lies in the browser: the old cookie is as good as before. That is
seen where it happens (views/base.py), and told to all workers (`Readers.sign_out`).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from . import tasks
from .limits import Visitor
from .readers import Readers

logger = logging.getLogger("flaskchat")

EVERY = 3.0
"""Seconds between two rounds; a stream that is to end does so within 5."""
GRACE = 2
"""Rounds in a row in which it could not be found out, after which the answer is no: a host's database may restart."""

AT_ONCE = 8
"""Askings under way: a host that takes 20 ms for each must still be through with a full worker's in time."""
PATIENCE = 1.5
"""Seconds after which an asking counts as one without an answer."""
LOOK = 0.02

Still = Callable[[Mapping[str, Any], str], bool]


class Asker:
    """Asks for one browser after another."""

    def __init__(self) -> None:
        self.browser: object = None
        self.since = time.monotonic()
        """When it began with that one (monotonic); 0 once there are no more."""


class Rechecks:
    """One per worker, in tasks of its own."""

    def __init__(self, readers: Readers, still: Still) -> None:
        """:param still: whether a request with this WSGI environment would be this owner's now."""
        self._readers = readers
        self._still = still
        self._unknown: dict[object, int] = {}
        """Of whom it could not be found out, and for how many rounds."""
        self._stuck: list[Asker] = []
        """Those of earlier rounds that have had no answer yet."""
        self._end = tasks.Event()
        self._task: tasks.Task | None = None

    def start(self) -> None:
        self._task = tasks.spawn(self._run, name="flaskchat-rechecks")

    def close(self) -> None:
        self._end.set()
        if self._task is not None:
            self._task.join(2.0)

    def _run(self) -> None:
        took = 0.0
        while not self._end.wait(max(EVERY / 2, EVERY - took)):
            began = time.monotonic()
            try:
                self.round()
            except Exception:
                logger.exception("streams could not be checked; the next round comes in %.0f s", EVERY)
            took = time.monotonic() - began

    def round(self) -> None:
        """Ask for everybody, and end the streams of those who are not who they were."""
        by_browser: dict[object, list[Visitor]] = {}
        for visitor in self._readers.visitors():
            if visitor.environ is not None:
                by_browser.setdefault(visitor.browser, []).append(visitor)
        self._unknown = {browser: rounds for browser, rounds in self._unknown.items() if browser in by_browser}
        self._stuck = [asker for asker in self._stuck if asker.since]
        waited_for = {asker.browser for asker in self._stuck}
        todo = deque(item for item in by_browser.items() if item[0] not in waited_for)
        askers = [Asker() for _ in range(min(len(todo), AT_ONCE - len(self._stuck)))]
        for asker in askers:
            tasks.spawn(self._ask, asker, todo, name="flaskchat-recheck")
        while any(asker.since and time.monotonic() - asker.since < PATIENCE for asker in askers):
            if self._end.wait(LOOK):
                return
        self._stuck += [asker for asker in askers if asker.since]
        # No answer has come for those that are asked for since long, nor for those whose turn did not come therefore.
        for browser in {asker.browser for asker in self._stuck}.union(browser for browser, _ in todo):
            if browser in by_browser and not self._may_stay_unknown(browser):
                self._close(by_browser[browser])

    def _ask(self, asker: Asker, todo: deque[tuple[object, list[Visitor]]]) -> None:
        try:
            while todo:
                asker.browser, visitors = todo.popleft()
                asker.since = time.monotonic()
                if not self._may_stay(asker.browser, visitors[0]):
                    self._close(visitors)
                tasks.sleep(0)  # between two askings others have their turn
        finally:
            asker.since = 0.0

    def _close(self, visitors: list[Visitor]) -> None:
        for visitor in visitors:
            self._readers.end(visitor)

    def _may_stay(self, browser: object, visitor: Visitor) -> bool:
        assert visitor.environ is not None
        try:
            still = self._still(visitor.environ, visitor.owner)
        except Exception:
            if browser not in self._unknown:
                logger.exception("it could not be found out whether a user may still read")
            return self._may_stay_unknown(browser)
        self._unknown.pop(browser, None)
        return still

    def _may_stay_unknown(self, browser: object) -> bool:
        rounds = self._unknown[browser] = self._unknown.get(browser, 0) + 1
        return rounds <= GRACE
