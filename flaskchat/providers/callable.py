"""Python generators as models: any iterable of strings is read in a task of its own, its text put down for the tick.

Knows nothing of Flask: whoever builds the provider says in which context (an application's, say) the generator runs.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from .. import tasks
from ..errors import ModelClosedEarly, ModelError, ModelRaised
from ..models import Delta, Done, Event, Request
from .decoding import storable

logger = logging.getLogger("flaskchat")

Function = Callable[[Request], Iterable[str]]

BACKLOG = 64 << 10
"""Characters that wait for the tick; past it the generator waits."""
SLICE = 0.01
"""Seconds a generator may go on without letting others run, when it never waits by itself."""


class GeneratorSource:
    """One run of one generator. `on_ready` is called when there is something to `read`."""

    def __init__(
        self, function: Function, request: Request, context: Callable[[], AbstractContextManager[object]]
    ) -> None:
        self.on_ready: Callable[[], None] = lambda: None
        self._function = function
        self._request = request
        self._context = context
        self._texts: deque[str] = deque()
        self._waiting = 0
        self._task: tasks.Task | None = None
        self._error: ModelError | None = ModelRaised("it did not come to its end")
        """Until it has: whatever else goes wrong, half a reply is not taken for all of it."""
        self._ended = False
        self._closed = False

    def open(self) -> None:
        if self._closed:
            raise ModelClosedEarly("closed before it began")
        self._task = tasks.spawn(self._run, name="flaskchat-model")

    def fileno(self) -> int | None:
        return None

    def _run(self) -> None:
        try:
            with self._context():
                self._iterate()
            self._error = None
        except ModelError as error:
            self._error = error
            if error.__cause__ is not None:  # which is not told elsewhere
                logger.exception("the model %r raised", self._request.model)
            error.bare(alone=True)
        except BaseException as error:  # SystemExit would end the worker; a gevent.Timeout is no Exception either
            if self._closed:  # it is our own kill
                self._error = None
            else:
                self._error = ModelRaised(f"{type(error).__name__}")
                logger.exception("the model %r raised", self._request.model)
        finally:
            self._ended = True
            self.on_ready()

    def _iterate(self) -> None:
        pieces = self._function(self._request)
        if isinstance(pieces, str):
            pieces = (pieces,)
        iterator = iter(pieces)
        switched = time.monotonic()
        try:
            for piece in iterator:
                if self._closed:
                    return
                if not isinstance(piece, str):
                    raise ModelRaised(f"it yielded {type(piece).__name__}, not str")
                if not piece:
                    continue
                self._texts.append(piece)
                self._waiting += len(piece)
                self.on_ready()
                if self._waiting > BACKLOG:
                    while self._waiting > BACKLOG and not self._closed:
                        tasks.sleep(0.02)
                    switched = time.monotonic()
                elif time.monotonic() - switched > SLICE:
                    tasks.sleep(0)
                    switched = time.monotonic()
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def read(self) -> list[Event]:
        ended = self._ended  # before the texts: what was put down before the end is not missed
        texts = []
        while self._texts:
            texts.append(self._texts.popleft())
        events: list[Event] = []
        if texts:
            text = storable("".join(texts))
            self._waiting = 0 if not self._texts else sum(map(len, self._texts))
            events.append(Delta(text))
        elif ended and self._error is not None:
            raise self._error
        if ended and self._error is None:
            events.append(Done())
        return events

    @property
    def pending(self) -> bool:
        """Whether an error is left to be raised by the next `read`."""
        return self._ended and self._error is not None

    def close(self) -> bool:
        self._closed = True
        task = self._task
        if task is None:
            return True
        task.kill()
        task.join(0.05)
        return not task.is_alive()


class CallableProvider:
    """The provider of all Python models of one application."""

    name = "python"

    def __init__(self, functions: dict[str, Function], context: Callable[[], AbstractContextManager[object]]) -> None:
        """:param context: entered around each generator, in its task."""
        self._functions = functions
        self._context = context

    def source(self, request: Request) -> GeneratorSource:
        return GeneratorSource(self._functions[request.model], request, self._context)
