"""What is deleted is not in the file any more, nor in what lies beside it; and what is old is deleted."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from flask import Flask

from flaskchat import forget
from flaskchat.log import rows
from flaskchat.log.base import Append
from flaskchat.log.rows import decode_row
from flaskchat.store.schema import conversations, journal
from flaskchat.store.schema import forgotten as forgotten_ids
from flaskchat.testing import ChatClient
from tests.hosts import host
from tests.rooms import TABLES
from tests.server.client import deadline

CANARY = "zyxwv-canary-ponmlk"


def left(tmp_path: Path, words: str = CANARY) -> list[str]:
    """The files that hold the word, or so much of it that the search index would find it."""
    parts = [words[at : at + 6].encode() for at in range(0, len(words) - 5, 3)]
    return [
        path.name
        for path in sorted((tmp_path / "instance").rglob("*"))
        if path.is_file() and any(part in path.read_bytes() for part in parts)
    ]


def aged(app: Flask, conversation_id: str, days: float) -> None:
    update = sa.update(conversations).where(conversations.c.id == conversation_id)
    at = time.time() - days * 86400
    app.extensions["flaskchat"].runtime.database.write(lambda c: c.execute(update.values(updated_at=at)))


def test_nothing_of_a_deleted_conversation_is_in_any_file(tmp_path: Path) -> None:
    app = host(tmp_path)
    with ChatClient(app) as chat:
        kept = chat.ask("something else that stays")
        reply = chat.ask(f"{CANARY} one")
        chat.ask(f"{CANARY} two", conversation_id=reply.conversation_id)
        path = f"/chat/conversations/{reply.conversation_id}"
        chat.client.patch(path, json={"title": f"{CANARY} title", "system_prompt": f"{CANARY} system"})
        assert left(tmp_path) != [], "or this would show nothing"
        assert chat.client.get("/chat/conversations?q=canary").json["items"]  # type: ignore[index]
        assert chat.client.delete(path).status_code == 204
        for _ in deadline(30, "the last bytes"):  # another thread may read the file in the moment of the checkpoint
            if not left(tmp_path):
                break
            app.extensions["flaskchat"].runtime.database.checkpoint()
        assert chat.client.get("/chat/conversations?q=canary").json["items"] == []  # type: ignore[index]
        assert chat.conversation(kept.conversation_id)["messages"]
        assert chat.client.get("/chat/conversations?q=stays").json["items"]  # type: ignore[index]
        check = app.extensions["flaskchat"].runtime.database.read(
            lambda c: c.execute(sa.text("PRAGMA integrity_check")).scalars().all()
        )
        assert check == ["ok"]


def test_what_was_changed_is_not_found_by_what_it_was(tmp_path: Path) -> None:
    app = host(tmp_path)
    with ChatClient(app) as chat:
        reply = chat.ask("hello")
        path = f"/chat/conversations/{reply.conversation_id}"
        chat.client.patch(path, json={"title": "elephants"})
        chat.client.patch(path, json={"title": "giraffes"})
        assert chat.client.get("/chat/conversations?q=elephant").json["items"] == []  # type: ignore[index]
        assert len(chat.client.get("/chat/conversations?q=giraffe").json["items"]) == 1  # type: ignore[index]


def test_the_journal_keeps_what_others_were_sent(tmp_path: Path) -> None:
    app = host(tmp_path)
    with ChatClient(app) as chat:
        mine, theirs = chat.ask(f"{CANARY} mine"), ChatClient(app).ask("somebody else's")
        chat.client.delete(f"/chat/conversations/{mine.conversation_id}")
        database = app.extensions["flaskchat"].runtime.database
        rows = database.read(lambda c: c.execute(sa.select(journal.c.version, journal.c.data)).all())
        entries = [entry for row in rows for entry in decode_row(row.version, row.data)]
        assert {entry.run_id for entry in entries if isinstance(entry, Append)} == {theirs.run_id}


def test_a_long_journal_is_looked_through_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "FORGET_ROWS", 2)
    app = host(tmp_path)
    with ChatClient(app) as chat:
        for _ in range(3):
            chat.ask("other")
        reply = chat.ask(CANARY)
        for _ in range(3):
            chat.ask("other")
        chat.client.delete(f"/chat/conversations/{reply.conversation_id}")
        database = app.extensions["flaskchat"].runtime.database
        found = database.read(lambda c: c.execute(sa.select(journal.c.data)).scalars().all())
        assert not any(reply.run_id.encode() in row for row in found)
        assert len(found) >= 7


# -- retention ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [None, "10"])
def test_purge_deletes_what_is_older_than_so_many_days(tmp_path: Path, days: str | None) -> None:
    app = host(tmp_path, FLASKCHAT_RETENTION_DAYS=10 if days is None else 0)
    with ChatClient(app) as chat:
        old, other, new = chat.ask(f"{CANARY} old"), ChatClient(app).ask(f"{CANARY} old"), chat.ask("new")
        for reply, age in ((old, 10.1), (other, 400), (new, 9.9)):
            aged(app, reply.conversation_id, age)
        arguments = ["chat", "purge", *(["--days", days] if days else [])]
        result = app.test_cli_runner().invoke(args=arguments)
        assert (result.exit_code, result.output) == (0, "2 conversations deleted.\n")
        listed = chat.client.get("/chat/conversations").json
        assert listed is not None
        assert [item["id"] for item in listed["items"]] == [new.conversation_id]
        assert app.test_cli_runner().invoke(args=arguments).output == "0 conversations deleted.\n"


def test_purge_wants_to_be_told_how_old(tmp_path: Path) -> None:
    result = host(tmp_path).test_cli_runner().invoke(args=["chat", "purge"])
    assert result.exit_code == 2
    assert "FLASKCHAT_RETENTION_DAYS" in result.output


def test_workers_delete_by_themselves_what_is_too_old(tmp_path: Path) -> None:
    app = host(tmp_path, FLASKCHAT_RETENTION_DAYS=1)
    with ChatClient(app) as chat:
        old = chat.ask("old")
        aged(app, old.conversation_id, 2)
        app.extensions["flaskchat"].runtime.sweeper._chores()
        assert chat.client.get(f"/chat/conversations/{old.conversation_id}").status_code == 404


def test_what_is_too_old_is_deleted_in_portions_so_that_a_worker_sees_to_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forget, "OLD", 1)
    monkeypatch.setattr(forget, "CHORES", 0.0)
    app = host(tmp_path, FLASKCHAT_RETENTION_DAYS=1)
    with ChatClient(app) as chat:
        for number in range(3):
            aged(app, chat.ask(f"old {number}").conversation_id, 2)
        chores = app.extensions["flaskchat"].runtime.sweeper._chores
        assert chores() is True, "it took more time than it has"
        monkeypatch.setattr(forget, "CHORES", 60.0)
        assert chores() is False
        assert chat.client.get("/chat/conversations").json == {"items": [], "next_cursor": None}


def test_without_a_retention_nothing_is_deleted(tmp_path: Path) -> None:
    app = host(tmp_path)
    with ChatClient(app) as chat:
        old = chat.ask("old")
        aged(app, old.conversation_id, 10_000)
        app.extensions["flaskchat"].runtime.sweeper._chores()
        assert chat.conversation(old.conversation_id)["messages"]


def test_every_table_with_texts_is_emptied(tmp_path: Path) -> None:
    app = host(tmp_path)
    with ChatClient(app) as chat:
        reply = chat.ask("hello")
        chat.client.delete(f"/chat/conversations/{reply.conversation_id}")
        database = app.extensions["flaskchat"].runtime.database
        for table in TABLES:
            if table.name not in ("flaskchat_workers", "flaskchat_journal"):
                count = sa.select(sa.func.count()).select_from(table)
                assert database.read(lambda c, count=count: c.execute(count).scalar()) == 0, table.name


def test_what_was_deleted_is_not_asked_again_by_a_copy_that_comes_late(tmp_path: Path) -> None:
    app = host(tmp_path)
    body = {"message": {"id": "b7b4f3c6-late", "text": "hello"}}
    with ChatClient(app) as chat, ChatClient(app) as other:
        first = chat.client.post("/chat/conversation", json=body)
        assert first.status_code == 200
        assert first.data.endswith(b"\n\n")
        listed = chat.client.get("/chat/conversations").json
        (item,) = listed["items"]  # type: ignore[index]
        assert chat.client.delete(f"/chat/conversations/{item['id']}").status_code == 204
        for _ in range(2):
            late = chat.client.post("/chat/conversation", json=body)
            assert late.status_code == 404
            assert late.json["code"] == "not_found"  # type: ignore[index]
        assert chat.client.get("/chat/conversations").json["items"] == []  # type: ignore[index]
        assert other.client.post("/chat/conversation", json=body).status_code == 200, "it is another's id"

        database = app.extensions["flaskchat"].runtime.database
        database.write(lambda c: c.execute(sa.update(forgotten_ids).values(at=time.time() - 2 * 86400)))
        forget.chores(database, 0)
        assert chat.client.post("/chat/conversation", json=body).status_code == 200
