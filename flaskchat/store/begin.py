"""Beginning a run: the messages and the run that a command asks for, inside one transaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from msgspec import UNSET
from sqlalchemy.engine import Connection, Row

from ..errors import Conflict, Invalid, NotFound
from ..models import Turn, new_id, visible
from .base import Begun, Command, Lease
from .schema import conversations, journal, messages, requests, runs

TITLE_CHARS = 60

# Statements are made once and given parameters: building one costs more than running it.
_INSERT_CONVERSATION = sa.insert(conversations)
_INSERT_MESSAGE = sa.insert(messages)
_INSERT_RUN = sa.insert(runs)
_INSERT_REQUEST = sa.insert(requests)
_NEWEST_ROW = sa.select(sa.func.coalesce(sa.func.max(journal.c.id), 0))
_MESSAGES = (
    sa.select(
        messages.c.id, messages.c.parent_id, messages.c.role, messages.c.text, messages.c.status, messages.c.run_id
    )
    .where(messages.c.conversation_id == sa.bindparam("conversation"))
    .order_by(messages.c.position)
)
_SHOW = (
    sa.update(conversations)
    .where(conversations.c.id == sa.bindparam("conversation"))
    .values(current_leaf_id=sa.bindparam("leaf"), updated_at=sa.bindparam("now"), model=sa.bindparam("answering"))
)


def title_of(text: str) -> str:
    """A conversation's first title: the question's first words."""
    words = " ".join(visible(text).split())
    if len(words) <= TITLE_CHARS:
        return words or "New conversation"
    return words[:TITLE_CHARS].rsplit(" ", 1)[0].rstrip(" ,;:") + "…"


class Beginning:
    """One command being carried out inside its transaction."""

    def __init__(
        self, c: Connection, owner: str, command: Command, ensure: Callable[[], Lease],
        pick: Callable[[str | None], str], now: float,
    ) -> None:  # fmt: skip
        """:param ensure: gives the lease, once nothing is refused any more.
        :param now: by the database's clock.
        """
        self.c, self.owner, self.command, self.ensure, self.pick, self.now = c, owner, command, ensure, pick, now

    def write(self) -> Begun:
        command = self.command
        new = command.conversation_id is None and command.action == "send"
        conversation = self._create() if new else self._find()
        rows = {} if new else {row.id: row for row in self._messages(conversation["id"])}
        position = len(rows)
        partial = ""
        if command.action == "send":
            parent_id = conversation["current_leaf_id"] if command.parent_id is UNSET else command.parent_id
            self._check_parent(parent_id, rows)
            self._refuse_beside(rows, parent_id, question=True)
            question_id, message_id = new_id("m"), new_id("m")
            branch = [*_branch(rows, parent_id), Turn("user", command.text)]
            self._insert(question_id, conversation["id"], position, parent_id, "user", command.text, "done", None, None)
            position += 1
        else:
            reply = rows[command.message_id or ""]
            question_id = reply.parent_id
            branch = _branch(rows, question_id)
            message_id = reply.id if command.action == "continue" else new_id("m")
            if command.action == "continue":
                partial = reply.text
                self._check_continue(reply)
            self._refuse_beside(rows, question_id, question=False)
        model = self.pick(conversation["model"])
        lease = self.ensure()
        run_id = new_id("run")
        if command.action == "continue":
            self.c.execute(
                sa.update(messages)
                .where(messages.c.id == message_id)
                .values(status="running", run_id=run_id, model=model, error=None, finish_reason=None)
            )
        else:
            self._insert(
                message_id, conversation["id"], position, question_id, "assistant", "", "running", model, run_id
            )
        self._insert_run(run_id, conversation["id"], message_id, question_id, model, lease)
        self.c.execute(
            _SHOW, {"conversation": conversation["id"], "leaf": message_id, "now": self.now, "answering": model}
        )
        return Begun(
            run_id=run_id,
            conversation_id=conversation["id"],
            message_id=message_id,
            user_message_id=question_id,
            model=model,
            title=conversation["title"],
            owner=self.owner,
            created=True,
            lease=lease,
            turns=branch,
            system_prompt=conversation["system_prompt"] or "",
            partial=partial,
        )

    def _create(self) -> dict[str, Any]:
        if self.command.parent_id is not UNSET and self.command.parent_id is not None:
            raise Invalid(
                "A new conversation has no messages yet.",
                errors=[{"field": "parent_id", "reason": "needs conversation_id"}],
            )
        values: dict[str, Any] = {
            "id": new_id("c"),
            "owner": self.owner,
            "title": title_of(self.command.text),
            "model": None,
            "system_prompt": self.command.system_prompt,
            "current_leaf_id": None,
            "created_at": self.now,
            "updated_at": self.now,
        }
        self.c.execute(_INSERT_CONVERSATION, values)
        return values

    def _find(self) -> dict[str, Any]:
        """The conversation: named in a send, else that of the reply."""
        query = sa.select(conversations).where(conversations.c.owner == self.owner)
        if self.command.action == "send":
            query = query.where(conversations.c.id == self.command.conversation_id)
        else:
            query = query.join(messages, messages.c.conversation_id == conversations.c.id).where(
                messages.c.id == self.command.message_id, messages.c.role == "assistant"
            )
            if self.command.conversation_id is not None:
                query = query.where(conversations.c.id == self.command.conversation_id)
        row = self.c.execute(query).mappings().first()
        if row is None:
            raise NotFound("There is no such conversation or message.")
        return dict(row)

    def _messages(self, conversation_id: str) -> list[Row[Any]]:
        return list(self.c.execute(_MESSAGES, {"conversation": conversation_id}))

    def _check_parent(self, parent_id: str | None, rows: dict[str, Row[Any]]) -> None:
        if parent_id is None:
            return
        parent = rows.get(parent_id)
        if parent is None:
            raise NotFound("There is no such message in this conversation.")
        if parent.role != "assistant":
            raise Invalid("A question follows a reply.", errors=[{"field": "parent_id", "reason": "not a reply"}])

    def _check_continue(self, reply: Row[Any]) -> None:
        if reply.status in ("done", "error"):
            raise Invalid(
                "Only a stopped or interrupted reply can be continued.",
                errors=[{"field": "message_id", "reason": f"the reply is {reply.status}"}],
            )

    def _refuse_beside(self, rows: dict[str, Row[Any]], fork_id: str | None, *, question: bool) -> None:
        """:raises Conflict: a reply is being written at the place where the new one would go.

        That is the parent itself, or a reply to the same question, or to another question at the same fork: two tabs
        that send at once are two questions at one fork, and one of them wins.
        """
        for row in rows.values():
            if row.status != "running":
                continue
            asked = rows.get(row.parent_id)
            at = {row.id, asked.parent_id if asked is not None else None} if question else {row.parent_id}
            if fork_id in at:
                raise Conflict("A reply is already being written here.", run_id=row.run_id)

    def _insert(
        self, message_id: str, conversation_id: str, position: int, parent_id: str | None, role: str, text: str,
        status: str, model: str | None, run_id: str | None,
    ) -> None:  # fmt: skip
        self.c.execute(
            _INSERT_MESSAGE,
            {
                "id": message_id, "conversation_id": conversation_id, "position": position, "parent_id": parent_id,
                "role": role, "text": text, "parts": "[]", "status": status, "model": model, "run_id": run_id,
                "created_at": self.now,
            },
        )  # fmt: skip

    def _insert_run(
        self, run_id: str, conversation_id: str, message_id: str, question_id: str, model: str, lease: Lease
    ) -> None:
        self.c.execute(
            _INSERT_RUN,
            {
                "id": run_id, "conversation_id": conversation_id, "message_id": message_id,
                "user_message_id": question_id, "owner": self.owner, "model": model, "state": "running",
                "worker_id": lease.worker_id, "epoch": lease.epoch,
                "first_row": self.c.execute(_NEWEST_ROW).scalar_one(), "last_seq": 0, "started_at": self.now,
            },
        )  # fmt: skip
        command = self.command
        self.c.execute(
            _INSERT_REQUEST,
            {
                "owner": self.owner, "client_id": command.client_id, "body_hash": command.body_hash, "run_id": run_id,
            },
        )  # fmt: skip


def _branch(rows: dict[str, Row[Any]], leaf_id: str | None) -> list[Turn]:
    """The messages from the first to `leaf_id`. Replies without text say nothing to a model and are left out."""
    branch: list[Turn] = []
    while leaf_id is not None and leaf_id in rows:
        row = rows[leaf_id]
        if row.text:
            branch.append(Turn(row.role, row.text))
        leaf_id = row.parent_id
    return branch[::-1]
