"""Bringing the tables up to date at start: many processes at once, older and newer files, files that are none."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from flaskchat.errors import ConfigurationError
from flaskchat.store import migrate, sqlite
from flaskchat.store.engine import Database
from flaskchat.store.kinds import open_database
from flaskchat.store.schema import HEAD, VERSION_TABLE, compatible, metadata
from flaskchat.store.sqlite import is_sound, sqlite_module
from tests.conftest import ROOT
from tests.rooms import Rooms


@pytest.fixture
def opened() -> Iterator[Callable[[Path], Database]]:
    databases: list[Database] = []

    def open_at(path: Path) -> Database:
        databases.append(open_database(f"sqlite:///{path}", timeout=5.0))
        return databases[-1]

    yield open_at
    for database in databases:
        database.close()


START = """
import sys
from flaskchat.store import migrate
from flaskchat.store.kinds import open_database
database = open_database(sys.argv[1], timeout=20.0)
print("ready", flush=True)
sys.stdin.readline()
migrate.upgrade(database)
with database.connect(write=False) as connection:
    print(migrate.version(connection))
database.close()
"""


def test_four_processes_that_start_at_once_on_an_empty_file_agree(
    tmp_path: Path, opened: Callable[[Path], Database]
) -> None:
    path = tmp_path / "chat.sqlite3"
    command = [sys.executable, "-c", START, f"sqlite:///{path}"]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=120) for process in processes]
    assert [(process.returncode, out.strip()) for process, (out, _) in zip(processes, ends, strict=True)] == [
        (0, HEAD)
    ] * 4, [error for _, error in ends]
    with opened(path).connect(write=False) as connection:
        assert connection.execute(sa.text(f"SELECT count(*) FROM {VERSION_TABLE}")).scalar() == 1


def test_a_new_file_that_another_writes_at_this_moment_is_waited_for(
    tmp_path: Path, opened: Callable[[Path], Database]
) -> None:
    path = tmp_path / "chat.sqlite3"
    writer = sqlite_module().connect(str(path), isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    database = opened(path)
    waits = threading.Event()

    def let_go() -> None:
        waits.wait(5)
        writer.execute("ROLLBACK")

    def seen(connection: Any, record: object) -> None:
        connection.set_trace_callback(lambda sql: waits.set() if sql.startswith("BEGIN EXCLUSIVE") else None)

    sa.event.listen(database.engine, "connect", seen, insert=True)
    helper = threading.Thread(target=let_go)
    helper.start()
    try:
        with database.connect(write=True) as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    finally:
        waits.set()
        helper.join()
        writer.close()


def test_the_migrations_make_what_the_schema_says(tmp_path: Path, opened: Callable[[Path], Database]) -> None:
    database = opened(tmp_path / "chat.sqlite3")
    migrate.upgrade(database)

    def ours(name: str | None, kind: str, parents: Any) -> bool:
        return kind != "table" or (name or "") in metadata.tables

    with database.connect(write=False) as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE, "compare_type": True, "include_name": ours}
        )
        assert compare_metadata(context, metadata) == []
        # What compare_metadata does not look at: AUTOINCREMENT, without which ids of the journal could return.
        made = connection.execute(
            sa.text("SELECT sql FROM sqlite_master WHERE name = 'flaskchat_journal'")
        ).scalar_one()
        assert "AUTOINCREMENT" in made
        indexes = dict(
            connection.execute(
                sa.text("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
            ).all()  # type: ignore[arg-type]
        )
        assert "WHERE state = 'running'" in indexes["flaskchat_runs_running"]
        assert connection.execute(sa.text("PRAGMA foreign_key_check")).all() == []


def test_a_hosts_autogenerate_keeps_its_hands_off_our_tables(
    tmp_path: Path, opened: Callable[[Path], Database]
) -> None:
    """With the function that README gives, where both share a database."""
    code = re.search(r"^def include_name\(.*?\n\n", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert code is not None
    found: dict[str, Any] = {}
    exec(code[0], found)
    theirs = sa.MetaData()
    sa.Table("shop_orders", theirs, sa.Column("id", sa.Integer, primary_key=True))
    database = opened(tmp_path / "shop.sqlite3")
    migrate.upgrade(database)
    with database.connect(write=True) as connection, connection.begin():
        connection.execute(sa.text("CREATE TABLE shop_orders (id INTEGER NOT NULL PRIMARY KEY)"))
        connection.execute(sa.text("CREATE TABLE shop_gone (id INTEGER NOT NULL PRIMARY KEY)"))
    with database.connect(write=False) as connection:
        names = set(sa.inspect(connection).get_table_names())
        context = MigrationContext.configure(connection, opts={"include_name": found["include_name"]})
        (change,) = compare_metadata(context, theirs)
    assert (change[0], change[1].name) == ("remove_table", "shop_gone"), "its own are still looked at"
    assert {name for name in names if not name.startswith("flaskchat_")} == {"shop_orders", "shop_gone"}
    assert names >= {*metadata.tables, VERSION_TABLE}


def test_the_head_named_in_the_schema_is_the_newest_script() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrate.SCRIPTS))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_a_second_start_needs_no_alembic(tmp_path: Path, opened: Callable[[Path], Database]) -> None:
    path = tmp_path / "chat.sqlite3"
    migrate.upgrade(opened(path))
    code = (
        "import sys\nfrom flaskchat.store import migrate\nfrom flaskchat.store.kinds import open_database\n"
        "database = open_database(f'sqlite:///{sys.argv[1]}', timeout=5.0)\nmigrate.upgrade(database)\n"
        "database.close()\n"
        "assert 'alembic' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=True, timeout=90)


def test_a_migration_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, opened: Callable[[Path], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "chat.sqlite3"
    database = opened(path)

    def half(connection: sa.Connection) -> None:
        connection.execute(sa.text("CREATE TABLE flaskchat_half (id INTEGER)"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(migrate, "_run", half)
        with pytest.raises(KeyboardInterrupt):
            migrate.upgrade(database)
    with database.connect(write=False) as connection:
        assert sa.inspect(connection).get_table_names() == []
    migrate.upgrade(database)


def newer(database: Database, oldest: str) -> None:
    """As a later version's migration leaves it."""
    with database.connect(write=True) as connection, connection.begin():
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
        connection.execute(sa.update(compatible).values(oldest=oldest))


def test_a_database_of_a_newer_version_is_refused_in_words(tmp_path: Path, opened: Callable[[Path], Database]) -> None:
    path = tmp_path / "chat.sqlite3"
    database = opened(path)
    migrate.upgrade(database)
    newer(database, "9999")
    with pytest.raises(ConfigurationError, match="newer flaskchat"):
        migrate.upgrade(database)


def test_a_newer_version_may_let_this_one_go_on_in_a_rolling_update(tmp_path: Path) -> None:
    path = tmp_path / "chat.sqlite3"
    running = Rooms(path)
    newer(running.database, HEAD)
    restarted = Rooms(path)
    begun = restarted.begin()
    restarted.run(begun, "Hello")
    assert running.text(begun) == "Hello"
    with restarted.database.connect(write=False) as connection:
        assert migrate.version(connection) == "9999", "it is left as it is"
    for rooms in (running, restarted):
        rooms.close()


def test_every_migration_says_which_version_may_go_on() -> None:
    for path in sorted((migrate.SCRIPTS / "versions").glob("0*.py")):
        assert path.name < "0004" or "flaskchat_compatible" in path.read_text(), path.name


def damage_text(path: Path) -> None:
    path.write_text("This is a letter, not a database.\n" * 200)


def damage_half(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def damage_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100:4096] = b"\xff" * (4096 - 100)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [damage_text, damage_half, damage_pages])
def test_a_file_that_is_no_sound_database_is_refused_in_words(
    tmp_path: Path, opened: Callable[[Path], Database], damage: Callable[[Path], None]
) -> None:
    path = tmp_path / "chat.sqlite3"
    database = opened(path)
    migrate.upgrade(database)
    database.close()
    for other in tmp_path.glob("chat.sqlite3-*"):
        other.unlink()
    damage(path)
    with pytest.raises(ConfigurationError, match=r"cannot use the database .*chat\.sqlite3"):
        migrate.upgrade(opened(path))


def test_a_path_that_cannot_be_written_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot use"):
        open_database(f"sqlite:///{tmp_path / 'file' / 'chat.sqlite3'}", timeout=1.0)
    with pytest.raises(ConfigurationError, match="FLASKCHAT_DATABASE_URL"):
        open_database("sqlite://", timeout=1.0)


def test_folder_and_files_are_the_owner_s_alone(tmp_path: Path, opened: Callable[[Path], Database]) -> None:
    before = os.umask(0)
    try:
        folder = tmp_path / "made" / "for it"
        database = opened(folder / "chat.sqlite3")
        migrate.upgrade(database)
        with database.connect(write=True) as connection, connection.begin():
            connection.execute(sa.text("DELETE FROM flaskchat_journal"))
            files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert files == {"chat.sqlite3": 0o600, "chat.sqlite3-wal": 0o600, "chat.sqlite3-shm": 0o600}


def test_the_settings_of_every_connection(tmp_path: Path, opened: Callable[[Path], Database]) -> None:
    with opened(tmp_path / "chat.sqlite3").connect(write=False) as connection:

        def pragma(name: str) -> object:
            return connection.execute(sa.text(f"PRAGMA {name}")).scalar()

        assert pragma("journal_mode") == "wal"
        assert pragma("synchronous") == 1, "NORMAL"
        assert pragma("wal_autocheckpoint") == 0
        assert pragma("foreign_keys") == 1
        assert pragma("busy_timeout") == 5000


@pytest.mark.parametrize(
    ("version", "sound"),
    [
        ((3, 40, 1), False), ((3, 44, 5), False), ((3, 44, 6), False), ((3, 45, 0), False), ((3, 50, 6), False),
        ((3, 50, 7), True), ((3, 51, 0), False), ((3, 51, 2), False), ((3, 51, 3), True), ((3, 53, 0), True),
    ],
)  # fmt: skip
def test_which_versions_of_sqlite_are_sound(version: tuple[int, int, int], sound: bool) -> None:
    assert is_sound(version) is sound


def test_a_sound_sqlite_is_used_or_the_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_sound(sqlite_module().sqlite_version_info)
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 53, 0))
    assert sqlite_module() is sqlite3, "the interpreter's own comes first"
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 40, 1))
    monkeypatch.setitem(sys.modules, "pysqlite3", None)
    with pytest.raises(ConfigurationError, match=r"pip|install `pysqlite3"):
        sqlite.sqlite_module()
