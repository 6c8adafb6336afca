"""Moving to another database, on real ones: from a file to a server, and back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from flaskchat import audit, forget, transfer
from flaskchat.config import Settings
from flaskchat.errors import NotFound
from flaskchat.store import whole
from flaskchat.store.engine import Database
from flaskchat.store.schema import HEAD, conversations, messages
from tests.backends import PostgresServer, RedisServer
from tests.conftest import ROOT
from tests.hosts import host
from tests.moving import both, copy, fill, past_of, release, rooms_at
from tests.rooms import OWNER, Rooms, count, worker_rooms

PROJECT = """
from flask import Flask
from flaskchat import FlaskChat
app = Flask(__name__)
app.config["FLASKCHAT_DATABASE_URL"] = {url!r}
chat = FlaskChat(app)
"""


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    with postgres.database() as name:
        yield postgres.url(name)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'old.sqlite3'}"


def rows_of(database: Database) -> dict[str, list[whole.Row]]:
    """All that is copied, sorted, as plainly as can be."""
    found = {}
    for table in whole.TABLES:
        select = sa.select(table)
        rows = database.read(lambda c, s=select: [dict(row) for row in c.execute(s).mappings()])  # type: ignore[misc]
        found[table.name] = sorted(rows, key=lambda row: repr(list(row.values())))
    return found


class Project:
    """A host's application, and `flask chat db` as its operator types it."""

    def __init__(self, folder: Path, target: str) -> None:
        self.folder = folder
        (folder / "project.py").write_text(PROJECT.format(url=target))

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "flask", "--app", "project", "chat", "db", *words],
            cwd=self.folder, env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *words: str) -> tuple[int, str, str]:
        """:returns: exit code, what it said, and its progress and errors."""
        process = self.start(*words)
        said, told = process.communicate(timeout=120)
        return process.returncode, said, told


def copied(postgres: PostgresServer, url: str) -> int:
    """Rows in the target, as far as they are committed."""
    database = url.rsplit("/", 1)[1]
    there = postgres.execute("SELECT to_regclass('flaskchat_copy') IS NOT NULL", database=database)[0][0]
    if not there:
        return 0
    counts = " + ".join(f"(SELECT count(*) FROM {table.name})" for table in whole.TABLES)
    return int(postgres.execute(f"SELECT {counts}", database=database)[0][0])


@contextlib.contextmanager
def slow_inserts(postgres: PostgresServer, url: str) -> Iterator[None]:
    """A batch takes half a second, so that the copy can be killed between two of them on any machine."""
    transfer.open_target(url).close()
    database = url.rsplit("/", 1)[1]
    slowly = "FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.003); RETURN NULL; END'"
    postgres.execute(f"CREATE {slowly}", database=database)
    for table in whole.TABLES:
        trigger = f"CREATE TRIGGER slowly AFTER INSERT ON {table.name}"
        postgres.execute(f"{trigger} FOR EACH STATEMENT EXECUTE FUNCTION slowly()", database=database)
    try:
        yield
    finally:
        postgres.execute("DROP FUNCTION slowly CASCADE", database=database)


def test_a_copy_that_is_killed_goes_on_until_it_is_whole_and_the_server_serves_it(
    postgres: PostgresServer, url: str, file: str, tmp_path: Path, long: bool
) -> None:
    with rooms_at(file) as rooms:
        fill(rooms, 1000 if long else 250)
        before = rows_of(rooms.database)
    project = Project(tmp_path, url)
    seen, kills = 0, 0
    until = time.monotonic() + (300 if long else 60)
    with slow_inserts(postgres, url):
        while kills < (20 if long else 3):
            process = project.start("copy", file)
            while process.poll() is None and copied(postgres, url) <= seen:
                assert time.monotonic() < until, "nothing is copied"
            process.send_signal(signal.SIGKILL)
            _, told = process.communicate()
            if process.returncode == -signal.SIGKILL:
                kills += 1
            elif process.returncode == 0:
                break
            else:  # a machine that is busy may give up on the server; whoever typed it repeats it, as is done here
                print("ended by itself:", process.returncode, told)
                assert time.monotonic() < until, told
            seen = copied(postgres, url)
    total = sum(len(rows) for rows in before.values())
    print("killed", kills, "times, rows then:", seen, "of", total)
    assert kills >= 3
    if not long:
        assert 0 < seen < total
    code, said, told = project.run("copy", file)
    assert code == 0, said + told
    assert "holds all that is in" in said
    with both(file, url) as (source, target):
        assert rows_of(target) == rows_of(source) == before
        assert audit.inspect(target) == []
    assert project.run("check", file)[:2] == (0, said_same(url, file))
    with rooms_at(url) as rooms:
        new = rooms.begin("And a new one, after the move")  # its number is behind those that were copied
        rooms.run(new, "Yes")
        old = rooms.store.conversation(str(before["flaskchat_conversations"][0]["id"]), OWNER)
        assert old is not None
        assert old["messages"]
        found = rooms.store.conversations(OWNER, query="answer 177", cursor=None, limit=10)
        assert len(found.items) == 1
        assert count(rooms, messages) == (2002 if long else 502)


def said_same(url: str, file: str) -> str:
    host = url.partition("@")[2]
    return f"{host} and {file.removeprefix('sqlite:///')} hold the same.\n"


def test_it_goes_back_into_a_file(url: str, file: str) -> None:
    with rooms_at(url) as rooms:
        fill(rooms, 12)
    assert copy(url, file) == []
    with both(url, file) as (source, target):
        assert rows_of(source) == rows_of(target)
    with rooms_at(file) as rooms:
        assert len(rooms.store.conversations(OWNER, query="answer 11", cursor=None, limit=10).items) == 1
        rooms.run(rooms.begin("more"), "Yes")


def test_what_was_deleted_is_not_begun_anew_by_a_question_that_comes_late_to_the_copy(url: str, file: str) -> None:
    with rooms_at(file) as rooms:
        begun = rooms.begin("Delete me", client_id="asked-before")
        rooms.run(begun, "Hello")
        forget.conversation(rooms.database, rooms.journal, begun.conversation_id, OWNER)
        release(rooms)
    assert copy(file, url) == []
    with rooms_at(url) as rooms, pytest.raises(NotFound):
        rooms.begin("Delete me", client_id="asked-before")


def test_what_a_dead_worker_was_writing_is_kept_as_interrupted(url: str, file: str) -> None:
    with rooms_at(file) as rooms:
        fill(rooms, 2)
        begun = rooms.begin("Tell me")
        rooms.append(begun, "Once upon ", "a time")  # and its lease stays behind
        before = rows_of(rooms.database)
    assert copy(file, url) == []
    with both(file, url) as (source, target):
        assert rows_of(source) == before
        assert audit.inspect(target) == []
        assert audit.compare(source, target) == []
    with rooms_at(url) as rooms:
        assert (rooms.text(begun), rooms.state(begun)) == ("Once upon a time", "interrupted")
        assert [frame.event for frame in rooms.frames(begun)] == ["start", "delta", "delta", "interrupted"]
        assert rooms.leases() == []


def test_what_only_redis_has_of_a_reply_is_kept_as_well(redis_server: RedisServer, file: str, tmp_path: Path) -> None:
    with redis_server.prefix() as prefix:
        settings = Settings(redis_url=redis_server.url, redis_prefix=prefix)
        with worker_rooms(file, settings) as make:
            rooms = make()
            begun = rooms.begin("Tell me")
            rooms.append(begun, "Once upon ", "a time")
        target = f"sqlite:///{tmp_path / 'new.sqlite3'}"
        with both(file, target) as (one, other):
            assert transfer.copy(one, other, transfer.past_of(settings, one), patience=0.5) == []
        with rooms_at(target) as rooms:
            assert (rooms.text(begun), rooms.state(begun)) == ("Once upon a time", "interrupted")


def test_a_server_at_work_on_either_side_is_refused(url: str, file: str) -> None:
    for source, target, busy in ((file, url, file), (url, file, file)):
        with rooms_at(busy) as rooms, both(source, target) as (one, other), contextlib.ExitStack() as stack:
            rooms.begin("Tell me")
            stack.enter_context(beating(rooms))
            with pytest.raises(transfer.TransferRefused, match="a server is at work on"):
                transfer.copy(one, other, past_of(one), patience=20)


@contextlib.contextmanager
def beating(rooms: Rooms) -> Iterator[None]:
    """The lease is renewed, as a server's sweep does."""
    end = threading.Event()

    def beat() -> None:
        while not end.wait(0.05):
            rooms.database.write(rooms.holding.beat)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def test_two_databases_are_never_merged(url: str, file: str, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path / 'other.sqlite3'}"
    for where in (file, other):
        with rooms_at(where) as rooms:
            fill(rooms, 2)
    with both(file, other) as (one, two), pytest.raises(transfer.TransferRefused, match="is not empty"):
        transfer.copy(one, two, past_of(one))
    with both(file, url) as (one, target):
        target.write(lambda c: transfer._begin(c, one, target))  # a copy that was killed before its first row
    with both(other, url) as (two, target), pytest.raises(transfer.TransferRefused, match="copy in progress, but from"):
        transfer.copy(two, target, past_of(two))
    assert copy(file, url) == []
    with both(file, url) as (one, target), pytest.raises(transfer.TransferRefused, match="is not empty"):
        transfer.copy(one, target, past_of(one))
    with both(file, file) as (one, same), pytest.raises(transfer.TransferRefused, match="the same database"):
        transfer.copy(one, same, past_of(one))


def test_two_copies_at_once_do_not_both_go_on(url: str, file: str) -> None:
    with rooms_at(file) as rooms:
        fill(rooms, 2)
    with both(file, url) as (one, target):
        mark = sa.update(transfer._marks).where(transfer._marks.c.name == "flaskchat_messages").values(value="[1]")

        def meanwhile(words: str) -> None:
            if words.startswith("copying messages"):
                target.write(lambda c: c.execute(mark))  # after ours was read: `before` is asked for first

        with pytest.raises(transfer.TransferRefused, match="another copy into"):
            transfer.copy(one, target, past_of(one), meanwhile)


def test_a_source_that_was_written_to_meanwhile_is_told_of_and_the_copy_begun_anew(file: str, tmp_path: Path) -> None:
    path = tmp_path / "new.sqlite3"
    with rooms_at(file) as rooms:
        fill(rooms, 2)
        with both(file, f"sqlite:///{path}") as (one, target):

            def meanwhile(words: str) -> None:
                if words.startswith("copying messages"):
                    rooms.database.write(lambda c: c.execute(sa.update(conversations).values(title="another")))

            for _ in range(2):  # repeating it alone does not help
                said = transfer.copy(one, target, past_of(one), meanwhile)
                assert said[0] == "conversations: 1 differ (1)"
                assert "make the target anew, and repeat the command" in said[-1]
    for one_of in tmp_path.glob("new.sqlite3*"):
        if one_of.is_file():
            one_of.unlink()
    assert copy(file, f"sqlite:///{path}") == []


def test_nul_in_an_old_file_is_copied_as_what_it_is_shown_as(url: str, file: str) -> None:
    with rooms_at(file) as rooms:
        begun = rooms.begin("a question")
        rooms.run(begun, "a reply")
        nul = sa.update(messages).where(messages.c.id == begun.user_message_id).values(text="a\0b")
        rooms.database.write(lambda c: c.execute(nul))
        release(rooms)
    assert copy(file, url) == []
    with both(file, url) as (source, target):
        assert audit.compare(source, target) == []
        texts = sa.select(messages.c.text).where(messages.c.id == begun.user_message_id)
        assert target.read(lambda c: c.execute(texts).scalar()) == "a\ufffdb"


def test_the_commands_say_what_they_do_and_no_password(tmp_path: Path, file: str) -> None:
    app = host(tmp_path, FLASKCHAT_DATABASE_URL=f"sqlite:///{tmp_path / 'new.sqlite3'}")
    run = app.test_cli_runner().invoke
    path = tmp_path / "new.sqlite3"
    result = run(args=["chat", "db", "check"])
    assert (result.exit_code, result.output) == (1, f"Error: there is no file {str(path)!r}\n")
    assert not path.exists()
    result = run(args=["chat", "db", "upgrade"])
    assert result.output == f"{path} is at revision {HEAD}: from an empty database.\n"
    assert run(args=["chat", "db", "upgrade"]).output == f"{path} is at revision {HEAD}: nothing to do.\n"
    assert run(args=["chat", "db", "check"]).stdout == f"{path} holds together.\n"
    result = run(args=["chat", "db", "copy", file])
    assert (result.exit_code, result.output) == (1, f"Error: there is no file {str(tmp_path / 'old.sqlite3')!r}\n")
    result = run(args=["chat", "db", "copy", "postgresql://me:hunter2@127.0.0.1:1/chat"])
    assert result.exit_code == 1
    assert "hunter2" not in result.output
    with rooms_at(file) as rooms:
        fill(rooms, 1)
    result = run(args=["chat", "db", "copy", file])
    assert result.exit_code == 0, result.output
    assert "copying messages\n" in result.stderr
    with rooms_at(file) as rooms:
        fill(rooms, 1)
    result = run(args=["chat", "db", "check", file])
    assert result.exit_code == 1
    assert f"messages: 2 are missing in {path} (3, 4)\n" in result.stdout


def test_an_argument_that_names_no_database_is_told_by_its_own_name(tmp_path: Path) -> None:
    app = host(tmp_path)
    run = app.test_cli_runner().invoke
    run(args=["chat", "db", "upgrade"])
    other = tmp_path / "other.sqlite3"
    other.write_bytes(b"no database" * 1000)
    for url in ("nonsense", "/path/x.sqlite3", "mysql://h/x", "postgresql://h:port/x", "sqlite://", f"sqlite:///{other}"):
        for command, name in (("check", "OTHER_URL"), ("copy", "SOURCE_URL")):
            result = run(args=["chat", "db", command, url])
            assert result.exit_code == 1
            assert result.output.startswith(f"Error: {name}"), result.output
            assert "FLASKCHAT_DATABASE_URL" not in result.output
    wrong = host(tmp_path, FLASKCHAT_DATABASE_URL="mysql://h/x").test_cli_runner().invoke(args=["chat", "db", "check"])
    assert wrong.output.startswith("Error: FLASKCHAT_DATABASE_URL='mysql://h/x'")
