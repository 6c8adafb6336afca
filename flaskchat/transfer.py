"""Moving to another database: everything is copied, in batches, and compared at the end.

Deliberate choices; do not change one without reading why:

 1. The source is only read.
 2. How far a table has been copied stands in a table of the target (`flaskchat_copy`), in the source's own order, and
    moves in the transaction that writes the batch. So a copy that was killed goes on where it stopped, nothing is
    written twice, and two copies at once cannot both go on.
 3. The target is empty or holds a copy in progress from the same source: two chats are never merged.
 4. No server may be at work. Its leases tell; one that only a dead worker left stands still, which is waited for.
 5. What such a worker was writing is ended in the target as the sweep would have ended it, with the text in the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, make_url

from . import audit
from .config import Settings
from .errors import ConfigurationError, FlaskChatError
from .live import Live
from .log.open import open_log
from .store import finish, migrate, whole
from .store.base import Lease
from .store.engine import Database
from .store.kinds import open_database
from .store.schema import HEAD, conversations, messages, runs, workers
from .sweep import GONE_AFTER, ROUND, orphan_ending

TIMEOUT = 60.0
"""Seconds for a lock or a statement: nobody waits for an answer here but the operator."""
LOOK = 0.25
"""Seconds between looks at leases."""
LARGEST = (1 << 31) - 1
"""What PostgreSQL holds in an INTEGER."""

_marks = sa.Table(
    "flaskchat_copy",
    sa.MetaData(),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
_SOURCE = "source"
_SETTING = "FLASKCHAT_DATABASE_URL"

Past = Callable[[Collection[str]], dict[str, list[bytes]]]


class TransferRefused(FlaskChatError):
    """Nothing can be copied so; the text says why."""


def open_source(url: str, called: str = _SETTING) -> Database:
    """A database that is there already, and of this version.

    :param called: where the URL was given, to name in errors.
    :raises TransferRefused, ConfigurationError, Unavailable:
    """
    try:
        database = open_database(url, timeout=TIMEOUT) if _there(url) else None
        if database is None:
            raise TransferRefused(f"there is no file {make_url(url).database!r}")
        try:
            found = migrate.standing(database)
        except BaseException:
            database.close()
            raise
    except ConfigurationError as error:
        words = str(error)
        if called == _SETTING or not words.startswith(_SETTING):
            raise
        raise ConfigurationError(f"{called}{words.removeprefix(_SETTING)}") from error
    if found == HEAD:
        return database
    database.close()
    if found is None:
        raise TransferRefused(f"{database.name} is not a database of flaskchat")
    raise TransferRefused(
        f"{database.name} is at revision {found}, and this flaskchat at {HEAD}: with FLASKCHAT_DATABASE_URL set to it, "
        "run `flask chat db upgrade` first"
    )


def open_target(url: str) -> Database:
    """A database with our tables, which are made where there are none.

    :raises ConfigurationError, Unavailable:
    """
    database = open_database(url, timeout=TIMEOUT)
    try:
        migrate.upgrade(database)
    except BaseException:
        database.close()
        raise
    return database


def _there(url: str) -> bool:
    """False for a file that is not there, which opening would make."""
    try:
        parsed = make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        return True  # opening says what is wrong with it
    return parsed.get_backend_name() != "sqlite" or not parsed.database or Path(parsed.database).exists()


def past_of(settings: Settings, database: Database) -> Past:
    """Reads what the log of a database has of runs."""

    def past(run_ids: Collection[str]) -> dict[str, list[bytes]]:
        log = open_log(settings, database, Live(1 << 20))
        try:
            return log.past(run_ids)
        finally:
            log.close()

    return past


def identity(database: Database) -> str:
    where = str(Path(database.name).resolve()) if database.kind == "sqlite" else database.name
    return f"{database.kind} {where}"


def copy(
    source: Database, target: Database, past: Past, progress: audit.Progress = lambda words: None,
    patience: float = (GONE_AFTER + 1) * ROUND,
) -> list[str]:
    """Copy everything, or go on with it, and compare.

    :param past: what the source's log has of runs that are still being written.
    :param patience: seconds that a lease has to stand still for.
    :returns: what differs at the end, in words; nothing where the copy is whole.
    :raises TransferRefused: see the choices above.
    """
    if identity(source) == identity(target):
        raise TransferRefused("source and target are the same database")
    for database in (source, target):
        progress(f"looking whether a server uses {database.name}")
        if at_work(database, patience):
            raise TransferRefused(f"a server is at work on {database.name}: stop it first")
    left = _leases(source)
    target.write(lambda c: _begin(c, source, target))
    for table in whole.TABLES:
        _copy_table(source, target, table, progress)
    _end_runs(source, target, past)
    target.write(_set_sequences)
    wrong = audit.compare(source, target, progress)
    if not _leases(source) <= left:
        wrong.append(f"a server has worked on {source.name} meanwhile")
    if wrong:  # what was copied before it changed is not copied again
        remedy = (
            f"{target.name} cannot be used: stop every server on {source.name}, which has been written to since the "
            "copy was begun, make the target anew, and repeat the command"
        )
        return [*wrong, remedy]
    target.write(lambda c: _marks.drop(c))
    return []


def at_work(database: Database, patience: float) -> bool:
    """Whether a worker renews its lease; one of a worker that is gone stands still for `patience` seconds."""
    known, until = _leases(database), time.monotonic() + patience
    while known and time.monotonic() < until:
        time.sleep(LOOK)
        found = _leases(database)
        if not found <= known:
            return True
        known = found
    return False


def _leases(database: Database) -> set[tuple[str, int, int]]:
    select = sa.select(workers.c.id, workers.c.epoch, workers.c.beats)
    return {(row.id, row.epoch, row.beats) for row in database.read(lambda c: c.execute(select).all())}


def _begin(c: Connection, source: Database, target: Database) -> None:
    target.alone(c, "copy")
    if sa.inspect(c).has_table(_marks.name):
        before = c.execute(sa.select(_marks.c.value).where(_marks.c.name == _SOURCE)).scalar_one()
        if before != identity(source):
            raise TransferRefused(f"{target.name} holds a copy in progress, but from {before}")
        return
    for table in whole.TABLES:
        if c.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).scalar():
            raise TransferRefused(
                f"{target.name} is not empty, and two databases are never merged: name one without conversations. "
                "Whether it holds the same already, `flask chat db check` with the source's URL says."
            )
    _marks.create(c)
    marks = [{"name": _SOURCE, "value": identity(source)}]
    marks += [{"name": table.name, "value": "null"} for table in whole.TABLES]
    c.execute(sa.insert(_marks), marks)


def _copy_table(source: Database, target: Database, table: sa.Table, progress: audit.Progress) -> None:
    mark = sa.select(_marks.c.value).where(_marks.c.name == table.name)
    total = source.read(lambda c: c.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())
    done = target.read(lambda c: c.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())
    before: str = target.read(lambda c: c.execute(mark).scalar_one())
    while True:
        progress(f"copying {whole.what(table)}: {done} of {total}")
        after = msgspec.json.decode(before)
        rows = source.read(partial(whole.batch, table=table, after=after))
        if not rows:
            return
        now = msgspec.json.encode(whole.key_of(table, rows[-1])).decode()
        for row in rows:
            _check(table, whole.portable(table, row))

        def write(c: Connection, rows: list[whole.Row] = rows, before: str = before, now: str = now) -> None:
            ours = sa.and_(_marks.c.name == table.name, _marks.c.value == before)
            if c.execute(sa.update(_marks).where(ours).values(value=now)).rowcount != 1:
                raise TransferRefused(f"another copy into {target.name} is going on")
            c.execute(sa.insert(table), rows)

        target.write(write)
        target.checkpoint()
        before, done = now, done + len(rows)


def _check(table: sa.Table, row: whole.Row) -> None:
    """SQLite minds neither lengths nor the size of numbers."""
    for name, value in row.items():
        kind = table.c[name].type
        length = getattr(kind, "length", None)
        too_long = isinstance(value, str) and length is not None and len(value) > length
        if too_long or (type(kind) is sa.Integer and isinstance(value, int) and abs(value) > LARGEST):
            key = " ".join(str(part) for part in whole.key_of(table, row))
            raise TransferRefused(f"{whole.what(table)}: {name} of {key} is too {'long' if too_long else 'large'}")


def _end_runs(source: Database, target: Database, past: Past) -> None:
    select = (
        sa.select(runs, conversations.c.title)
        .join(conversations, conversations.c.id == runs.c.conversation_id)
        .where(runs.c.state == "running")
    )
    rows = target.read(lambda c: c.execute(select).all())
    frames = past([row.id for row in rows]) if rows else {}
    for row in rows:
        ending, _ = orphan_ending(row, frames.get(row.id, []))
        lease = Lease(row.worker_id, row.epoch)
        target.write(lambda c, e=ending, le=lease: finish.write(target.executor(c), le, e))  # type: ignore[misc]


def _set_sequences(c: Connection) -> None:
    """SQLite numbers after the largest; PostgreSQL counts by itself, and was not asked for these."""
    if c.dialect.name != "postgresql":
        return
    for table in (conversations, messages):
        largest = c.execute(sa.select(sa.func.max(table.c.number))).scalar()
        if largest is not None:
            sequence = sa.func.pg_get_serial_sequence(table.name, "number")
            c.execute(sa.select(sa.func.setval(sequence, largest)))
