"""`flask chat db check`: what differs between two databases, and what does not hold together within one."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from flaskchat import audit
from flaskchat.store.schema import conversations, messages, requests, run_events, runs
from tests.moving import both, copy, fill, rooms_at
from tests.rooms import OWNER


@pytest.fixture
def file(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'old.sqlite3'}"


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (sa.update(messages).where(messages.c.role == "assistant").values(text="x"), "messages: 3 differ (2, 4, 6)"),
        (sa.delete(requests), "requests: 3 are missing in "),
        (sa.update(conversations).values(title="another"), "conversations: 1 differ (1)"),
        (sa.update(run_events).values(frames=b""), "runs' events: 3 differ (run_"),
    ],
)
def test_check_names_what_differs(file: str, tmp_path: Path, statement: sa.Executable, words: str) -> None:
    other = f"sqlite:///{tmp_path / 'copy.sqlite3'}"
    with rooms_at(file) as rooms:
        fill(rooms, 3)
    assert copy(file, other) == []
    with both(file, other) as (one, two):
        two.write(lambda c: c.execute(statement))
        (said,) = audit.compare(one, two)
        assert words in said


_LEAF = sa.select(runs.c.message_id).order_by(runs.c.started_at.desc()).limit(1).scalar_subquery()
_ANOTHER = sa.insert(conversations).values(id="c_2", owner=OWNER, title="", created_at=1.0, updated_at=1.0)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (sa.update(messages).where(messages.c.role == "assistant").values(text="x"), "another text than their events"),
        (sa.delete(run_events), "3 runs have ended without events"),
        (sa.update(runs).values(state="stopped"), "replies are in another state than their runs"),
        (sa.update(runs).values(last_seq=7), "3 runs have events that are not whole"),
        (sa.update(messages).values(parent_id="m_x"), "messages follow one that is not there"),
        (sa.delete(messages).where(messages.c.role == "user"), "3 runs answer no question"),
        (sa.update(conversations).values(current_leaf_id="m_x"), "conversations show a message that is not there"),
        (sa.update(messages).values(run_id="run_x"), "messages name a run that is not there"),
        (sa.update(messages).values(run_id=None), "3 replies name no run"),
        (sa.update(messages).where(messages.c.role == "user").values(parent_id=_LEAF), "messages follow one that"),
        (sa.update(messages).values(position=-messages.c.position), "messages follow one that is not there"),
        (sa.update(messages).where(messages.c.role == "user").values(conversation_id="c_2"), "3 runs answer no"),
        (sa.update(conversations).where(conversations.c.id == "c_2").values(current_leaf_id=_LEAF),
         "conversations show a message that is not there (c_2)"),
    ],
)  # fmt: skip
def test_check_finds_what_does_not_hold_together(file: str, statement: sa.Executable, words: str) -> None:
    with rooms_at(file) as rooms:
        fill(rooms, 3)
        rooms.database.write(lambda c: c.execute(_ANOTHER))
        assert audit.inspect(rooms.database) == []
        rooms.database.write(lambda c: c.execute(statement))
        assert words in "\n".join(audit.inspect(rooms.database))


def test_check_finds_an_index_that_is_not_its_table_s(file: str) -> None:
    with rooms_at(file) as rooms:
        fill(rooms, 3)
        (page,) = rooms.rows(
            sa.text("SELECT rootpage FROM sqlite_master WHERE name = 'flaskchat_conversations_by_owner'")
        )
        (size,) = rooms.rows(sa.text("PRAGMA page_size"))
        rooms.database.forget()  # moves all into the file
    path = Path(file.removeprefix("sqlite:///"))
    data, at = bytearray(path.read_bytes()), (page[0] - 1) * size[0]
    assert OWNER.encode() in data[at : at + size[0]]
    data[at : at + size[0]] = data[at : at + size[0]].replace(OWNER.encode(), OWNER.encode()[::-1])
    path.write_bytes(data)
    with rooms_at(file) as rooms:
        assert "flaskchat_conversations_by_owner" in "\n".join(audit.inspect(rooms.database))


def test_a_continued_reply_is_the_sum_of_its_runs(file: str) -> None:
    with rooms_at(file) as rooms:
        begun = rooms.begin("Tell me")
        rooms.append(begun, "Once ")
        rooms.live.pop(begun.run_id)
        rooms.sweeper.end([begun.run_id])
        again = rooms.begin(action="continue", text="", message_id=begun.message_id)
        rooms.run(again, "upon a time")
        assert rooms.text(begun) == "Once upon a time"
        assert audit.inspect(rooms.database) == []
        started = {row.id: row.started_at for row in rooms.rows(sa.select(runs.c.id, runs.c.started_at))}
        assert started[begun.run_id] < started[again.run_id]
        rooms.database.write(lambda c: c.execute(sa.update(runs).values(started_at=-runs.c.started_at)))
        assert audit.inspect(rooms.database) == [], "the two nodes' clocks may differ"
