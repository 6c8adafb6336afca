"""PostgreSQL: how it is connected to, when a connection is given up, and what replaces SQLite's single writer.

Deliberate choices; do not change one without reading why:

 1. psycopg waits through a `wait` of ours: the original `poll` in the native thread that asks. Its own goes through
    `select`, which gevent has replaced, and would make a hub in every thread; and it waits for ever on a server that
    stands still. A connection whose command was given up is closed, since its answer may come yet.
 2. Names are looked up before libpq is given the address: libpq would do it while it holds the interpreter's lock.
 3. The network is not trusted to tell of its end: what is sent must be acknowledged within PARTITION, and keepalives
    find a silent partition in about as long. The server is asked to do the same, or a node that was cut off would keep
    its locks there, that of its lease too, for hours.
 4. A server gives up by itself as well (`statement_timeout`, `lock_timeout`, `idle_in_transaction_session_timeout`), so
    that a process which stands still within a transaction does not keep its locks for longer than a few seconds.
 5. A connection that has lain idle is looked at before it is used: a server that went has said so by then, and the
    socket can be read. So a restart of the server between two requests fails neither. What failed before its commit
    was asked for is run once more: a deadlock, or a connection that turned out to be dead only then.
 6. What SQLite's one writer gives for free is asked for by name: `alone` puts the transactions about one owner one
    after the other over all nodes, by an advisory lock that ends with the transaction.
 7. Reads are REPEATABLE READ: one snapshot for all that a read asks for. Writes are READ COMMITTED: after a lock was
    waited for, the next statement sees what whoever had it has done.
 8. Where there are several addresses, each is tried by itself with a patience of its own, the one that worked last
    first. libpq would spend all of it on the first that drops what it is sent, for ever. Of several hosts the one is
    wanted that takes writes, unless the URL says otherwise: what worked may have become a replica.
"""

from __future__ import annotations

import _socket
import contextlib
import hashlib
import ipaddress
import os
import re
import select
import tempfile
import threading
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg import conninfo, pq
from sqlalchemy.engine import URL, Connection
from sqlalchemy.pool import NullPool

from .. import tasks
from ..errors import ConfigurationError, Unavailable
from .engine import Ask, Database, unavailable

T = TypeVar("T")

WRITERS = 4
CONNECT = 2.0
"""Seconds that a connection may take to stand."""
PARTITION = 2.0
"""Seconds after which a peer that acknowledges nothing is taken for gone."""
HELD = 3.0
"""Seconds that a transaction may stand still between two statements."""
MARGIN = 2.0
"""Seconds that the server has beyond its own timeouts to say that they have passed."""
_THERE = {
    "tcp_keepalives_idle": "1", "tcp_keepalives_interval": "1", "tcp_keepalives_count": "2",
    "tcp_user_timeout": str(int(PARTITION * 1000)),
}  # fmt: skip
"""The server's own end: between a statement and its Sync none of its timeouts counts, only that it finds us gone."""
LOCKS = 0x666C6368
"""The first key of our advisory locks ("flch"): the server has one space for them for all that use the database."""
MIGRATING = 1
NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"

_WRONG = re.compile(
    r"authentication failed|no password supplied|pg_hba\.conf|does not exist|permission denied|not permitted"
    r"|does not support SSL|certificate|invalid|root\.crt|there is no host", re.IGNORECASE,
)  # fmt: skip
_LATER = re.compile(r"starting up|shutting down|recovery|too many|remaining connection slots|timeout", re.IGNORECASE)
"""Words of the server in its own language; in another one a fault is waited for, and the log says what it is."""

_TIMED_OUT = re.compile(r"no answer within|timed out")
"""Ours and the kernel's words for a peer that is silent: whoever has waited for that does not wait once more."""


def _original(module: str, name: str) -> Any:
    if tasks.cooperative():
        from gevent import monkey

        return monkey.get_original(module, name)
    return getattr(select if module == "select" else threading, name)


def _ready(fd: int, wanted: int, seconds: float) -> int:
    """What of READ (1) and WRITE (2) can be done with a descriptor; 0 when `seconds` have passed."""
    poll = _original("select", "poll")()
    poll.register(fd, (select.POLLIN if wanted & 1 else 0) | (select.POLLOUT if wanted & 2 else 0))
    found = poll.poll(max(0, int(seconds * 1000)))
    if not found:
        return 0
    mask = found[0][1]
    ready = (1 if mask & select.POLLIN else 0) | (2 if mask & select.POLLOUT else 0)
    return ready & wanted or wanted  # an error or a hang-up is for libpq to find


class Postgres(psycopg.Connection[Any]):
    """A connection that is waited for by `poll`, at most `patience` seconds for each command."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.patience = CONNECT
        self.lock = _original("threading", "Lock")()

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        until = time.monotonic() + self.patience
        try:
            wanted = next(gen)
            while True:
                ready = _ready(self.pgconn.socket, wanted, until - time.monotonic())
                if not ready:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"no answer within {self.patience:g} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        except BaseException:
            with contextlib.suppress(BaseException):  # it may want to say good-bye to whoever is not there any more
                gen.close()
            raise


def _addresses(host: str, port: str) -> list[str]:
    """:returns: none for a socket's path and for libpq's default.
    :raises psycopg.OperationalError: there is no such host, or the name server does not answer.
    """
    if not host or host.startswith(("/", "@")):
        return [""]
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return [host]
    try:
        found = _socket.getaddrinfo(host, port or 5432, 0, _socket.SOCK_STREAM)
    except _socket.gaierror as error:
        # A start takes the second for a typo (`_WRONG`); later it may be one that the name server makes for a moment.
        what = host if error.errno == _socket.EAI_AGAIN else f"there is no host {host!r}"
        raise psycopg.OperationalError(f"{what}: {error.strerror}") from error
    return list(dict.fromkeys(str(one[4][0]) for one in found))


def _places(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameters for each address by itself.

    :raises psycopg.OperationalError: no name could be looked up.
    """
    hosts, addresses, ports = (_listed(parameters, name) for name in ("host", "hostaddr", "port"))
    number = max(len(hosts), len(addresses))
    if {len(hosts), len(addresses)} - {0, number} or len(ports) not in (0, 1, number):
        return [parameters]  # libpq says what is wrong with it
    found: list[dict[str, Any]] = []
    fault: psycopg.OperationalError | None = None
    for at in range(number):
        host, port = hosts[at] if hosts else "", ports[at % len(ports)] if ports else ""
        try:
            meant = [addresses[at]] if addresses and addresses[at] else _addresses(host, port)
        except psycopg.OperationalError as error:
            fault = error
            continue
        found += [{**parameters, "host": host, "hostaddr": address, "port": port} for address in meant]
    if fault is not None and not found:
        raise fault
    return found or [parameters]


def _listed(parameters: Mapping[str, Any], name: str) -> list[str]:
    value = str(parameters.get(name) or "")
    return value.split(",") if value else []


def connect(parameters: dict[str, Any], settings: dict[str, str], *, patience: float, autocommit: bool) -> Postgres:
    """Open a connection; in a native thread.

    :param parameters: of libpq, with one address.
    :param settings: of the server for this connection, such as `statement_timeout`.
    :param patience: seconds for each command.
    :raises psycopg.Error: it could not be opened.
    """
    pgconn = pq.PGconn.connect_start(conninfo.make_conninfo("", **parameters).encode())
    until = time.monotonic() + CONNECT
    wanted = 2
    while True:
        if pgconn.status == pq.ConnStatus.BAD:
            raise psycopg.OperationalError(pgconn.get_error_message())
        if not _ready(pgconn.socket, wanted, until - time.monotonic()):
            pgconn.finish()
            raise psycopg.OperationalError(f"connection timeout: no answer within {CONNECT:g} s")
        state = pgconn.connect_poll()
        if state == pq.PollingStatus.OK:
            break
        if state == pq.PollingStatus.FAILED:
            message = pgconn.get_error_message()
            pgconn.finish()
            raise psycopg.OperationalError(message)
        wanted = 1 if state == pq.PollingStatus.READING else 2
    pgconn.nonblocking = 1
    connection = Postgres(pgconn)
    connection.patience = patience
    try:
        connection.autocommit = True
        connection.execute(";".join(f"SET {name} = '{value}'" for name, value in settings.items()))
        connection.autocommit = autocommit
    except BaseException:
        connection.close()
        raise
    return connection


def _milliseconds(seconds: float) -> str:
    return str(max(1, int(seconds * 1000)))


class PostgreSQL(Database):
    """One database on a server, used by the workers of any number of hosts."""

    writers = WRITERS
    error = psycopg.Error
    version = "not connected yet"

    def __init__(self, url: URL, *, timeout: float) -> None:
        dialect_url = url.set(drivername="postgresql+psycopg")
        dialect = dialect_url.get_dialect()()
        _args, parameters = dialect.create_connect_args(dialect_url)
        parameters.pop("context", None)
        self._parameters: dict[str, Any] = {
            "keepalives": 1, "keepalives_idle": 1, "keepalives_interval": 1, "keepalives_count": 2,
            "tcp_user_timeout": _milliseconds(PARTITION), "application_name": "flaskchat", "gssencmode": "disable",
            "client_encoding": "UTF8", **parameters,
        }  # fmt: skip
        if max(len(_listed(parameters, name)) for name in ("host", "hostaddr")) > 1:
            self._parameters.setdefault("target_session_attrs", "read-write")
        self._worked: dict[str, Any] = {}
        """What could be connected to last."""
        try:
            conninfo.make_conninfo("", **self._parameters)
        except psycopg.ProgrammingError as error:
            raise ConfigurationError(f"FLASKCHAT_DATABASE_URL: {error}") from None
        self.name = f"{url.host or 'local'}{f':{url.port}' if url.port else ''}/{url.database or ''}"
        digest = hashlib.blake2b(self.name.encode(), digest_size=8).hexdigest()
        self.places = Path(tempfile.gettempdir()) / f"flaskchat-{os.getuid()}-{digest}-places"
        engine = sa.create_engine(
            dialect_url, creator=self._creator, poolclass=NullPool, hide_parameters=True, use_native_hstore=False
        )
        super().__init__(engine, timeout=timeout)

    def describe(self) -> str:
        return f"PostgreSQL {self.version}, {self.name}"

    def open(self, *, patience: float, autocommit: bool = True) -> Postgres:
        """A connection of the driver's. In a native thread.

        :param patience: seconds that the server has for a statement.
        """
        settings = {
            "statement_timeout": _milliseconds(patience), "lock_timeout": _milliseconds(min(patience, self.timeout)),
            "idle_in_transaction_session_timeout": _milliseconds(HELD), **_THERE,
        }  # fmt: skip
        faults: list[psycopg.OperationalError] = []
        for place in sorted(_places(self._parameters), key=lambda place: place != self._worked):
            try:
                found = connect(place, settings, patience=patience + MARGIN, autocommit=autocommit)
            except psycopg.OperationalError as fault:
                faults.append(fault)
            else:
                self._worked = place
                self.version = found.info.parameter_status("server_version") or self.version
                return found
        raise faults[0] if len(faults) == 1 else psycopg.OperationalError("; ".join(map(str, faults)))

    def _creator(self) -> Postgres:
        return self.open(patience=self.timeout + MARGIN, autocommit=False)

    def connect(self, *, write: bool) -> Connection:
        connection = self.engine.connect()
        raw = self.raw(connection)
        if not write:
            raw.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            raw.read_only = True
        return connection

    @staticmethod
    def raw(c: Connection) -> Postgres:
        return c.connection.driver_connection  # type: ignore[return-value]

    def executor(self, c: Connection) -> Ask:
        return executor(self.raw(c))

    def hurry(self, c: Connection, seconds: float) -> None:
        c.exec_driver_sql(f"SET statement_timeout = {_milliseconds(seconds)}")
        c.commit()
        self.raw(c).patience = seconds + MARGIN

    def alone(self, c: Connection, key: str) -> None:
        c.execute(_ALONE, {"space": LOCKS, "key": key})

    def warm(self) -> None:
        """Open a connection of each kind, so that the first requests need not. In a native thread."""
        for write, idle in self._idle.items():
            if not idle:
                idle.append(self.connect(write=write))

    def now(self, c: Connection) -> float:
        return float(c.exec_driver_sql(NOW).scalar_one())

    def before_migration(self, c: Connection) -> None:
        c.exec_driver_sql("SET LOCAL statement_timeout = 0")
        c.exec_driver_sql("SET LOCAL lock_timeout = 0")
        c.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        self.raw(c).patience = 3600.0
        c.exec_driver_sql("SELECT pg_advisory_xact_lock(%s, %s)", (LOCKS, MIGRATING))

    def alive(self, c: Connection) -> bool:
        raw = self.raw(c)
        return not raw.closed and not _ready(raw.pgconn.socket, 1, 0)

    def again(self, fault: BaseException) -> bool:
        if isinstance(fault, psycopg.errors.DeadlockDetected | psycopg.errors.SerializationFailure):
            return True
        return lost(fault)

    def at_start(self, fault: BaseException) -> Exception:
        said = " ".join(str(fault).split())
        if isinstance(fault, psycopg.errors.InsufficientPrivilege):
            return ConfigurationError(
                f"FLASKCHAT_DATABASE_URL: cannot use the database {self.name}: {said}. "
                "Its user must be allowed to make tables there: GRANT CREATE ON SCHEMA public TO that user."
            )
        refused = isinstance(fault, psycopg.OperationalError) and not _LATER.search(said) and _WRONG.search(said)
        if isinstance(fault, psycopg.OperationalError | psycopg.InterfaceError | Unavailable) and not refused:
            return unavailable()
        return ConfigurationError(
            f"FLASKCHAT_DATABASE_URL: cannot use the database {self.name}: {said}. "
            "Check user, password, host and the database's name; `createdb` makes one that is missing."
        )


_ALONE = sa.text("SELECT pg_advisory_xact_lock(:space, hashtext(:key))")


def executor(raw: Postgres) -> Ask:
    return lambda statement, values: raw.execute(statement.replace("?", "%s").encode(), values)


def lost(fault: BaseException) -> bool:
    """Whether the connection has gone with it, before or while the server looked at the command."""
    return isinstance(
        fault,
        psycopg.errors.AdminShutdown | psycopg.errors.CrashShutdown | psycopg.errors.IdleInTransactionSessionTimeout,
    ) or (type(fault) is psycopg.OperationalError and not _TIMED_OUT.search(str(fault)))
