"""The database servers that the tests start: fresh data for each test, and whole again after whatever was done."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa

from tests.backends import Daemon, PostgresServer, RedisServer, Servers, opened

KINDS = ("postgres", "redis")


@pytest.fixture(params=KINDS)
def daemon(request: pytest.FixtureRequest, database_servers: Servers) -> Daemon:
    found: Daemon = getattr(database_servers, request.param)
    return found


def test_each_test_has_data_of_its_own(database_servers: Servers) -> None:
    with opened("postgres+redis", database_servers) as one, opened("postgres+redis", database_servers) as two:
        assert one.database != two.database
        assert one.prefix != two.prefix
        assert set(one.settings()) == {"FLASKCHAT_DATABASE_URL", "FLASKCHAT_REDIS_URL", "FLASKCHAT_REDIS_PREFIX"}
        database_servers.postgres.execute("CREATE TABLE here (n int)", database=one.database)
        with pytest.raises(sa.exc.ProgrammingError):
            database_servers.postgres.execute("SELECT n FROM here", database=two.database)
    with opened("sqlite", database_servers) as plain:
        assert plain.settings() == {}


@pytest.mark.parametrize("harm", [Daemon.kill, Daemon.stop, Daemon.freeze], ids=lambda harm: harm.__name__)
def test_a_server_that_was_harmed_is_whole_again_for_whoever_comes_next(
    daemon: Daemon, database_servers: Servers, harm: Callable[[Daemon], None]
) -> None:
    harm(daemon)
    daemon.start()
    assert daemon._answers()


def test_what_postgres_has_committed_is_there_after_a_kill(postgres: PostgresServer) -> None:
    with postgres.database() as name:
        postgres.execute("CREATE TABLE kept (n int)", database=name)
        postgres.execute("INSERT INTO kept VALUES (1)", database=name)
        postgres.kill()
        postgres.start()
        assert postgres.execute("SELECT n FROM kept", database=name) == [(1,)]


def test_what_redis_has_answered_is_there_after_a_kill(redis_server: RedisServer) -> None:
    with redis_server.prefix() as prefix:
        assert redis_server.command("XADD", f"{prefix}log", "1-0", "f", "v") == b"$3"
        redis_server.kill()
        redis_server.start()
        assert redis_server.command("XLEN", f"{prefix}log") == b":1"


def test_a_redis_may_lose_what_it_was_given_last(redis_server: RedisServer) -> None:
    with redis_server.prefix() as prefix:
        redis_server.command("XADD", f"{prefix}log", "1-0", "f", "v")
        with redis_server.losing():
            redis_server.command("XADD", f"{prefix}log", "2-0", "f", "v")
            assert redis_server.command("XLEN", f"{prefix}log") == b":2"
        assert redis_server.command("XLEN", f"{prefix}log") == b":1"


def test_all_connections_to_a_database_can_be_cut(postgres: PostgresServer) -> None:
    with postgres.database() as name:
        engine = sa.create_engine(postgres.url(name), poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1")
            assert postgres.terminate(name) == 1
            with pytest.raises(sa.exc.OperationalError):
                connection.exec_driver_sql("SELECT 1")
