"""The log's descriptor that tells of what others append, watched while somebody here waits for that."""

from __future__ import annotations

import time
from collections.abc import Callable

from .log.base import Log
from .poller import READ, Poller

AGAIN = 60.0
"""Seconds until it is asked again whether the log can tell, where it could not."""


class Ear:
    """The pump's."""

    def __init__(self, log: Callable[[], Log], poller: Poller) -> None:
        self._log = log
        self._poller = poller
        self._listening = False
        self._again_at = 0.0
        self._fd: int | None = None

    @property
    def hears(self) -> bool:
        """Whether the poller is woken by what others append."""
        return self._fd is not None

    def listen(self, wanted: bool) -> None:
        """Before the log is looked at, so that nothing falls in between."""
        now = time.monotonic()
        if wanted is self._listening and (not wanted or self._fd is not None or now < self._again_at):
            return
        fd = self._log().calls.call(self._log().listen, wanted)
        self._listening = wanted
        self._again_at = now + AGAIN
        if fd is not None and wanted:
            self._poller.register(fd, READ, self)
        elif self._fd is not None:
            self._poller.unregister(self._fd)
        self._fd = fd if wanted else None

    def on_ready(self, gone: bool) -> None:
        self._log().heard()
