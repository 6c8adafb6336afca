"""What a run's frames say: its text, its other parts and how it ended. For the rare times when only the log knows."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from . import sse
from .models import TERMINAL_EVENTS, Delta, Reasoning, RunState, Tool

_delta = msgspec.json.Decoder(Delta).decode
_reasoning = msgspec.json.Decoder(Reasoning).decode
_tool = msgspec.json.Decoder(Tool).decode


class Replay:
    """The sum of frames that follow each other."""

    def __init__(self, frames: Iterable[bytes]) -> None:
        self.state: RunState = "running"
        self.tools: list[Tool] = []
        self.terminal: sse.Frame | None = None
        text, reasoning = [], []
        decoder = sse.Decoder(max_line=1 << 30)
        for chunk in frames:
            for frame in decoder.feed(chunk):
                if frame.event == Delta.event:
                    text.append(_delta(frame.data).text)
                elif frame.event == Reasoning.event:
                    reasoning.append(_reasoning(frame.data).text)
                elif frame.event == Tool.event:
                    self.tools.append(_tool(frame.data))
                elif frame.event in TERMINAL_EVENTS:
                    self.state, self.terminal = frame.event, frame  # type: ignore[assignment]
        self.text = "".join(text)
        self.reasoning = "".join(reasoning)
