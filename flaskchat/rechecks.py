"""Asking again, while a stream lives, whether its reader may still have it.

Who somebody is was found out when the request came; the stream then goes on for minutes. A user who is deleted, or
whose right is taken away, must not go on reading. So every EVERY seconds each worker asks for all its streams, with
what their requests brought, as if they came now. One task does it, beside the streams; those of one browser are asked
for once, and visitors who are known by our own cookie not at all: there is nothing that could have changed.

What this cannot see is a logout where the session lies in the browser: the old cookie is as good as before. That is
seen where it happens (views/base.py), and told to all workers (`Readers.sign_out`).
"""

from __future__ import annotations

import logging
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

Still = Callable[[Mapping[str, Any], str], bool]


class Rechecks:
    """One per worker, in a task of its own."""

    def __init__(self, readers: Readers, still: Still) -> None:
        """:param still: whether a request with this WSGI environment would be this owner's now."""
        self._readers = readers
        self._still = still
        self._unknown: dict[object, int] = {}
        """Of whom it could not be found out, and for how many rounds."""
        self._end = tasks.Event()
        self._task: tasks.Task | None = None

    def start(self) -> None:
        self._task = tasks.spawn(self._run, name="flaskchat-rechecks")

    def close(self) -> None:
        self._end.set()
        if self._task is not None:
            self._task.join(2.0)

    def _run(self) -> None:
        while not self._end.wait(EVERY):
            try:
                self.round()
            except Exception:
                logger.exception("streams could not be checked; the next round comes in %.0f s", EVERY)

    def round(self) -> None:
        """Ask for everybody, and end the streams of those who are not who they were."""
        by_browser: dict[object, list[Visitor]] = {}
        for visitor in self._readers.visitors():
            if visitor.environ is not None:
                by_browser.setdefault(visitor.browser, []).append(visitor)
        self._unknown = {browser: rounds for browser, rounds in self._unknown.items() if browser in by_browser}
        for browser, visitors in by_browser.items():
            if not self._may_stay(browser, visitors[0]):
                for visitor in visitors:
                    self._readers.end(visitor)
            tasks.sleep(0)  # between two askings others have their turn

    def _may_stay(self, browser: object, visitor: Visitor) -> bool:
        assert visitor.environ is not None
        try:
            still = self._still(visitor.environ, visitor.owner)
        except Exception:
            rounds = self._unknown[browser] = self._unknown.get(browser, 0) + 1
            if rounds == 1:
                logger.exception("it could not be found out whether a user may still read")
            return rounds <= GRACE
        self._unknown.pop(browser, None)
        return still
