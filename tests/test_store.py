"""Beginning a run: new conversations, edits, regenerations, continuations, repeats, and who is refused."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from flaskchat.errors import Conflict, Invalid, NotFound, Unavailable
from flaskchat.models import Turn
from flaskchat.store.base import Begun, Command
from flaskchat.store.schema import conversations, messages, runs
from tests.rooms import OWNER, TABLES, Rooms, count

pytestmark = pytest.mark.backends("sqlite", "postgres")


@pytest.fixture
def rooms(make: Callable[[], Rooms]) -> Rooms:
    return make()


def answered(rooms: Rooms, text: str = "Hi", reply: str = "Hello", **more: object) -> Begun:
    begun = rooms.begin(text, **more)
    rooms.run(begun, reply)
    return begun


def stopped(rooms: Rooms, reply: str) -> Begun:
    """A reply that was interrupted after so much text."""
    begun = answered(rooms, reply=reply)
    set_state(rooms, begun, "stopped")
    return begun


def set_state(rooms: Rooms, begun: Begun, state: str) -> None:
    for table, column, value in ((messages, "status", begun.message_id), (runs, "state", begun.run_id)):
        statement = sa.update(table).where(table.c.id == value).values({column: state})
        rooms.database.write(lambda c, statement=statement: c.execute(statement))  # type: ignore[misc]


def shown(rooms: Rooms, begun: Begun) -> dict[str, object]:
    found = rooms.store.conversation(begun.conversation_id, OWNER)
    assert found is not None
    return found


def test_a_first_question_makes_a_conversation_with_both_messages(rooms: Rooms) -> None:
    begun = rooms.begin("What is  a\nlog?")
    assert begun.title == "What is a log?"
    assert begun.turns == [Turn("user", "What is  a\nlog?")]
    found = shown(rooms, begun)
    assert [(m["role"], m["parent_id"], m["status"]) for m in found["messages"]] == [  # type: ignore[attr-defined]
        ("user", None, "done"),
        ("assistant", begun.user_message_id, "running"),
    ]
    assert found["current_leaf_id"] == begun.message_id
    assert found["running"] == [{"run_id": begun.run_id, "message_id": begun.message_id}]


def test_a_finished_run_is_written_whole(rooms: Rooms) -> None:
    begun = answered(rooms, reply="Hello")
    (_, reply) = shown(rooms, begun)["messages"]  # type: ignore[misc]
    assert (reply["text"], reply["status"], reply["finish_reason"]) == ("Hello", "done", "stop")
    row = rooms.store.run(begun.run_id, OWNER)
    assert row is not None
    assert (row.state, row.last_seq) == ("done", 3)
    assert [frame.event for frame in rooms.frames(begun)] == ["start", "delta", "done"]
    assert shown(rooms, begun)["running"] == []


def test_a_further_question_carries_the_branch(rooms: Rooms) -> None:
    first = answered(rooms)
    second = answered(rooms, "And?", "So.", conversation_id=first.conversation_id)
    third = rooms.begin("Then?", conversation_id=first.conversation_id)
    assert second.conversation_id == first.conversation_id
    assert third.turns == [
        Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "And?"), Turn("assistant", "So."),
        Turn("user", "Then?"),
    ]  # fmt: skip


def test_an_edit_in_the_middle_makes_a_sibling_and_overwrites_nothing(rooms: Rooms) -> None:
    first = answered(rooms)
    answered(rooms, "And?", "So.", conversation_id=first.conversation_id)
    edited = rooms.begin("But?", conversation_id=first.conversation_id, parent_id=first.message_id)
    assert edited.turns == [Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "But?")]
    found = shown(rooms, edited)
    assert [m["text"] for m in found["messages"]] == ["Hi", "Hello", "And?", "So.", "But?", ""]  # type: ignore[attr-defined]
    assert found["current_leaf_id"] == edited.message_id


def test_an_edit_of_the_first_question_is_a_second_root(rooms: Rooms) -> None:
    first = answered(rooms)
    edited = rooms.begin("Good day", conversation_id=first.conversation_id, parent_id=None)
    assert edited.turns == [Turn("user", "Good day")]
    roots = [m for m in shown(rooms, edited)["messages"] if m["parent_id"] is None]  # type: ignore[attr-defined]
    assert [m["text"] for m in roots] == ["Hi", "Good day"]
    with pytest.raises(Conflict):
        rooms.begin("Third", conversation_id=first.conversation_id, parent_id=None)


def test_a_regeneration_is_a_sibling_of_the_reply(rooms: Rooms) -> None:
    first = answered(rooms)
    again = rooms.begin(action="regenerate", text="", message_id=first.message_id)
    assert again.message_id != first.message_id
    assert again.user_message_id == first.user_message_id
    assert again.turns == [Turn("user", "Hi")]
    rooms.run(again, "Good day")
    texts = [m["text"] for m in shown(rooms, again)["messages"]]  # type: ignore[attr-defined]
    assert texts == ["Hi", "Hello", "Good day"]


def test_a_continuation_adds_to_the_same_message(rooms: Rooms) -> None:
    first = stopped(rooms, "Hel")
    further = rooms.begin(action="continue", text="", message_id=first.message_id)
    assert further.message_id == first.message_id
    assert further.run_id != first.run_id
    assert further.partial == "Hel"
    assert further.turns == [Turn("user", "Hi")]
    rooms.run(further, "lo")
    assert rooms.text(further) == "Hello"
    assert [frame.event for frame in rooms.frames(first)] == ["start", "delta", "done"], "the first run's log stays"


@pytest.mark.parametrize("state", ["done", "error"])
def test_only_what_was_broken_off_is_continued(rooms: Rooms, state: str) -> None:
    first = answered(rooms)
    set_state(rooms, first, state)
    with pytest.raises(Invalid) as caught:
        rooms.begin(action="continue", text="", message_id=first.message_id)
    assert caught.value.errors == [{"field": "message_id", "reason": f"the reply is {state}"}]


def test_a_question_below_a_running_reply_is_refused_with_its_run(rooms: Rooms) -> None:
    begun = rooms.begin()
    refused = [
        {"conversation_id": begun.conversation_id},
        {"conversation_id": begun.conversation_id, "parent_id": None},
        {"action": "regenerate", "text": "", "message_id": begun.message_id},
        {"action": "continue", "text": "", "message_id": begun.message_id},
    ]
    for more in refused:
        with pytest.raises(Conflict) as caught:
            rooms.begin(**{"text": "And?", **more})
        assert caught.value.extra == {"run_id": begun.run_id}
    assert count(rooms, messages) == 2


def test_another_branch_goes_on_beside_a_running_reply(rooms: Rooms) -> None:
    first = answered(rooms)
    second = answered(rooms, "And?", "So.", conversation_id=first.conversation_id)
    running = rooms.begin("Deep", conversation_id=first.conversation_id)
    beside = rooms.begin("Beside", conversation_id=first.conversation_id, parent_id=first.message_id)
    assert {run["run_id"] for run in shown(rooms, first)["running"]} == {running.run_id, beside.run_id}  # type: ignore[attr-defined]
    with pytest.raises(Conflict) as caught:
        rooms.begin("Deep too", conversation_id=first.conversation_id, parent_id=second.message_id)
    assert caught.value.extra == {"run_id": running.run_id}


def test_two_tabs_that_ask_at_once_at_one_fork_get_one_run(make: Callable[[], Rooms]) -> None:
    tabs = [make() for _ in range(4)]
    first = answered(tabs[0])
    barrier, won, lost = threading.Barrier(4), [], []  # type: ignore[var-annotated]

    def ask(tab: Rooms) -> None:
        barrier.wait()
        try:
            won.append(tab.begin("And?", conversation_id=first.conversation_id, parent_id=first.message_id).run_id)
        except Conflict as refusal:
            lost.append(refusal.extra["run_id"])

    threads = [threading.Thread(target=ask, args=(tab,)) for tab in tabs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert lost == won * 3


def test_a_repeated_client_id_finds_its_run_and_begins_none(make: Callable[[], Rooms]) -> None:
    mine, other = make(), make()
    begun = mine.begin(client_id="same")
    for again in (mine.begin(client_id="same"), other.begin(client_id="same")):
        assert (again.run_id, again.created) == (begun.run_id, False)
    assert count(mine, runs) == 1
    mine.run(begun, "Hello")
    assert mine.begin(client_id="same").run_id == begun.run_id, "also after its end"


def test_equal_client_ids_at_once_on_several_workers_begin_one_run(make: Callable[[], Rooms]) -> None:
    workers = [make() for _ in range(4)]
    found: list[Begun] = []
    barrier = threading.Barrier(8)

    def ask(worker: Rooms) -> None:
        barrier.wait()
        found.append(worker.begin(client_id="same"))

    threads = [threading.Thread(target=ask, args=(worker,)) for worker in workers * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({begun.run_id for begun in found}) == 1
    assert [begun.created for begun in found].count(True) == 1


def test_the_same_client_id_with_another_body_is_refused(rooms: Rooms) -> None:
    rooms.begin(client_id="same")
    with pytest.raises(Invalid) as caught:
        rooms.begin("Other", client_id="same", body_hash="other")
    assert caught.value.problem_code == "idempotency_conflict"


def test_client_ids_belong_to_their_owner(rooms: Rooms) -> None:
    begun = rooms.begin(client_id="same")
    command = Command(action="send", client_id="same", body_hash="other", text="Hi")
    theirs = rooms.store.begin("user:2", command, rooms.holding, lambda before: "parrot")
    assert theirs.created
    assert theirs.run_id != begun.run_id


def test_what_belongs_to_somebody_else_is_not_there(rooms: Rooms) -> None:
    mine = answered(rooms)
    attempts = [
        Command(action="send", client_id="a", body_hash="h", text="x", conversation_id=mine.conversation_id),
        Command(action="regenerate", client_id="b", body_hash="h", message_id=mine.message_id),
        Command(action="continue", client_id="c", body_hash="h", message_id=mine.message_id),
    ]
    for command in attempts:
        with pytest.raises(NotFound):
            rooms.store.begin("user:2", command, rooms.holding, lambda before: "parrot")
    assert rooms.store.conversation(mine.conversation_id, "user:2") is None
    assert rooms.store.run(mine.run_id, "user:2") is None
    assert count(rooms, messages) == 2


@pytest.mark.parametrize(
    ("more", "refusal"),
    [
        ({"conversation_id": "c_unknown"}, NotFound),
        ({"parent_id": "m_x"}, Invalid),
        ({"action": "regenerate", "text": "", "message_id": "m_unknown"}, NotFound),
    ],
)
def test_a_refused_command_writes_nothing(rooms: Rooms, more: dict[str, object], refusal: type[Exception]) -> None:
    with pytest.raises(refusal):
        rooms.begin(**{"text": "Hi", **more})
    assert [count(rooms, table) for table in TABLES] == [0] * len(TABLES)


def test_a_question_follows_a_reply_of_the_same_conversation(rooms: Rooms) -> None:
    first, other = answered(rooms), answered(rooms)
    with pytest.raises(Invalid):
        rooms.begin("x", conversation_id=first.conversation_id, parent_id=first.user_message_id)
    with pytest.raises(NotFound):
        rooms.begin("x", conversation_id=first.conversation_id, parent_id=other.message_id)
    with pytest.raises(NotFound):
        rooms.begin(action="regenerate", text="", message_id=first.user_message_id)


def test_a_model_that_is_not_offered_leaves_nothing_behind(rooms: Rooms) -> None:
    def refuse(before: str | None) -> str:
        raise Invalid("Not offered.")

    with pytest.raises(Invalid):
        rooms.store.begin(OWNER, Command(action="send", client_id="a", body_hash="h", text="x"), rooms.holding, refuse)
    assert count(rooms, conversations) == 0


@pytest.mark.backends("sqlite")
def test_a_write_waits_for_the_lock_no_longer_than_told_and_the_next_one_works(make: Callable[[], Rooms]) -> None:
    rooms, other = make(), make()
    with other.database.connect(write=True) as connection, connection.begin(), pytest.raises(Unavailable) as caught:
        rooms.begin()
    assert caught.value.problem_code == "store_unavailable"
    assert caught.value.retry_after
    assert rooms.begin().created


@pytest.mark.backends("sqlite")
def test_reading_goes_on_while_another_process_writes(make: Callable[[], Rooms]) -> None:
    rooms, other = make(), make()
    begun = answered(rooms)
    with other.database.connect(write=True) as connection, connection.begin():
        connection.execute(sa.delete(conversations))
        assert shown(rooms, begun)["id"] == begun.conversation_id


@pytest.mark.backends("sqlite")
def test_the_write_ahead_log_is_emptied_when_it_has_grown(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flaskchat.store.sqlite.CHECKPOINT_BYTES", 200_000)
    wal = Path(rooms.database.path + "-wal")
    for _ in range(5):
        begun = rooms.begin("x" * 50_000)
        rooms.run(begun, "y" * 50_000)
    assert wal.stat().st_size > 200_000
    rooms.database.checkpoint()
    assert wal.stat().st_size == 0
    assert rooms.text(begun) == "y" * 50_000


def test_what_a_statement_was_given_is_in_no_log(rooms: Rooms, caplog: pytest.LogCaptureFixture) -> None:
    """It is mostly what users and models wrote."""
    rooms.begin()
    twice = sa.insert(conversations).from_select(["id", "owner"], sa.select(conversations.c.id, sa.literal("canary")))
    with caplog.at_level(logging.DEBUG), pytest.raises(Unavailable) as caught:
        rooms.database.write(lambda c: c.execute(twice))
    assert "cannot be used: " in caplog.text
    assert "canary" not in caplog.text
    assert "[SQL parameters hidden" in str(caught.value.__cause__), "where its stack is logged"
