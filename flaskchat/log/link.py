"""One connection to the Redis that holds the log: where that is, how it is found again, what a failure costs.

Deliberate choices; do not change one without reading why:

 1. A connection has one user and there is no pool: whatever cuts a command in two (a timeout, a greenlet that is
    killed) closes it, so that no answer is ever left for the next one to read.
 2. Nothing is repeated here. A command whose answer is lost may have been carried out; only the caller knows whether
    it may be made again. The one exception is MOVED, which says that nothing was done.
 3. A cluster needs no client of its own: all keys have one hash tag, so they are on one node, and that node's
    neighbours say which it is. Reads follow there. An append does not: the node may lack what the one before had, and
    has to be compared with what we have before anything is added to it.
 4. A master that stood still while another was put in its place wakes as one, and takes what it is told for ten seconds
    or more, until a sentinel finds it. Whoever asked it meanwhile has had no answer and has left; whoever was silent
    has noticed nothing. So behind sentinels a connection that was silent for longer than one waits for an answer is
    asked first whether it leads to a master still, with a replica; where it has none, a sentinel says whether that is
    the master. Where no sentinel can be reached it is believed: a failover needs them, serving does not.
 5. After a failure the next attempts fail at once for a moment, differently long in each process: callers come every
    few milliseconds, and a server that starts must not meet all workers at the same time.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from ..config import without_passwords
from ..errors import ConfigurationError
from .base import LogUnavailable

TIMEOUT = 2.0
"""Seconds for a connect, and for each answer."""
SILENT = TIMEOUT
"""Seconds without a command after which a connection that sentinels have named is asked where it leads: see 4."""
PAUSE = (0.1, 0.5)
"""Seconds, from and to, in which nothing is tried after a failure."""
SCHEMES = {
    "redis": "redis", "rediss": "rediss", "valkey": "redis", "valkeys": "rediss", "redis+cluster": "redis",
    "rediss+cluster": "rediss", "redis+sentinel": "redis", "rediss+sentinel": "rediss", "unix": "unix",
}  # fmt: skip
FILES = {"ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"}
"""Options that name one: redis-py would say that there is none, but not which."""

Command = Sequence[bytes]


class Where(NamedTuple):
    """What FLASKCHAT_REDIS_URL says."""

    hosts: list[tuple[str, int]]
    """Of the servers, or of the sentinels; none for a Unix socket."""
    service: str
    """The name under which sentinels know the server; empty where there are none."""
    options: dict[str, Any]
    """For redis-py's connection, but for the host."""
    sentinel_options: dict[str, Any]


def redis_module() -> ModuleType:
    """:raises ConfigurationError: redis-py is not installed."""
    try:
        return importlib.import_module("redis.connection")
    except ImportError:
        raise ConfigurationError(
            "FLASKCHAT_REDIS_URL needs redis-py, which is not installed: pip install 'flaskchat[redis]'"
        ) from None


def where(url: str) -> Where:
    """Read an address: `redis://[user:password@]host[:port][,host:port …][/db]`, `rediss://` with TLS, `unix:///path`,
    `redis+sentinel://[user:password@]host:port,host:port/service[/db]`; options of redis-py as a query.

    :raises ConfigurationError:
    """
    module = redis_module()
    scheme, found, rest = url.partition("://")
    try:
        if not found or scheme not in SCHEMES:
            raise ValueError(f"it must begin with one of {', '.join(f'{name}://' for name in SCHEMES)}")
        if scheme == "unix":
            return Where([], "", _options(module.parse_url(url)), {})
        netloc, slash, path = rest.partition("/")
        netloc, mark, query = netloc.partition("?") if not slash else (netloc, "", "")
        path, mark, query = path.partition("?") if slash else (path, mark, query)
        user, at, names = netloc.rpartition("@")
        sentinel = scheme.endswith("+sentinel")
        parts = [urlsplit(f"//{name}") for name in names.split(",")]
        hosts = [(part.hostname or "localhost", part.port or (26379 if sentinel else 6379)) for part in parts]
        service, _, db = path.partition("/") if sentinel else ("", "", path)
        if sentinel and not service:
            raise ValueError("the sentinels' name of the server is missing: redis+sentinel://host:port/name")
        asked = {key: values[0] for key, values in parse_qs(query).items()}
        own = {key.removeprefix("sentinel_"): asked.pop(key) for key in [*asked] if key.startswith("sentinel_")}
        more = "&".join(item for item in query.split("&") if item and not item.startswith("sentinel_"))
        plain = f"{SCHEMES[scheme]}://{user}{at}host/{db}" + (f"?{more}" if more else "")
        if db and not db.isdigit():
            raise ValueError(f"{db!r} is no number of a database")
        return Where(hosts, service, _options(module.parse_url(plain)), _options(own | {"scheme": SCHEMES[scheme]}))
    except (ValueError, TypeError) as error:
        shown = without_passwords(url)
        raise ConfigurationError(f"FLASKCHAT_REDIS_URL={shown!r} cannot be read: {error}") from None


def _options(found: dict[str, Any]) -> dict[str, Any]:
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    module = redis_module()
    options = {key: value for key, value in found.items() if key not in ("host", "port", "max_connections", "timeout")}
    if options.pop("scheme", "") == "rediss":
        options["connection_class"] = module.SSLConnection
    for name in FILES & options.keys():
        if options.get("connection_class") is not module.SSLConnection:
            raise ValueError(f"{name} needs rediss://")
        if not os.path.exists(options[name]):
            raise ValueError(f"{name}: there is no {options[name]!r}")
    options |= {
        "socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT, "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0, "protocol": 2, "decode_responses": False,
    }  # fmt: skip
    _make(options)  # an option that there is not is found now, not when the first reply is written
    return options


def _make(options: dict[str, Any]) -> Any:
    """A connection that is not connected yet.

    :raises TypeError: there is no such option.
    """
    options = dict(options)
    return options.pop("connection_class", redis_module().Connection)(**options)


def pack(command: Command) -> bytes:
    """A command as it is sent (https://redis.io/docs/latest/develop/reference/protocol-spec/)."""
    return b"*%d\r\n" % len(command) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in command])


class Link:
    """Used by one task at a time."""

    def __init__(self, place: Where) -> None:
        self._place = place
        self._first = random.randrange(len(place.hosts)) if place.service else 0
        """Which of the hosts is tried first, counted round and round."""
        self._moved: tuple[str, int] | None = None
        """Where a cluster's node said that our keys are."""
        self._connection: Any = None
        self._used = 0.0
        """When it was last answered (monotonic)."""
        self._not_before = 0.0
        self._why = ""
        self.generation = 0
        """Counts the connections: what one server had may be gone from the next."""
        from redis import exceptions

        self._failures = (exceptions.RedisError, OSError)
        self._error = exceptions.ResponseError
        self._of_no_use = (exceptions.ReadOnlyError, exceptions.ClusterDownError, exceptions.MasterDownError)

    def usable(self) -> bool:
        """Whether there is a connection, and, if it was silent, whether it leads where it should; else it is closed."""
        if self._connection is None or not self._place.service or time.monotonic() - self._used <= SILENT:
            return self._connection is not None
        try:
            if self._leads_to_the_master():
                self._used = time.monotonic()
                return True
        except self._failures:
            pass
        except BaseException:
            self.close()
            raise
        self.close()
        return False

    def _leads_to_the_master(self) -> bool:
        role: Any
        (role,) = self._ask([[b"ROLE"]])
        if not isinstance(role, list) or role[0] != b"master":
            return False
        if role[2]:
            return True
        for _, sentinel in self._places():
            with contextlib.suppress(LogUnavailable, *self._failures):
                return self._named(sentinel) == (self._connection.host, self._connection.port)
        return True

    def ask(self, *commands: Command, stay: bool = False) -> list[Any]:
        """Send them all at once.

        :param stay: they are for this server alone, and not for the one to which a cluster has moved our keys: the next
            time it is that one that is connected to.
        :returns: an answer for each; an error of a single one is its answer.
        :raises LogUnavailable: any of them may have been carried out.
        """
        try:
            if self._connection is None:
                self.connect()
            replies = self._ask(commands)
            moved = [reply for reply in replies if self._names(reply, "MOVED")]
            if moved:
                self._follow(moved[0])
                if stay:
                    raise LogUnavailable("Redis: our keys are on another node now")
                self.connect()
                replies = self._ask(commands)
        except BaseException as error:
            self.close()
            if not isinstance(error, self._failures):
                raise
            raise self._failed(error) from error
        self._used = time.monotonic()
        for reply in replies:
            if isinstance(reply, self._error):
                self._look_at(reply)
        return replies

    def _ask(self, commands: Sequence[Command]) -> list[Any]:
        connection = self._connection
        connection.send_packed_command([b"".join(map(pack, commands))])
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(connection.read_response())
            except self._error as error:
                replies.append(error)
        return replies

    def _look_at(self, error: Exception) -> None:
        left = self._place.service and self._names(error, "NOREPLICAS")  # its replica may be the master by now
        if left or isinstance(error, self._of_no_use):  # a failover: the server that takes writes is another now
            self.close()
            self._first, self._moved = self._first + 1, None
            raise self._failed(error) from error
        if self._names(error, "ASK", "TRYAGAIN"):
            raise LogUnavailable("Redis: the cluster moves our keys") from error

    def _names(self, reply: Any, *codes: str) -> bool:
        """Whether it is an error of this code; redis-py has a class for each, or in older versions the text."""
        if not isinstance(reply, self._error):
            return False
        return type(reply).__name__.removesuffix("Error").upper() in codes or str(reply).startswith(codes)

    def _failed(self, error: BaseException) -> LogUnavailable:
        self._not_before = time.monotonic() + random.uniform(*PAUSE)
        self._why = f"Redis: {error or type(error).__name__}"
        return LogUnavailable(self._why)

    def _follow(self, moved: Any) -> None:
        host, _, port = str(moved.args[0]).split(" ")[-1].rpartition(":")  # "MOVED 3999 127.0.0.1:6381"
        self._moved = (host or self._connection.host, int(port))
        self.close()

    # -- finding the server ----------------------------------------------------------------------------------------

    def connect(self) -> None:
        """:raises LogUnavailable: no server could be reached; or one could not a moment ago."""
        now = time.monotonic()
        if now < self._not_before:
            raise LogUnavailable(self._why)
        error: BaseException = LogUnavailable("no server")
        for number, place in self._places():
            try:
                address = self._master(place) if self._place.service else place
                self._connection = self._open(address, self._place.options)
                self._first, self._used = number, time.monotonic()
                self.generation += 1
                return
            except self._failures as failed:
                error = failed
            except LogUnavailable as failed:
                error = failed
            self._moved = None
            if time.monotonic() - now > TIMEOUT:  # the next attempt begins with the next one
                self._first = number + 1
                break
        raise self._failed(error) from error

    def _places(self) -> list[tuple[int, tuple[str, int] | None]]:
        """Where to try, each with what `_first` is when it answers: the node that was named is none of the hosts."""
        hosts: list[tuple[str, int] | None] = [*self._place.hosts] or [None]
        numbers = range(self._first, self._first + len(hosts))
        named = [] if self._moved is None else [(self._first, self._moved)]
        return [*named, *((number, hosts[number % len(hosts)]) for number in numbers)]

    def _open(self, address: tuple[str, int] | None, options: dict[str, Any]) -> Any:
        if address is not None:
            options = {**options, "host": address[0], "port": address[1]}
        connection = _make(options)
        try:
            connection.connect()
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def _master(self, sentinel: tuple[str, int] | None) -> tuple[str, int]:
        """Which server a sentinel names; it must say of itself that it is one that takes writes."""
        address = self._named(sentinel)
        server = self._open(address, self._place.options)
        try:
            server.send_command("ROLE")
            role = server.read_response()[0]
        finally:
            server.disconnect()
        if role != b"master":
            raise LogUnavailable(f"a failover is going on: {address[0]}:{address[1]} is no master yet")
        return address

    def _named(self, sentinel: tuple[str, int] | None) -> tuple[str, int]:
        asked = self._open(sentinel, self._place.sentinel_options)
        try:
            asked.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._place.service)
            found = asked.read_response()
        finally:
            asked.disconnect()
        if not found:
            raise LogUnavailable(f"the sentinel does not know {self._place.service!r}")
        return found[0].decode(), int(found[1])

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()


class Seldom(Link):
    """One whose user may be silent for long, and has nothing that another server must be told again."""

    def ask(self, *commands: Command, stay: bool = False) -> list[Any]:
        if not self.usable():
            self.connect()
        return super().ask(*commands, stay=stay)


def refused(reply: Any) -> bool:
    """Whether an append found its stream gone, or its id taken.

    :raises LogUnavailable: something else is wrong, such as no memory.
    """
    if isinstance(reply, Exception) and "equal or smaller" not in str(reply):
        raise LogUnavailable(f"Redis: {reply}") from reply
    return reply is None or isinstance(reply, Exception)


def sound(replies: Sequence[Any]) -> list[Any]:
    """:raises LogUnavailable: one of them is an error."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise LogUnavailable(f"Redis: {reply}") from reply
    return list(replies)
