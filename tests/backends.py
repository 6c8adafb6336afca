"""Where a chat keeps its data, as the tests start it: PostgreSQL and Redis servers, and the backends made of them.

One server of a kind per test process, started when a test first wants it; each test has a database and a key prefix of
its own. A test that breaks a server (`kill`, `freeze`) need not mend it: whoever comes next finds it whole.
"""

from __future__ import annotations

import contextlib
import getpass
import itertools
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import sqlalchemy as sa

from tests.programs import free_port, program

READY = ("sqlite", "sqlite+redis", "postgres", "postgres+redis")
"""The backends that the product has all parts of; tests for the others wait for theirs."""
EVERYWHERE = ("sqlite", "postgres", "postgres+redis")

_numbers = itertools.count(1)


class Daemon:
    """A database server in a folder of its own, at a port of its own, which may be killed, frozen and started again."""

    host = "127.0.0.1"
    """Where it is reached."""
    listens = "127.0.0.1"

    def __init__(self) -> None:
        self.port = free_port()
        # not pytest's folder: another user could not enter it, and PostgreSQL is another where we are root
        self.folder = Path(tempfile.mkdtemp(prefix="flaskchat-test-"))
        self.log_path = self.folder / "log"
        self._how: dict[str, Any] = {"cwd": self.folder}
        """For whoever starts its programs: where, and under whom."""
        self._process: subprocess.Popen[bytes] | None = None

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _answers(self) -> bool:
        """Whether it takes commands."""
        raise NotImplementedError

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def start(self) -> None:
        """Start it, or wake it up; return when it answers."""
        if self.running:
            self.thaw()
        until = time.monotonic() + 60  # a machine with other work
        while not (self.running and self._answers()):
            if not self.running:  # also when it gave up: after a kill, what it left may be in the way for a moment
                self._spawn()
            assert time.monotonic() < until, f"{type(self).__name__} did not start:\n{self.log()}"
            time.sleep(0.02)

    def _spawn(self) -> None:
        with self.log_path.open("ab") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self._process = subprocess.Popen(self._command(), **streams, **self._how)

    def family(self) -> list[psutil.Process]:
        """Its processes, the one that forks them first."""
        if not self.running:
            return []
        assert self._process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(self._process.pid)
            return [first, *first.children(recursive=True)]
        return []

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)  # first: one that is stopped forks no more
        for process in self.family()[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill(self) -> None:
        """`kill -9` of all of it."""
        self.freeze()  # so that the list is complete
        family = self.family()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self._process is not None:
            self._process.wait()
        psutil.wait_procs(family, timeout=10)

    def freeze(self) -> None:
        """SIGSTOP: connections stay, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """As an operator stops it: what has been committed is written, connections are cut."""
        if not self.running:
            return
        assert self._process is not None
        self.thaw()
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class PostgresServer(Daemon):
    """With PostgreSQL's own settings, but that it is small; it syncs what it commits."""

    def __init__(self) -> None:
        super().__init__()
        self._postgres = program("postgres")
        self._data = self.folder / "data"
        if getpass.getuser() == "root":  # it refuses to run as root
            shutil.chown(self.folder, "postgres", "postgres")
            self._how |= {"user": "postgres", "group": "postgres", "extra_groups": []}
        made = subprocess.run(
            [program("initdb"), "--no-sync", "--auth=trust", "--username=flaskchat", "--encoding=UTF8",
             "--locale=C", f"--pgdata={self._data}"],
            capture_output=True, text=True, check=False, **self._how,
        )  # fmt: skip
        assert made.returncode == 0, made.stdout + made.stderr

    def _command(self) -> list[str]:
        options = {
            "listen_addresses": self.listens, "port": self.port, "unix_socket_directories": "",
            "shared_buffers": "16MB", "max_connections": 200,
        }  # fmt: skip
        more = [f"--{name}={value}" for name, value in options.items()]
        return [self._postgres, "-D", str(self._data), *more]

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except sa.exc.DBAPIError:
            return False
        return True

    def url(self, database: str = "postgres") -> str:
        """For SQLAlchemy, and for `FLASKCHAT_DATABASE_URL`."""
        return f"postgresql+psycopg://flaskchat@{self.host}:{self.port}/{database}"

    def execute(self, statement: str, *, database: str = "postgres") -> list[Any]:
        """In autocommit, over a connection of its own."""
        engine = sa.create_engine(
            self.url(database), poolclass=sa.NullPool, isolation_level="AUTOCOMMIT",
            connect_args={"connect_timeout": 5},
        )  # fmt: skip
        with engine.connect() as connection:
            found = connection.exec_driver_sql(statement)
            return list(found.all()) if found.returns_rows else []

    @contextlib.contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """A fresh database.

        :param template: of which it is a copy; nobody may be connected to that one.
        :returns: its name; see `url`.
        """
        self.start()
        name = f"chat{next(_numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield name
        finally:
            self.start()  # whatever the test did to it
            self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def terminate(self, database: str) -> int:
        """Cut every connection to a database, as an operator or a failover does.

        :returns: how many there were.
        """
        statement = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
        return len(self.execute(statement))


class RedisServer(Daemon):
    """With the append-only file, as a log needs it.

    :param aof: False: as Redis comes, which keeps nothing over a `kill -9`.
    """

    def __init__(self, *, aof: bool = True) -> None:
        super().__init__()
        self._redis = program("redis-server")
        self.aof = aof

    def _command(self) -> list[str]:
        options = {
            "port": self.port, "bind": self.listens, "dir": self.folder, "appendonly": "yes" if self.aof else "no",
            "save": "", "logfile": "",
        }  # fmt: skip
        return [self._redis, *itertools.chain.from_iterable((f"--{key}", str(options[key])) for key in options)]

    def _answers(self) -> bool:
        try:
            return self.command("PING") == b"+PONG"
        except OSError:
            return False

    def command(self, *words: str) -> bytes:
        """Ask it one thing, over a connection of its own.

        :returns: the first line of the answer.
        """
        with socket.create_connection((self.host, self.port), timeout=60) as sock:
            said = b"".join(b"$%d\r\n%b\r\n" % (len(word.encode()), word.encode()) for word in words)
            sock.sendall(b"*%d\r\n%b" % (len(words), said))
            answer = b""
            while b"\r\n" not in answer:
                data = sock.recv(65536)
                if not data:
                    raise ConnectionResetError
                answer += data
        return answer.partition(b"\r\n")[0]

    @contextlib.contextmanager
    def losing(self) -> Iterator[None]:
        """What it is given within is lost: it dies, and comes back as it was at the beginning. So does a replica that
        is behind when it takes over, or a disk that lies.
        """
        kept, saved = self.folder / "appendonlydir", self.folder / "before"
        shutil.rmtree(saved, ignore_errors=True)
        shutil.copytree(kept, saved)
        yield
        self.kill()
        shutil.rmtree(kept)
        saved.rename(kept)
        self.start()

    @property
    def url(self) -> str:
        """For `FLASKCHAT_REDIS_URL`."""
        return f"redis://{self.host}:{self.port}/0"

    @property
    def direct(self) -> str:
        """Where it is at the moment, for a client that asks nobody for that."""
        return self.url

    @contextlib.contextmanager
    def prefix(self) -> Iterator[str]:
        """A prefix that no key has yet, for `FLASKCHAT_REDIS_PREFIX`."""
        self.start()
        try:
            yield f"test{next(_numbers)}:"
        finally:
            self.start()
            self.command("FLUSHALL")


class Servers:
    """The database servers of one test process."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def _get(self, name: str, make: Callable[[], Daemon]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        self._made[name].start()
        return self._made[name]

    @property
    def postgres(self) -> PostgresServer:
        """:raises pytest.skip.Exception: it is not installed."""
        found: PostgresServer = self._get("postgres", PostgresServer)
        return found

    @property
    def redis(self) -> RedisServer:
        """:raises pytest.skip.Exception: it is not installed."""
        found: RedisServer = self._get("redis", RedisServer)
        return found

    def close(self) -> None:
        for server in self._made.values():
            server.close()


class Backend(NamedTuple):
    """Where one test's chat keeps its data."""

    name: str
    """`sqlite`, `postgres`, `postgres+redis` or `sqlite+redis`."""
    postgres: PostgresServer | None = None
    database: str = ""
    redis: RedisServer | None = None
    prefix: str = ""

    def settings(self) -> dict[str, object]:
        """What an application is told of it; nothing of SQLite, which is in its instance folder."""
        found: dict[str, object] = {}
        if self.postgres is not None:
            found["FLASKCHAT_DATABASE_URL"] = self.postgres.url(self.database)
        if self.redis is not None:
            found |= {"FLASKCHAT_REDIS_URL": self.redis.url, "FLASKCHAT_REDIS_PREFIX": self.prefix}
        return found


SQLITE = Backend("sqlite")


@contextlib.contextmanager
def opened(name: str, servers: Servers) -> Iterator[Backend]:
    """A backend without any data in it."""
    with contextlib.ExitStack() as stack:
        store, _, log = name.partition("+")
        assert store in ("sqlite", "postgres"), name
        assert log in ("", "redis"), name
        backend = Backend(name)
        if store == "postgres":
            postgres = servers.postgres
            backend = backend._replace(postgres=postgres, database=stack.enter_context(postgres.database()))
        if log == "redis":
            redis = servers.redis
            backend = backend._replace(redis=redis, prefix=stack.enter_context(redis.prefix()))
        yield backend
