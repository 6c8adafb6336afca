"""The store over SQLAlchemy Core: runs, and reading conversations and messages.

Every call is one transaction. Ownership is part of each query, so an unknown id and somebody else's answer alike.
"""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Callable, Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from ..errors import Invalid, NotFound
from . import change, forgotten, search, usage
from .base import Begun, Command, Lease, Page, RunRow
from .begin import Beginning
from .engine import Database
from .lease import Holding, Unregistered
from .schema import conversations, messages, requests, run_events, runs


def _stamp(seconds: float) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


_KNOWN = (
    sa.select(requests.c.body_hash, runs, conversations.c.title)
    .join(runs, runs.c.id == requests.c.run_id)
    .join(conversations, conversations.c.id == runs.c.conversation_id)
    .where(requests.c.owner == sa.bindparam("asker"), requests.c.client_id == sa.bindparam("client"))
)
_RUN = sa.select(runs).where(runs.c.id == sa.bindparam("run"))
_UNDER = (
    sa.select(runs, conversations.c.title)
    .join(conversations, conversations.c.id == runs.c.conversation_id)
    .where(runs.c.state == "running", runs.c.worker_id == sa.bindparam("worker"), runs.c.epoch == sa.bindparam("term"))
)


class Store:
    def __init__(self, database: Database, quota: usage.Quota = usage.NO_QUOTA) -> None:
        """:param quota: of each owner."""
        self.database = database
        self._quota = quota

    def begin(self, owner: str, command: Command, holding: Holding, pick: Callable[[str | None], str]) -> Begun:
        """Write the messages and the run that a command asks for, or find the run that it began before.

        :param holding: this worker's lease; the run belongs to it.
        :param pick: which model answers, given the one the conversation had.
        :raises Fenced: the lease has been taken over; take a new one and call again.
        :raises NotFound, Conflict, Invalid, TooMany: when, README.md says (*The codes of errors*).
        """
        while True:
            try:
                return self.database.write(lambda c: self._begin(c, owner, command, holding, pick))
            except Unregistered:
                holding.confirm(self.database.write(holding.register))

    def _begin(
        self, c: Connection, owner: str, command: Command, holding: Holding, pick: Callable[[str | None], str]
    ) -> Begun:
        self.database.alone(c, owner)
        known = self._known(c, owner, command)
        if known is not None:
            return known
        if command.action == "send" and command.conversation_id is None and forgotten.has(c, owner, command.client_id):
            raise NotFound("What was asked under this id has been deleted.")
        now = self.database.now(c)
        usage.check(c, owner, self._quota, now)
        begun = Beginning(c, owner, command, lambda: holding.ensure(c), pick, now).write()
        usage.note(c, begun, self._quota, now)
        return begun

    def known(self, owner: str, command: Command) -> Begun | None:
        """The run that this client id began before, if it did.

        :raises Invalid: `idempotency_conflict`, when the body was another.
        """
        return self.database.read(lambda c: self._known(c, owner, command))

    def _known(self, c: Connection, owner: str, command: Command) -> Begun | None:
        row = c.execute(_KNOWN, {"asker": owner, "client": command.client_id}).first()
        if row is None:
            return None
        if row.body_hash != command.body_hash:
            raise Invalid(
                "This id was used before for another request.",
                code="idempotency_conflict",
                errors=[{"field": "message.id" if command.action == "send" else "request_id", "reason": "used before"}],
            )
        return _begun(row)

    # -- runs ------------------------------------------------------------------------------------------------------

    def run(self, run_id: str, owner: str | None) -> RunRow | None:
        """:param owner: whose it must be; None asks as the system, for any owner's."""
        return self.database.read(lambda c: self._run(c, run_id, owner))

    @staticmethod
    def _run(c: Connection, run_id: str, owner: str | None) -> RunRow | None:
        row = c.execute(_RUN, {"run": run_id}).first()
        if row is None or (owner is not None and row.owner != owner):
            return None
        return RunRow(
            run_id=row.id,
            conversation_id=row.conversation_id,
            message_id=row.message_id,
            owner=row.owner,
            state=row.state,
            worker_id=row.worker_id,
            epoch=row.epoch,
            last_seq=row.last_seq,
            upstream_closed_ms=row.upstream_closed_ms,
        )

    def still_running(self, run_ids: Collection[str]) -> set[str]:
        """Which of these runs have not ended; those that are deleted are none of them."""
        wanted = sa.select(runs.c.id).where(runs.c.id.in_(run_ids), runs.c.state == "running")
        return set(self.database.read(lambda c: c.execute(wanted).scalars().all()))

    def running_under(self, lease: Lease) -> list[Begun]:
        """The runs that a worker has by the store's account."""
        values = {"worker": lease.worker_id, "term": lease.epoch}
        return [_begun(row, lease) for row in self.database.read(lambda c: c.execute(_UNDER, values).all())]

    def frames(self, run_id: str) -> bytes | None:
        """The events of a finished run, as they were sent; None while it runs."""
        return self.database.read(
            lambda c: c.execute(sa.select(run_events.c.frames).where(run_events.c.run_id == run_id)).scalar()
        )

    # -- conversations ---------------------------------------------------------------------------------------------

    def conversation(self, conversation_id: str, owner: str) -> dict[str, object] | None:
        return self.database.read(lambda c: self._conversation(c, conversation_id, owner))

    @staticmethod
    def _conversation(c: Connection, conversation_id: str, owner: str) -> dict[str, object] | None:
        found = c.execute(
            sa.select(conversations).where(conversations.c.id == conversation_id, conversations.c.owner == owner)
        ).first()
        if found is None:
            return None
        rows = c.execute(
            sa.select(messages).where(messages.c.conversation_id == conversation_id).order_by(messages.c.position)
        ).all()
        return {
            "id": found.id,
            "title": found.title,
            "model": found.model,
            "system_prompt": found.system_prompt,
            "current_leaf_id": found.current_leaf_id,
            "messages": [_message(row) for row in rows],
            "running": [{"run_id": row.run_id, "message_id": row.id} for row in rows if row.status == "running"],
        }

    def conversations(self, owner: str, *, query: str, cursor: str | None, limit: int) -> Page:
        """An owner's conversations, the newest first.

        :param query: words that the title or one message's text must contain, each item then has the `hit`.
        :param cursor: `next_cursor` of the page before.
        :raises Invalid: the cursor is not one of ours.
        """
        return self.database.read(lambda c: self._conversations(c, owner, query, cursor, limit))

    @staticmethod
    def _conversations(c: Connection, owner: str, query: str, cursor: str | None, limit: int) -> Page:
        running = (
            sa.select(runs.c.id)
            .where(runs.c.conversation_id == conversations.c.id, runs.c.state == "running")
            .order_by(runs.c.started_at.desc())
            .limit(1)
            .scalar_subquery()
        )
        select = sa.select(conversations, running.label("running_run_id")).where(conversations.c.owner == owner)
        if cursor is not None:
            updated_at, last_id = _decode_cursor(cursor)
            select = select.where(
                sa.tuple_(conversations.c.updated_at, conversations.c.id) < sa.tuple_(updated_at, last_id)
            )
        words = search.words_of(query)
        found = search.find(c, owner, words) if words else {}
        if words:
            select = select.where(conversations.c.id.in_(found))
        select = select.order_by(conversations.c.updated_at.desc(), conversations.c.id.desc()).limit(limit + 1)
        rows = c.execute(select).all()
        items: list[dict[str, object]] = [
            {
                "id": row.id,
                "title": row.title,
                "model": row.model,
                "updated_at": _stamp(row.updated_at),
                "running_run_id": row.running_run_id,
            }
            for row in rows[:limit]
        ]
        if words:
            hits = search.hits(c, found, [row.id for row in rows[:limit]], words)
            for item in items:
                item["hit"] = hits.get(str(item["id"]))
        last = rows[limit - 1] if len(rows) > limit else None
        return Page(items, _encode_cursor(last.updated_at, last.id) if last is not None else None)

    def change(self, conversation_id: str, owner: str, wanted: change.Change) -> bool:
        """:returns: False when there is no such conversation, or it is another's.
        :raises Invalid: the leaf is not a message of the conversation.
        """

        def apply(c: Connection) -> bool:
            self.database.alone(c, owner)
            return change.apply(c, conversation_id, owner, wanted)

        return self.database.write(apply)

    def retitle(self, conversation_id: str, before: str, title: str) -> bool:
        """Set a title in place of the one before.

        :returns: False when somebody has set another meanwhile.
        """
        return self.database.write(lambda c: change.retitle(c, conversation_id, before, title))

    def running(self, conversation_id: str, owner: str) -> list[str] | None:
        """The runs of a conversation that are being written; None when it is not there, or another's."""
        return self.database.read(lambda c: change.running(c, conversation_id, owner))


def _begun(row: Row[Any], lease: Lease | None = None) -> Begun:
    return Begun(
        run_id=row.id, conversation_id=row.conversation_id, message_id=row.message_id,
        user_message_id=row.user_message_id, model=row.model, title=row.title, owner=row.owner, created=False,
        lease=lease,
    )  # fmt: skip


def _encode_cursor(updated_at: float, last_id: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([updated_at, last_id]).encode()).decode().rstrip("=")


def _decode_cursor(cursor: str) -> tuple[float, str]:
    try:
        updated_at, last_id = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if not str(last_id).isascii() or "\0" in str(last_id):  # ours are; others could not even be asked for
            raise ValueError
        return float(updated_at), str(last_id)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise Invalid("The cursor is not one of ours.", errors=[{"field": "cursor", "reason": "unknown"}]) from None


def _message(row: Row[Any]) -> dict[str, object]:
    parts = json.loads(row.parts)
    if row.text:
        parts.append({"type": "text", "text": row.text})
    return {
        "id": row.id,
        "parent_id": row.parent_id,
        "role": row.role,
        "text": row.text,
        "parts": parts,
        "model": row.model,
        "status": row.status,
        "run_id": row.run_id,
        "finish_reason": row.finish_reason,
        "usage": json.loads(row.usage) if row.usage else None,
        "error": json.loads(row.error) if row.error else None,
        "created_at": _stamp(row.created_at),
    }
