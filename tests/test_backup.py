"""`flask chat db backup`: one snapshot of SQLite's file in a new file, or nothing that looks like one."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from flaskchat import audit, backup, transfer
from flaskchat.store.sqlite import sqlite_module
from tests.conftest import ROOT, Server
from tests.hosts import host
from tests.moving import fill, rooms_at
from tests.rooms import worker_rooms
from tests.server.checks import database, everything, start_of
from tests.server.client import text
from tests.server.disk import Disk
from tests.server.mortal import Mortal
from tests.test_transfer import PROJECT


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A database with thirty replies, which no server uses."""
    path = tmp_path / "chat.sqlite3"
    with rooms_at(f"sqlite:///{path}") as rooms:
        fill(rooms, 30)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where a backup is to be, in a folder that holds nothing."""
    folder = tmp_path / "backups"
    folder.mkdir()
    return folder / "monday.sqlite3"


def run(folder: Path, source: Path, target: Path, **more: object) -> tuple[int, str, str]:
    """The command as an operator types it.

    :param more: goes into its environment.
    :returns: exit code, what it said, and its errors.
    """
    (folder / "project.py").write_text(PROJECT.format(url=f"sqlite:///{source}"))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "flask", "--app", "project", "chat", "db", "backup", str(target)],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], **{key: str(more[key]) for key in more}},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def wrong_in(copy: Path) -> list[str]:
    """What does not hold together in a copy; reading it makes no other file than those that go again."""
    found = transfer.open_source(f"sqlite:///{copy}")
    try:
        return audit.inspect(found)
    finally:
        found.close()


class Watched:
    """A connection, and in how many steps it was copied."""

    def __init__(self, connection: Any, after_step: Callable[[], object]) -> None:
        self._connection, self._after_step = connection, after_step
        self.steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def backup(self, copy: Any, *, progress: Callable[..., None], **more: Any) -> None:
        def step(*status: int) -> None:
            self.steps += 1
            assert self.steps == 1
            self._after_step()
            progress(*status)

        self._connection.backup(copy, progress=step, **more)


def said(source: Path, target: Path) -> str:
    return f"{target} holds all that was in {source}: {target.stat().st_size / 1e6:.1f} MB, checked.\n"


@pytest.mark.backends("sqlite")
def test_a_backup_made_while_replies_are_written_is_served_by_another_server(
    serve: Callable[..., Server], tmp_path: Path, target: Path
) -> None:
    server = serve()
    client = server.client()
    finished = []
    for number in range(3):
        stream = client.send(f"{200 + number} 0")
        assert everything(stream)[-1].event == "done"
        finished.append(start_of(stream)["conversation_id"])
    writing = [client.send("9000 150") for _ in range(4)]  # for a minute, unless stopped
    for stream in writing:
        stream.take(3)
        stream.close()
    code, told, errors = run(tmp_path, database(server), target)
    assert code == 0, errors
    assert told == said(database(server), target)
    assert names(target.parent) == ["monday.sqlite3"], "it needs no other file"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    for number in range(10):  # whatever is just being written
        another = target.with_name(f"{number}.sqlite3")
        backup.make(f"sqlite:///{database(server)}", another)
        assert wrong_in(another) == []
    before = [client.json(f"/conversations/{conversation_id}") for conversation_id in finished]
    for stream in writing:
        assert client.stop(stream.run_id)["state"] == "stopped", "it was written until now"
    other = serve({"FLASKCHAT_DATABASE_URL": f"sqlite:///{target}"}).client()
    other.cookie = client.cookie
    assert [other.json(f"/conversations/{conversation_id}") for conversation_id in finished] == before
    for stream in writing:
        start = start_of(stream)
        kept = other.wait_state(start["conversation_id"], start["message_id"], seconds=30)
        assert kept["status"] == "interrupted"
        assert kept["text"].startswith(text(stream.frames))
        assert text(stream.frames)


def test_a_backup_of_what_no_server_uses_is_the_same(file: Path, target: Path, tmp_path: Path) -> None:
    code, told, errors = run(tmp_path, file, target)
    assert code == 0, errors
    assert told == said(file, target)
    assert names(target.parent) == ["monday.sqlite3"]
    one, other = transfer.open_source(f"sqlite:///{file}"), transfer.open_source(f"sqlite:///{target}")
    try:
        assert audit.compare(one, other) == []
        assert audit.inspect(other) == []
    finally:
        one.close()
        other.close()


def test_what_only_the_write_ahead_log_holds_is_in_it(target: Path, tmp_path: Path) -> None:
    path = tmp_path / "chat.sqlite3"
    with rooms_at(f"sqlite:///{path}") as rooms:
        fill(rooms, 3)
        assert path.with_name("chat.sqlite3-wal").stat().st_size > 0
        backup.make(f"sqlite:///{path}", target)
    assert wrong_in(target) == []
    with rooms_at(f"sqlite:///{target}") as rooms:
        assert rooms.rows(sa.text("SELECT count(*) FROM flaskchat_runs")) == [(3,)]


def test_the_copy_is_made_in_one_step_whatever_is_committed_meanwhile(
    file: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of several steps is begun anew with every commit, and here one comes with each of them."""
    opened, watched = backup._open, list[Watched]()

    def open_watched(*args: Any) -> Any:
        watched.append(Watched(opened(*args), lambda: rooms.begin("meanwhile")))
        return watched[-1]

    monkeypatch.setattr(backup, "_open", open_watched)
    with rooms_at(f"sqlite:///{file}") as rooms:
        bulk = sa.text("CREATE TABLE of_the_host AS SELECT zeroblob(2000000) AS bulk")
        rooms.database.write(lambda c: c.execute(bulk))
        backup.make(f"sqlite:///{file}", target)
    assert [connection.steps for connection in watched] == [1, 0], "of the source and of the copy"
    assert wrong_in(target) == []


def test_the_source_is_let_go_of_before_the_copy_is_looked_at(
    file: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, looked = backup._check, []

    def checkpoint_first(module: Any, source: Path, made: Path) -> None:
        connection = module.connect(str(source), isolation_level=None, timeout=0)
        looked.append(connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone())
        connection.close()
        check(module, source, made)

    monkeypatch.setattr(backup, "_check", checkpoint_first)
    with rooms_at(f"sqlite:///{file}") as rooms:
        rooms.begin("meanwhile")  # so that there is something in the log
        backup.make(f"sqlite:///{file}", target)
    assert looked == [(0, 0, 0)], "somebody still read, and the log could not begin anew"


# -- what leaves nothing -----------------------------------------------------------------------------------------------


def test_a_backup_that_is_killed_leaves_nothing_that_looks_like_one(file: Path, target: Path, tmp_path: Path) -> None:
    mortal = Mortal(tmp_path)
    mortal.die_at(0)
    assert run(tmp_path, file, target, **mortal.settings)[0] == 0
    writes = mortal.live()
    print("it takes", writes, "writes")
    assert writes > 20
    target.unlink()
    for number in (1, 2, writes // 2, writes * 3 // 4):
        mortal.die_at(number, half=True)
        code, told, _ = run(tmp_path, file, target, **mortal.settings)
        assert (code, told) == (-signal.SIGKILL, "")
        assert all(name.endswith(".unfinished") for name in names(target.parent)), names(target.parent)
    assert names(target.parent), "not one was killed while it copied"
    code, told, errors = run(tmp_path, file, target)
    assert code == 0, errors
    assert told == said(file, target)
    assert wrong_in(target) == []


@pytest.mark.parametrize("when", ["_check", "_rename"])
def test_one_that_is_interrupted_leaves_nothing(
    file: Path, target: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def interrupted(*args: object) -> None:
        assert names(target.parent), "it is there, under another name"
        raise KeyboardInterrupt

    monkeypatch.setattr(backup, when, interrupted)
    app = host(file.parent, FLASKCHAT_DATABASE_URL=f"sqlite:///{file}")
    result = app.test_cli_runner().invoke(args=["chat", "db", "backup", str(target)])
    assert (result.exit_code, result.output) == (1, "Error: interrupted: no backup was made\n")
    assert names(target.parent) == []


def test_a_disk_without_space_is_told_of_and_nothing_is_left(file: Path, target: Path, tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    # opened by somebody, as a server does: its companions are there, and need no space
    with rooms_at(f"sqlite:///{file}") as rooms, disk.fault("full"):
        rooms.rows(sa.text("SELECT count(*) FROM flaskchat_runs"))
        code, told, errors = run(tmp_path, file, target, **disk.settings)
    assert (code, told) == (1, "")
    assert errors == f"Error: no space is left for {str(target)!r}: nothing of it was kept\n"
    assert names(target.parent) == []


@pytest.mark.parametrize(
    ("where", "number", "words"),
    [
        ("tempfile.mkstemp", errno.EACCES, "cannot be written: Permission denied"),
        ("os.fsync", errno.ENOSPC, "no space is left for "),  # some file systems say so no earlier
        ("os.fsync", errno.EIO, "cannot be written: Input/output error"),
    ],
)
def test_what_the_system_refuses_is_told_of_and_nothing_is_left(
    file: Path, target: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int, words: str
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(where, refuse)
    with pytest.raises(backup.BackupRefused, match=words):
        backup.make(f"sqlite:///{file}", target)
    assert names(target.parent) == []


def test_what_is_damaged_is_no_backup(file: Path, target: Path) -> None:
    with rooms_at(f"sqlite:///{file}") as rooms:
        ((page,),) = rooms.rows(sa.text("SELECT rootpage FROM sqlite_master WHERE name = 'flaskchat_messages'"))
        ((size,),) = rooms.rows(sa.text("PRAGMA page_size"))
        rooms.database.forget()  # moves all into the file
    data = bytearray(file.read_bytes())
    data[(page - 1) * size : page * size] = b"\xa5" * size
    file.write_bytes(data)
    with pytest.raises(backup.BackupRefused, match=r"damaged|malformed"):
        backup.make(f"sqlite:///{file}", target)
    assert names(target.parent) == []


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_has_come_meanwhile_is_not_replaced(
    file: Path, target: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    check = backup._check

    def slowly(*args: Any) -> None:
        check(*args)
        target.write_text("another's")

    def no_links(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        if not links:
            patch.setattr(os, "link", no_links)
        patch.setattr(backup, "_check", slowly)
        with pytest.raises(backup.BackupRefused, match="is there already"):
            backup.make(f"sqlite:///{file}", target)
        assert target.read_text() == "another's"
        assert names(target.parent) == ["monday.sqlite3"]
        target.unlink()
        patch.setattr(backup, "_check", check)
        backup.make(f"sqlite:///{file}", target)
    assert names(target.parent) == ["monday.sqlite3"]
    assert wrong_in(target) == []


# -- what is refused ---------------------------------------------------------------------------------------------------


def refused(folder: Path, url: str, target: Path) -> str:
    """What the command says where it makes no backup."""
    app = host(folder, FLASKCHAT_DATABASE_URL=url)
    result = app.test_cli_runner().invoke(args=["chat", "db", "backup", str(target)])
    assert result.exit_code == 1, result.output
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1
    return result.output.removeprefix("Error: ").rstrip("\n")


def test_it_says_what_is_missing_or_in_the_way_and_changes_nothing(file: Path, target: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{file}"
    target.write_text("yesterday's")
    assert "is there already, and a backup replaces nothing" in refused(tmp_path, url, target)
    assert "is there already" in refused(tmp_path, url, target.parent)
    link = target.with_name("link.sqlite3")
    link.symlink_to("nowhere")
    assert "is there already" in refused(tmp_path, url, link)
    assert target.read_text() == "yesterday's"
    assert names(target.parent) == ["link.sqlite3", "monday.sqlite3"]
    nowhere = tmp_path / "nowhere"
    assert refused(tmp_path, url, nowhere / "x.sqlite3") == f"there is no folder {str(nowhere)!r}"
    new = target.with_name("new.sqlite3")
    assert refused(tmp_path, f"sqlite:///{tmp_path / 'no.sqlite3'}", new) == (
        f"there is no file {str(tmp_path / 'no.sqlite3')!r}"
    )
    assert not (tmp_path / "no.sqlite3").exists()
    assert not new.exists()


def test_what_is_no_database_of_ours_is_refused(target: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite3"
    path.write_text("no database at all, but longer than the head of one" * 10)
    assert "file is not a database" in refused(tmp_path, f"sqlite:///{path}", target)
    path.unlink()
    connection = sqlite_module().connect(str(path), isolation_level=None)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    assert refused(tmp_path, f"sqlite:///{path}", target) == f"{str(path)!r} is not a database of flaskchat"
    assert names(target.parent) == []


def test_postgresql_has_a_tool_of_its_own(target: Path, tmp_path: Path) -> None:
    for scheme in ("postgresql", "postgresql+psycopg", "postgres"):
        words = refused(tmp_path, f"{scheme}://me:hunter2@127.0.0.1:1/chat", target)
        assert words == "this copies SQLite's file: use pg_dump for a database in PostgreSQL"
    assert names(target.parent) == []


def test_a_file_of_an_older_version_is_copied_as_it_is(target: Path, tmp_path: Path) -> None:
    path = tmp_path / "chat.sqlite3"
    with worker_rooms(path) as make:
        make().database.write(lambda c: c.execute(sa.text("UPDATE flaskchat_version SET version_num = '0001'")))
    backup.make(f"sqlite:///{path}", target)
    connection = sqlite_module().connect(str(target))
    assert connection.execute("SELECT version_num FROM flaskchat_version").fetchone() == ("0001",)
    connection.close()
