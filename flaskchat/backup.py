"""A copy of SQLite's file that is the whole database by itself, taken while servers write to it.

Deliberate choices; do not change one without reading why:

 1. One step of SQLite's backup API, which is one snapshot. In several steps, as the sqlite3 shell's `.backup` goes, a
    copy is begun anew whenever another connection commits, and here one commits every 20 ms while replies are written.
 2. The source is opened to be read, by a connection that is closed when the copy is made and before it is looked at:
    as long as the snapshot is held, the write-ahead log cannot begin anew, and grows.
 3. The copy has another name until it is whole, checked and on the disk, so that nobody takes what a killed command
    left for a backup. No file is ever replaced.
 4. Nothing is made beside the copy: its journal is in memory, and it is looked at as a file that does not change
    (`immutable`). Opened as usual it would get a -wal and a -shm, and a backup would be three files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy.engine import make_url

from .errors import FlaskChatError
from .store.engine import said
from .store.schema import VERSION_TABLE
from .store.sqlite import sqlite_module

TIMEOUT = 60.0
"""Seconds for a lock: readers wait for none in WAL mode, unless the log of a killed server is being recovered."""
UNFINISHED = ".unfinished"

_BUSY, _LOCKED, _FULL = 5, 6, 13  # https://sqlite.org/rescode.html


class BackupRefused(FlaskChatError):
    """There is no backup, nor anything of one; the text says why."""


def make(url: str, target: Path) -> tuple[Path, int]:
    """Copy the database that a URL names into a new file (0600).

    :returns: the database's file, and the size of the copy in bytes.
    :raises BackupRefused, ConfigurationError:
    """
    source = _file(url)
    if os.path.lexists(target):
        raise _taken(target)
    if not target.parent.is_dir():
        raise BackupRefused(f"there is no folder {str(target.parent)!r}")
    if not source.exists():
        raise BackupRefused(f"there is no file {str(source)!r}")
    module = sqlite_module()
    with _told(source, target, module):
        # made with O_EXCL and 0600, where SQLite would make it with the umask's rights
        fd, name = tempfile.mkstemp(UNFINISHED, f"{target.name}.", str(target.parent))
        made = Path(name)
        try:
            try:
                _copy(module, source, made)
                _check(module, source, made)
                os.fsync(fd)
                size = os.fstat(fd).st_size
            finally:
                os.close(fd)
            _rename(made, target)
        except BaseException:
            made.unlink(missing_ok=True)
            raise
        _sync(target.parent)
    return source, size


def _file(url: str) -> Path:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        raise BackupRefused("this copies SQLite's file: use pg_dump for a database in PostgreSQL")
    if parsed.database in (None, "", ":memory:"):
        raise BackupRefused("FLASKCHAT_DATABASE_URL names no file")
    return Path(str(parsed.database))


def _taken(target: Path) -> BackupRefused:
    return BackupRefused(f"{str(target)!r} is there already, and a backup replaces nothing: name a new file")


@contextlib.contextmanager
def _told(source: Path, target: Path, module: ModuleType) -> Iterator[None]:
    """Says in words what SQLite and the system say."""
    try:
        yield
    except module.Error as error:
        raise BackupRefused(f"{str(source)!r} cannot be copied into {str(target)!r}: {said(error)}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BackupRefused(f"no space is left for {str(target)!r}: nothing of it was kept") from error
        raise BackupRefused(f"{str(target)!r} cannot be written: {error.strerror or error}") from error


def _copy(module: ModuleType, source: Path, made: Path) -> None:
    def after_step(status: int, _remaining: int, _pages: int) -> None:
        """What the driver does not do: it repeats a step that met a lock for ever, and its error has no code."""
        if status & 0xFF == _FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if status & 0xFF in (_BUSY, _LOCKED):
            raise BackupRefused(f"{str(source)!r} is locked")

    database = _open(module, source, "mode=ro")
    try:
        if not _ours(database):
            raise BackupRefused(f"{str(source)!r} is not a database of flaskchat")
        copy: Any = module.connect(str(made), isolation_level=None)
        try:
            copy.execute("PRAGMA journal_mode = MEMORY")
            database.backup(copy, pages=-1, progress=after_step)
        finally:
            copy.close()
    finally:
        database.close()


def _check(module: ModuleType, source: Path, made: Path) -> None:
    copy = _open(module, made, "mode=ro&immutable=1")
    try:
        found = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok" or not _ours(copy):
            why = " ".join(found.split()) if found != "ok" else "it is not a database of flaskchat"
            raise BackupRefused(
                f"what was copied from {str(source)!r} is damaged, and was not kept: {why}. "
                "`flask chat db check` looks at the database itself"
            )
    finally:
        copy.close()


def _open(module: ModuleType, path: Path, how: str) -> Any:
    return module.connect(f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None, timeout=TIMEOUT)


def _ours(connection: Any) -> bool:
    """Of whatever version: a backup is also made before an upgrade."""
    table = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    return connection.execute(table, (VERSION_TABLE,)).fetchone() is not None


def _rename(made: Path, target: Path) -> None:
    """As `rename`, which would replace what another command has put there meanwhile; a second link does not."""
    try:
        os.link(made, target)
    except FileExistsError:
        raise _taken(target) from None
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise _taken(target) from None
        made.rename(target)
    else:
        made.unlink()


def _sync(folder: Path) -> None:
    """So that the name outlives a power cut as well; not every file system can."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
