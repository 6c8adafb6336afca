"""The start on PostgreSQL: what is wrong is told, and several processes make one schema."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from flaskchat.errors import ConfigurationError, Unavailable
from flaskchat.store import migrate
from flaskchat.store.kinds import open_database
from flaskchat.store.postgres import PostgreSQL
from flaskchat.store.schema import metadata
from tests.backends import Backend, PostgresServer
from tests.conftest import ROOT
from tests.rooms import where
from tests.test_migrations import START

pytestmark = pytest.mark.backends("postgres")


def refused(url: str) -> Exception:
    database = open_database(url, timeout=1.0)
    try:
        with pytest.raises((ConfigurationError, Unavailable)) as caught:
            migrate.upgrade(database)
    finally:
        database.close()
    return caught.value


def test_a_start_says_what_is_wrong_and_never_the_password(
    postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    at = f"127.0.0.1:{postgres.port}"
    missing = refused(f"postgresql://flaskchat:s3cret@{at}/no_such_database")
    assert isinstance(missing, ConfigurationError)
    assert "no_such_database" in str(missing)
    assert "createdb" in str(missing)
    unknown = refused(f"postgres://flaskchat:s3cret@no-such-host.invalid:{postgres.port}/postgres")
    assert isinstance(unknown, ConfigurationError)
    assert "no-such-host.invalid" in str(unknown)
    nobody = refused(f"postgresql+psycopg://no_such_user:s3cret@{at}/postgres")
    assert isinstance(nobody, ConfigurationError)
    assert isinstance(refused("postgresql://flaskchat:s3cret@127.0.0.1:9/postgres"), Unavailable), "it may come yet"
    with pytest.raises(ConfigurationError, match="expected sqlite"):
        open_database("mysql://root:s3cret@localhost/x", timeout=1.0)
    for said in (missing, unknown, nobody, caplog.text):
        assert "s3cret" not in str(said)


def test_processes_that_start_at_once_on_an_empty_database_make_what_the_schema_says(
    backend: Backend, tmp_path: Path
) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    url = where(backend, tmp_path)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START, url], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ends
    database = open_database(url, timeout=5.0)
    assert isinstance(database, PostgreSQL)
    with database.connect(write=False) as connection:
        ours = {"version_table": migrate.VERSION_TABLE, "compare_type": True}
        found = compare_metadata(MigrationContext.configure(connection, opts=ours), metadata)
        assert [one for one in found if "_by_part" not in str(one)] == []
        rows = connection.execute(sa.text("SELECT indexname, indexdef FROM pg_indexes"))
        indexes: dict[str, str] = {row.indexname: row.indexdef for row in rows}
    database.close()
    assert "state" in indexes["flaskchat_runs_running"].partition("WHERE")[2]
    assert "gin_trgm_ops" in indexes["flaskchat_messages_by_part"]
