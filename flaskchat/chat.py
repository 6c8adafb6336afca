"""The use cases: reading a request's body as a command, and carrying it out. No Flask here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from . import forget
from .config import Settings
from .errors import Invalid, NotFound, NotJSON, TooMany
from .limits import Visitor
from .models import visible
from .reader import Reader
from .runtime import Runtime
from .store.base import Command
from .store.change import Change

T = TypeVar("T")

TITLE_CHARS = 200
ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")
ID_REASON = "expected 1 to 128 of A-Z, a-z, 0-9 and . _ : -"


class Question(msgspec.Struct):
    id: str
    text: str


class Body(msgspec.Struct, omit_defaults=True):
    action: Literal["send", "regenerate", "continue"] = "send"
    message: Question | None = None
    conversation_id: str | None = None
    parent_id: str | UnsetType | None = UNSET
    message_id: str | None = None
    request_id: str | None = None
    model: str | None = None
    system_prompt: str | None = None


_decode = msgspec.json.Decoder(Body).decode
_encode = msgspec.json.Encoder(order="sorted").encode
_PLACE = re.compile(r"^(?P<reason>.*?)(?: - at `\$\.?(?P<field>[^`]*)`)?$", re.DOTALL)


def parse(data: bytes, settings: Settings) -> Command:
    """The body of `POST /conversation` as a command.

    :raises NotJSON: it is not JSON.
    :raises Invalid: it is JSON, but not such a body; `errors` names every field that is wrong.
    """
    body = _read(data, _decode)
    wrong: list[tuple[str, str]] = []

    def check(field: str, value: Any, *, required: bool = False) -> None:
        if value is None or value is UNSET:
            if required:
                wrong.append((field, "missing"))
        elif not ID.match(value):
            wrong.append((field, ID_REASON))

    check("conversation_id", body.conversation_id)
    if body.model is not None and not 0 < len(body.model) <= 255:
        wrong.append(("model", "expected 1 to 255 characters"))
    if body.action == "send":
        check("parent_id", body.parent_id)
        if body.message is None:
            wrong.append(("message", "missing"))
        else:
            check("message.id", body.message.id)
            if not body.message.text.strip():
                wrong.append(("message.text", "empty"))
            elif len(body.message.text) > settings.max_text_chars:
                wrong.append(("message.text", f"longer than {settings.max_text_chars} characters"))
    else:
        check("message_id", body.message_id, required=True)
        check("request_id", body.request_id, required=True)
    prompt = _prompt(body.system_prompt, settings, wrong)
    if prompt is not None and (body.action != "send" or body.conversation_id is not None):
        wrong.append(("system_prompt", "only of a new conversation: PATCH /conversations/<id> changes that of another"))
    if wrong:
        raise _invalid(wrong)
    message = body.message if body.action == "send" else None
    return Command(
        action=body.action,
        client_id=message.id if message is not None else body.request_id or "",
        body_hash=hashlib.sha256(_encode(body)).hexdigest(),
        text=message.text.replace("\0", "\ufffd") if message is not None else "",
        conversation_id=body.conversation_id,
        parent_id=body.parent_id,
        message_id=body.message_id,
        model=body.model,
        system_prompt=prompt,
    )


def _prompt(text: str | None, settings: Settings, wrong: list[tuple[str, str]]) -> str | None:
    """A system prompt as it is stored; none where it says nothing. What is wrong with it is added to `wrong`."""
    prompt = (text or "").replace("\0", "\ufffd").strip() or None
    if prompt is not None and len(prompt) > settings.max_text_chars:
        wrong.append(("system_prompt", f"longer than {settings.max_text_chars} characters"))
    return prompt


def _read(data: bytes, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(data)
    except msgspec.ValidationError as error:
        place = _PLACE.match(str(error))
        assert place is not None
        raise _invalid([(place["field"] or "", place["reason"][:200])]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise NotJSON("The body is not JSON in UTF-8.") from None


def _invalid(wrong: list[tuple[str, str]]) -> Invalid:
    fields = ", ".join(field or "the body" for field, _ in wrong)
    return Invalid(f"Not valid: {fields}.", errors=[{"field": field, "reason": reason} for field, reason in wrong])


def converse(runtime: Runtime, visitor: Visitor, command: Command) -> tuple[str, Reader]:
    """Begin the run that a command asks for, or find the one it began before, and follow it from its start.

    :returns: the run's id and the response's body.
    """
    runtime.readers.admit()
    with runtime.readers.place():
        begun, live = None, None
        try:
            runtime.limits.enter(visitor)  # before the run begins: no model is asked for somebody who is refused
        except TooMany:
            begun = runtime.store.known(visitor.owner, command)
            if begun is None:
                raise
        try:
            if begun is None:
                begun, live = runtime.runs.start(visitor.owner, command)
            if live is not None:
                return begun.run_id, runtime.readers.attach(live, 0, visitor)
            visitor.returning = True
            stream = runtime.readers.join(begun.run_id, visitor, None)
            assert stream is not None, "a run's log has a start event"
            return begun.run_id, stream
        except BaseException:
            visitor.release()
            raise


_decode_change = msgspec.json.Decoder(Change).decode


def parse_change(data: bytes, runtime: Runtime) -> Change:
    """The body of `PATCH /conversations/<id>`.

    :raises NotJSON, Invalid: as `parse` does.
    """
    change = _read(data, _decode_change)
    wrong: list[tuple[str, str]] = []
    if change.title is not UNSET:
        change.title = " ".join(visible(change.title).split())
        if not 0 < len(change.title) <= TITLE_CHARS:
            wrong.append(("title", f"expected 1 to {TITLE_CHARS} characters"))
    if change.current_leaf_id is not UNSET and not ID.match(change.current_leaf_id):
        wrong.append(("current_leaf_id", ID_REASON))
    if change.system_prompt is not UNSET:
        change.system_prompt = _prompt(change.system_prompt, runtime.settings, wrong)
    if wrong:
        raise _invalid(wrong)
    if change.model is not UNSET and change.model is not None:
        change.model = runtime.models.pick(change.model, None)
    return change


def change(runtime: Runtime, owner: str, conversation_id: str, wanted: Change) -> dict[str, object]:
    """Change a conversation and return it as it is then.

    :raises NotFound: there is no such conversation, or it is another's.
    """
    if runtime.store.change(conversation_id, owner, wanted):
        found = runtime.store.conversation(conversation_id, owner)
        if found is not None:
            return found
    raise NotFound("There is no such conversation.")


def delete(runtime: Runtime, owner: str, conversation_id: str) -> None:
    """Stop what is being written in a conversation, then delete it with everything that belongs to it.

    :raises NotFound: there is no such conversation, or it is another's.
    """
    running = runtime.store.running(conversation_id, owner)
    if running is None:
        raise NotFound("There is no such conversation.")
    stopped: set[str] = set()
    while True:
        for run_id in running:
            runtime.runs.stop(run_id, owner)
        stopped.update(running)
        running = forget.conversation(runtime.database, runtime.pump.log, conversation_id, owner, stopped)
        if not running:
            return
