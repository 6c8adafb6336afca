"""Files that the chat must not use: the server does not start, says why and what to do, and leaves them as they are."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from flaskchat.errors import ConfigurationError
from flaskchat.store import migrate, sqlite
from flaskchat.store.kinds import open_database
from flaskchat.store.schema import VERSION_TABLE
from tests.conftest import ROOT, free_port
from tests.rooms import Rooms

NAME = "flaskchat.sqlite3"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with some replies, closed and without a write-ahead log."""
    path = tmp_path_factory.mktemp("sound") / NAME
    rooms = Rooms(path)
    for number in range(40):
        rooms.run(rooms.begin(f"question {number} " * 20), f"answer {number} " * 200)
    rooms.close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("VACUUM")  # of a page that is free nothing is lost
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    for beside in path.parent.glob(f"{NAME}-*"):
        beside.unlink()
    return path


def start(folder: Path, *, obey_modes: bool = False) -> subprocess.CompletedProcess[str]:
    """Start the server as deploy/ does, on the data in `folder`; it must end by itself.

    :param obey_modes: take from root its right to pass over a file's mode.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("FLASKCHAT_", "OPENAI_"))}
    environment |= {"FLASKCHAT_DATA": str(folder), "FLASKCHAT_MODEL": "guide", "SECRET_KEY": "s" * 32}
    environment |= {"WEB_CONCURRENCY": "1", "PORT": str(free_port()), "PYTHONPATH": str(ROOT)}

    def drop() -> None:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH; what `exec` may give root at most
            if libc.prctl(24, capability, 0, 0, 0) != 0:  # PR_CAPBSET_DROP
                raise OSError("the right to pass over modes could not be dropped")

    libc = ctypes.CDLL(None, use_errno=True)
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "deploy" / "gunicorn.conf.py")]
    return subprocess.run(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60,
        preexec_fn=drop if obey_modes and os.geteuid() == 0 else None,
    )  # fmt: skip


def assert_refused(ended: subprocess.CompletedProcess[str], folder: Path, *words: str) -> None:
    print(ended.stdout)
    assert ended.returncode != 0, "it started"
    said = re.search(r"(?:ConfigurationError|\[ERROR\] flaskchat): (.*)", ended.stdout)
    assert said is not None, ended.stdout
    assert "FLASKCHAT_DATABASE_URL" in said[1]
    assert str(folder / NAME) in said[1], "which file it is"
    for word in words:
        assert word in said[1], said[1]


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_within_a_page(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1500])


def cut_to_less_than_a_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def overwrite_the_schema(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100:4096] = b"\xff" * (4096 - 100)
    path.write_bytes(bytes(data))


def overwrite_the_middle(path: Path) -> None:
    """Where no look at the version would see it."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 8192] = b"\xa5" * 8192
    path.write_bytes(bytes(data))


def a_letter(path: Path) -> None:
    path.write_text("This is a letter, not a database.\n" * 200)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_in_half, ["malformed", "Restore a backup", "move the file away"]),
        (cut_within_a_page, ["damaged", "Restore a backup"]),
        (cut_to_less_than_a_header, ["malformed", "Restore a backup"]),
        (overwrite_the_schema, ["Restore a backup"]),
        (overwrite_the_middle, ["damaged", "Restore a backup"]),
        (a_letter, ["not a database", "no SQLite file", "move it away"]),
    ],
)
def test_a_file_that_is_damaged_or_no_database_is_refused_and_left_alone(
    sound: Path, tmp_path: Path, damage: Callable[[Path], None], words: list[str]
) -> None:
    path = tmp_path / NAME
    shutil.copy(sound, path)
    damage(path)
    before = path.read_bytes()
    database = open_database(f"sqlite:///{path}", timeout=5.0)
    with pytest.raises(ConfigurationError) as refused:
        migrate.upgrade(database)
    database.close()
    for word in ["FLASKCHAT_DATABASE_URL", str(path), *words]:
        assert word in str(refused.value)
    assert path.read_bytes() == before


def test_the_server_does_not_start_on_a_damaged_file_and_says_why(sound: Path, tmp_path: Path) -> None:
    path = tmp_path / NAME
    shutil.copy(sound, path)
    overwrite_the_middle(path)
    before = path.read_bytes()
    assert_refused(start(tmp_path), tmp_path, "damaged", "Restore a backup")
    assert path.read_bytes() == before


def test_a_database_of_another_application_is_refused_and_left_alone(tmp_path: Path) -> None:
    """As Fossil, GeoPackage and others mark their files. It is not switched to write-ahead logging either."""
    path = tmp_path / NAME
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA application_id = 0x47504B47")
        connection.execute("CREATE TABLE rivers (name TEXT)")
    connection.close()
    before = path.read_bytes()
    assert_refused(start(tmp_path), tmp_path, "another application", "0x47504b47", "a file of the chat's own")
    assert path.read_bytes() == before


def test_a_host_s_own_database_is_taken_with_its_tables(tmp_path: Path) -> None:
    path = tmp_path / NAME
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
        connection.execute("INSERT INTO customers VALUES ('Ada')")
    connection.close()
    database = open_database(f"sqlite:///{path}", timeout=5.0)
    migrate.upgrade(database)
    migrate.upgrade(database)
    with database.connect(write=False) as opened:
        assert opened.execute(sa.text("SELECT name FROM customers")).scalar() == "Ada"
        assert sa.inspect(opened).has_table(VERSION_TABLE)
    database.close()


def test_a_database_of_a_newer_version_is_refused_with_what_to_do(sound: Path, tmp_path: Path) -> None:
    path = tmp_path / NAME
    shutil.copy(sound, path)
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
        connection.execute("UPDATE flaskchat_compatible SET oldest = '9999'")
    connection.close()
    database = open_database(f"sqlite:///{path}", timeout=5.0)
    with pytest.raises(ConfigurationError, match=r"FLASKCHAT_DATABASE_URL: .*newer flaskchat.*9999.*backup"):
        migrate.upgrade(database)
    database.close()


def read_only_file(folder: Path) -> None:
    (folder / NAME).chmod(0o400)


def read_only_folder(folder: Path) -> None:
    folder.chmod(0o500)


@pytest.mark.parametrize(
    ("lock", "words"), [(read_only_file, "not readable and writable"), (read_only_folder, "into its folder")]
)
def test_a_file_or_folder_that_cannot_be_written_is_refused_at_the_start(
    sound: Path, tmp_path: Path, lock: Callable[[Path], None], words: str
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(sound, folder / NAME)
    lock(folder)
    try:
        assert_refused(start(folder, obey_modes=True), folder, words)
    finally:
        folder.chmod(0o700)


def test_looking_for_damage_takes_a_moment_however_large_the_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every worker looks, at every start."""
    path = tmp_path / NAME
    database = open_database(f"sqlite:///{path}", timeout=5.0)
    migrate.upgrade(database)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE large (id INTEGER PRIMARY KEY, data BLOB)")
        connection.executemany("INSERT INTO large (data) VALUES (?)", ((os.urandom(400),) for _ in range(100_000)))
    connection.close()
    monkeypatch.setattr(sqlite, "CHECK_SECONDS", 0.02)
    began = resource.getrusage(resource.RUSAGE_THREAD).ru_utime
    migrate.upgrade(database)
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_utime - began < 0.2
    database.close()
