"""One run being written: what its source brought, numbered and encoded, and what the store will keep of it.

Owned by the pump: nobody else numbers an event. Others (Stop, a deadline, a drain, the task that opens the source) only
leave a verdict, which the next tick carries out; so threads need no lock here.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

import msgspec

from . import sse
from .errors import FlaskChatError, ModelError, ReplyTooLong
from .live import LiveRun
from .models import Delta, Done, Error, Event, Interrupted, Reasoning, Start, Stopped, Terminal, Title, Tool, Usage
from .providers.base import Source
from .store.base import Begun, Ending

logger = logging.getLogger("flaskchat")

BACKLOG = 256 << 10
"""Bytes of one run that may wait for the log; past it its source is not read, so that the model waits."""

_json = msgspec.json.Encoder().encode


class Feed:
    """The state of one run between its start and its terminal event."""

    __slots__ = (
        "_log_words", "_verdict", "backlog", "begun", "bell", "closing", "fd", "finished", "first_at", "heard",
        "heard_at", "live", "max_bytes", "notes", "pending", "reasoning", "seq", "source", "started_at", "terminal",
        "text", "tools", "tools_size", "upstream_closed_ms",
    )  # fmt: skip

    def __init__(self, begun: Begun, live: LiveRun, max_bytes: int, *, log_words: bool = False) -> None:
        """:param log_words: whether the words of a model's server about its errors are logged."""
        self.begun = begun
        self.live = live
        self.max_bytes = max_bytes
        self._log_words = log_words
        self.source: Source | None = None
        self.fd: int | None = None
        self.bell: Any = None
        """Set while a retry is waited for, so that Stop need not wait for it."""
        self.seq = 0
        self.pending: list[bytes] = []
        """Frames that are not in the log yet."""
        self.backlog = 0
        self.text = bytearray()  # UTF-8: a third of what a list of strings holds
        self.reasoning = bytearray()
        self.tools: list[Tool] = []
        self.tools_size = 0
        self.started_at = self.heard_at = time.monotonic()
        self.first_at: float | None = None
        """When the model sent anything first."""
        self.heard = False
        """Whether the model has sent anything yet."""
        self.terminal: Terminal | None = None
        self.finished = False
        """The store has its end, which the log does not have yet."""
        self._verdict: Terminal | None = None
        self.closing = False
        """Whether its source is being closed: the verdict waits for that."""
        self.notes: deque[Title] = deque()
        """Events from beside the source."""
        self.upstream_closed_ms: float | None = None
        self._number(
            Start(
                run_id=begun.run_id, conversation_id=begun.conversation_id, message_id=begun.message_id,
                user_message_id=begun.user_message_id, model=begun.model, title=begun.title,
            )
        )  # fmt: skip

    def _number(self, event: Event) -> None:
        frame = sse.encode(self.seq + 1, event)
        self.seq += 1
        self.pending.append(frame)
        self.backlog += len(frame)

    def full(self) -> bool:
        """Whether so much waits for the log that its source is not read."""
        return self.backlog > BACKLOG

    def held(self) -> int:
        """Bytes that it holds in memory."""
        return len(self.text) + len(self.reasoning) + self.tools_size + self.backlog + self.live.size

    def over(self) -> bool:
        """Whether its end is decided."""
        return self.terminal is not None or self._verdict is not None

    def decide(self, terminal: Terminal) -> bool:
        """Leave a verdict: how the run ends, from whatever task. Only the first counts.

        :returns: whether this was the first.
        """
        if self.over():
            return False
        self._verdict = terminal
        return True

    def pull(self) -> None:
        """Take what the source has, or carry out the verdict. Never raises: a model's fault ends the run."""
        if self.terminal is not None or self.closing:
            return
        while self.notes:
            self._number(self.notes.popleft())
        if self._verdict is None:
            source = self.source
            if source is None or self.full():
                return
            try:
                events = source.read()
                if events:
                    self.heard, self.heard_at = True, time.monotonic()
                    if self.first_at is None:
                        self.first_at = self.heard_at
                    for event in events:
                        self._accept(event)
            except ModelError as error:
                self.decide(self.blame(error))
            except Exception:
                logger.exception("run %s: its source failed", self.begun.run_id)
                self.decide(self.blame(ModelError("the source raised")))
        if self._verdict is not None and not self.closing and self.terminal is None:
            self._end(self._verdict)

    def _accept(self, event: Event) -> None:
        if self.terminal is not None:
            return
        room = self.max_bytes - len(self.text) - len(self.reasoning) - self.tools_size
        if type(event) is Delta or type(event) is Reasoning:
            data = event.text.encode()
            if len(data) > room:
                data = data[: max(room, 0)].decode(errors="ignore").encode()  # not within a character
                event.text = data.decode()
                room = -1
            if type(event) is Delta:
                self.text += data
            else:
                self.reasoning += data
            if event.text:
                self._number(event)
        elif isinstance(event, Done | Error | Stopped | Interrupted):
            self._end(event)
        else:
            if type(event) is Tool:
                self.tools.append(event)
                self.tools_size += len(event.arguments)
                room -= len(event.arguments)
            self._number(event)
        if room < 0:
            self._end(self.blame(ReplyTooLong()))

    def blame(self, error: ModelError) -> Error:
        """What went wrong: in words for the user, in detail for the operator's log."""
        if not self.over():
            logger.warning("run %s: %s: %s", self.begun.run_id, error.code, error.logged(words=self._log_words))
        return error.bare().event()

    def _end(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self._number(terminal)

    def close_source(self) -> bool:
        """:returns: whether the model's connection is closed, or there is none."""
        source, self.source = self.source, None
        if self.bell is not None:
            self.bell.set()
        if source is None:
            return True
        try:
            return source.close()
        except (FlaskChatError, OSError):
            logger.exception("run %s: closing its source failed", self.begun.run_id)
            return False

    def ending(self, frames: list[bytes]) -> Ending:
        """What the store keeps.

        :param frames: the run's last frames, which are not in `live` yet.
        """
        terminal = self.terminal
        assert terminal is not None
        usage: Usage | None = terminal.usage if isinstance(terminal, Done) else None
        return Ending(
            run_id=self.begun.run_id,
            message_id=self.begun.message_id,
            conversation_id=self.begun.conversation_id,
            state=terminal.event,  # type: ignore[arg-type]
            text=self.text.decode(),
            parts=encode_parts(self.reasoning.decode(), self.tools),
            finish_reason=terminal.finish_reason if isinstance(terminal, Done) else None,
            usage=_json(usage) if usage is not None else None,
            tokens=usage.total if usage is not None else None,
            error=_json(terminal) if isinstance(terminal, Error) else None,
            upstream_closed_ms=self.upstream_closed_ms,
            last_seq=self.seq,
            frames=b"".join([self.live.joined, *frames]),
        )


def encode_parts(reasoning: str, tools: list[Tool]) -> bytes:
    """JSON of a message's parts that are not text."""
    parts: list[dict[str, str]] = []
    if reasoning:
        parts.append({"type": "reasoning", "text": reasoning})
    parts.extend({"type": "tool", "id": tool.id, "name": tool.name, "arguments": tool.arguments} for tool in tools)
    return _json(parts)
