"""SQLite's search index: it forgets what was deleted or changed, stays small, and finds no more than there is."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import sqlalchemy as sa

from flaskchat.store import migrate, search
from flaskchat.store.schema import SEARCH, VERSION_TABLE, conversations, messages
from tests.moving import copy, rooms_at
from tests.rooms import OWNER, Rooms

MB = 1 << 20


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[Rooms]:
    with rooms_at(f"sqlite:///{tmp_path / 'chat.sqlite3'}") as found:
        yield found


def indexed(rooms: Rooms) -> dict[str, int]:
    """Each part in the index, and how many texts it names for it."""

    def read(c: sa.Connection) -> dict[str, int]:
        c.exec_driver_sql(f"CREATE VIRTUAL TABLE temp.parts USING fts5vocab(main, {SEARCH}, row)")
        found = {row.term: row.doc for row in c.exec_driver_sql("SELECT term, doc FROM temp.parts")}
        c.exec_driver_sql("DROP TABLE temp.parts")
        return found

    return rooms.database.read(read)


def parts(*texts: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in texts:
        for part in {text[at : at + 3].lower() for at in range(len(text) - 2)}:
            found[part] = found.get(part, 0) + 1
    return found


def wal(rooms: Rooms) -> int:
    return Path(rooms.database.name + "-wal").stat().st_size


def written(rooms: Rooms, seed: int) -> str:
    """Text of 200 kB, a tenth of it of one letter, as an indented listing is."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(2000)]
    return "".join(rng.choice([" " * 8, ". "]) + rng.choice(words) for _ in range(25_000))


def test_a_reply_that_was_continued_and_a_title_that_was_changed_leave_nothing_behind(rooms: Rooms) -> None:
    begun = rooms.begin("What?")
    old, new = "abcabd " * 100, "abcxyz " * 200
    message = sa.update(messages).where(messages.c.id == begun.message_id)
    title = sa.update(conversations).where(conversations.c.id == begun.conversation_id)
    rooms.database.write(lambda c: c.execute(message.values(text=old)))
    rooms.database.write(lambda c: c.execute(message.values(text=old + new)))
    rooms.database.write(lambda c: c.execute(title.values(title=old)))
    rooms.database.write(lambda c: c.execute(title.values(title=new)))
    assert indexed(rooms) == parts("What?", old + new, new)
    assert search_for(rooms, "abd") == {begun.conversation_id: begun.message_id}
    assert search_for(rooms, "abcxyz abd") == {begun.conversation_id: begun.message_id}
    rooms.run(begun)
    gone = sa.delete(conversations).where(conversations.c.id == begun.conversation_id)
    rooms.database.write(lambda c: c.execute(gone))
    assert indexed(rooms) == {}
    pages = b"".join(row.block for row in rooms.rows(sa.text(f"SELECT block FROM {SEARCH}_data WHERE id > 10")))
    assert set(pages) <= {0, 4}, "not only marked as deleted"


def test_an_upgrade_puts_what_is_there_into_the_new_index(rooms: Rooms) -> None:
    """From a file as the versions before left it."""
    before = import_module("flaskchat.store.migrations.versions.0003_search_forgets")

    def go_back(c: sa.Connection) -> None:
        for name in before.TRIGGERS:
            c.exec_driver_sql(f"DROP TRIGGER flaskchat_search_{name}")
        c.exec_driver_sql(f"DROP TABLE {SEARCH}")
        for statement in before.INDEX:
            c.exec_driver_sql(statement)
        c.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '0006'")

    rooms.database.write(go_back)
    begun = rooms.begin("What?")
    for text in ("abcabd " * 100, "abcabd " * 100 + "abcxyz " * 200, "abcxyz " * 300):
        rooms.database.write(partial(put, texts={begun.message_id: text}))
    migrate.upgrade(rooms.database)
    assert indexed(rooms) == parts("What?", "What?", text)
    assert search_for(rooms, "abcxyz") == {begun.conversation_id: begun.message_id}
    rooms.run(begun, "!")
    assert rooms.database.read(rooms.database.damage) == []
    assert indexed(rooms) == parts("What?", "What?", f"{text}!")


def search_for(rooms: Rooms, query: str) -> dict[str, str | None]:
    return rooms.database.read(lambda c: search.find(c, OWNER, search.words_of(query)))


def test_any_texts_put_in_changed_and_taken_out_again_are_what_the_index_has(rooms: Rooms) -> None:
    """Several of them by one statement, which the index takes together."""
    rng = random.Random(1)
    texts = dict[str, str]()
    for _ in range(80):
        changes = dict[str, str]()
        for _ in range(rng.randint(1, 5)):
            alphabet = rng.choice(["ab", "abc ", "etaoinshrdlu ", "äöÄб漢字 "])
            text = "".join(rng.choices(alphabet, k=rng.choice([0, 2, 3, 30, 300, 3000])))
            if rng.random() < 0.5 or not texts:
                changes[rooms.begin("").message_id] = text
            else:
                message_id = rng.choice(list(texts))
                changes[message_id] = rng.choice([text, texts[message_id] + text, ""])
        rooms.database.write(partial(put, texts=changes))
        texts |= changes
    titles = [row.title for row in rooms.rows(sa.select(conversations.c.title))]
    assert indexed(rooms) == parts(*texts.values(), *titles)
    assert rooms.database.read(rooms.database.damage) == []


def put(c: sa.Connection, texts: dict[str, str]) -> None:
    of_each = sa.text(
        "UPDATE flaskchat_messages SET text = (SELECT value FROM json_each(:texts) WHERE key = flaskchat_messages.id) "
        "WHERE id IN (SELECT key FROM json_each(:texts))"
    )
    c.execute(of_each, {"texts": json.dumps(texts)})


def test_what_the_end_of_a_reply_writes_stays_within_a_few_times_its_text(rooms: Rooms) -> None:
    """However large the index is: it has to be merged now and then, in whoever's commit is next."""
    most = 0
    for number in range(60):
        begun, text = rooms.begin("What?"), written(rooms, number)
        rooms.append(begun, text)
        rooms.database.forget()
        assert wal(rooms) == 0
        rooms.finish(begun, text)
        most = max(most, wal(rooms))
    assert most < 4 * len(text), f"{most / len(text):.1f} times"


def test_a_copy_moves_the_write_ahead_log_into_the_file_as_it_goes(tmp_path: Path) -> None:
    source, target = (f"sqlite:///{tmp_path / name}" for name in ("old.sqlite3", "new.sqlite3"))
    with rooms_at(source) as rooms:
        text = written(rooms, 0)
        for _ in range(60):
            rooms.run(rooms.begin("What?"), text)
        rooms.database.write(rooms.holding.release)
    sizes: list[int] = []

    def look(words: str) -> None:
        sizes.append(max((path.stat().st_size for path in tmp_path.glob("new.sqlite3-wal")), default=0))

    assert copy(source, target, progress=look) == []
    assert (tmp_path / "new.sqlite3").stat().st_size > 20 * MB
    assert max(sizes) < 5 * MB
