"""The data that crosses the rooms: messages, runs and the closed set of events.

Pure data, no I/O. An event's name on the wire is `Event.event`; its JSON is the struct's own fields, so a struct
is the one definition of a frame's payload.
"""

from __future__ import annotations

import re
import secrets
from typing import ClassVar, Literal

import msgspec

Role = Literal["user", "assistant"]
RunState = Literal["running", "done", "error", "stopped", "interrupted"]


class Usage(msgspec.Struct, omit_defaults=True):
    """What a reply cost, in tokens, as the model counted it."""

    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total(self) -> int:
        """Tokens in all, at most what 32 bits of the database hold: a model's server may report anything."""
        return min(self.input_tokens + self.output_tokens, (1 << 31) - 1)


class Start(msgspec.Struct):
    event: ClassVar[str] = "start"
    run_id: str
    conversation_id: str
    message_id: str
    user_message_id: str
    model: str
    title: str


class Delta(msgspec.Struct):
    """Text that one tick brought: one token or more."""

    event: ClassVar[str] = "delta"
    text: str


class Reasoning(msgspec.Struct):
    """What the model thought before it answered; never part of the message's text."""

    event: ClassVar[str] = "reasoning"
    text: str


class Tool(msgspec.Struct):
    """A call of a tool that the model asked for; `arguments` is JSON as the model wrote it."""

    event: ClassVar[str] = "tool"
    id: str
    name: str
    arguments: str = ""


class Title(msgspec.Struct):
    event: ClassVar[str] = "title"
    title: str


class Done(msgspec.Struct):
    event: ClassVar[str] = "done"
    finish_reason: str = "stop"
    usage: Usage | None = None


class Error(msgspec.Struct):
    event: ClassVar[str] = "error"
    code: str
    message: str
    retryable: bool = False


class Stopped(msgspec.Struct):
    event: ClassVar[str] = "stopped"


class Interrupted(msgspec.Struct):
    event: ClassVar[str] = "interrupted"
    message: str


class Reset(msgspec.Struct):
    """Not numbered: the text so far and the true seq, for a reader whose cursor means nothing."""

    event: ClassVar[str] = "reset"
    seq: int
    text: str


Event = Start | Delta | Reasoning | Tool | Title | Done | Error | Stopped | Interrupted
Terminal = Done | Error | Stopped | Interrupted
TERMINAL_EVENTS: frozenset[str] = frozenset({"done", "error", "stopped", "interrupted"})


class Turn(msgspec.Struct):
    """One message as a model is shown it."""

    role: Role
    text: str


class Request(msgspec.Struct, kw_only=True):
    """What a model is asked. A Python model gets it as its one argument.

    Where a reply goes on that was stopped or interrupted, `partial` is what it says already: that stays, and what the
    model yields comes after it.
    """

    model: str
    """The model's own name, without the provider: `gpt-5-mini`."""
    turns: list[Turn]
    """The branch from its first message to the question, oldest first."""
    system_prompt: str = ""
    partial: str = ""
    """What the reply says already, where a stopped or interrupted one is continued."""
    stream: bool = True
    """False: the answer is wanted as one document. Python models are always asked for a stream."""
    conversation_id: str = ""
    message_id: str = ""
    run_id: str = ""
    owner: str = ""

    @property
    def text(self) -> str:
        """The question: the text of the last user message."""
        return next((turn.text for turn in reversed(self.turns) if turn.role == "user"), "")


def new_id(prefix: str) -> str:
    """An opaque ASCII id nobody can guess: 128 random bits after the prefix."""
    return f"{prefix}_{secrets.token_urlsafe(16)}"


_INVISIBLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """The text without control characters, invisible ones and those that turn the direction of what follows."""
    return _INVISIBLE.sub(" ", text)
