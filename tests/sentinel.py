"""A Redis with a replica, and a sentinel that puts the one in the other's place: the log that fails over.

From outside the three are one server, wherever it is at the moment. It is slow to begin and to become whole again, so
no test has it that does not ask for it, and a chaos run only as `--backend postgres+sentinel`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import redis

from tests import backends
from tests.backends import Backend, RedisServer, Servers
from tests.server.client import deadline

NAME = "postgres+sentinel"
SERVICE = "chat"
PATIENCE = 1500
"""Milliseconds after which a master that says nothing is taken for dead, while it may be."""
MOST_BEHIND = 3.0
"""Seconds; a replica that has heard nothing of its master for ten times that patience is not put in its place."""
FOR_EVER = 3_600_000
"""And at all other times: on a busy machine a server says nothing for a while, and a failover that no test has asked
for would lose what no test excuses.
"""
FAST = {"info-period": 300, "publish-period": 200, "tilt-period": 1000, "ping-period": 600}
"""Milliseconds, of what a sentinel does every 10, 2, 30 and 1 s: an old master that is back is told so, a replica is
seen to be in step, a sentinel that was held up trusts its clock again, a new master is connected to. The last is below
its patience, or it would take the new one for dead at once, and above the 200 from which on it finds what a replica has
told it, each second then, too old to choose it. Redis 6.2 cannot be told.
"""


class Node(RedisServer):
    """A Redis with options of its own.

    :param sentinel: lines of a sentinel's configuration: it is one.
    """

    def __init__(self, *options: str, sentinel: str = "") -> None:
        super().__init__()
        self._options = options
        self._sentinel = self.folder / "sentinel.conf"
        if sentinel:
            self._sentinel.write_text(f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\n{sentinel}")

    def _command(self) -> list[str]:
        if self._sentinel.exists():
            return [self._redis, str(self._sentinel), "--sentinel"]
        return [*super()._command(), *self._options]

    def ask(self, *words: str) -> Any:
        """As `command`, for the whole of an answer.

        :raises redis.RedisError:
        """
        with redis.Redis(port=self.port, socket_timeout=10, decode_responses=True) as client:
            return client.execute_command(*words)


class Pair(RedisServer):
    """Whichever is the master is what is asked, killed and frozen; `start` makes all three whole."""

    def __init__(self) -> None:  # it has no process of its own
        options = ("--repl-diskless-sync-delay", "0")
        first = Node(*options)
        self.nodes = [first, Node(*options, "--replicaof", f"127.0.0.1 {first.port}")]
        self._master = first
        """The one that was last."""
        settings = {"down-after-milliseconds": FOR_EVER, "failover-timeout": 2000}
        lines = [f"sentinel {name} {SERVICE} {value}\n" for name, value in settings.items()]
        self.sentinel = Node(sentinel=f"sentinel monitor {SERVICE} 127.0.0.1 {first.port} 1\n{''.join(lines)}")

    def close(self) -> None:
        for one in (self.sentinel, *self.nodes):
            one.close()

    def log(self) -> str:
        return "".join(one.log() for one in (self.sentinel, *self.nodes))

    def start(self) -> None:
        """Return when the sentinel could put the replica in the master's place."""
        for node in self.nodes:
            node.start()
        if not self.sentinel.running:
            self.sentinel.start()
            self._pace(**FAST)
        for _ in deadline(60, "the replica to be in step"):
            with contextlib.suppress(redis.RedisError):
                if self._whole():
                    return

    def _pace(self, **milliseconds: int) -> None:
        for name, value in milliseconds.items():
            with contextlib.suppress(redis.ResponseError):  # Redis 6.2
                self.sentinel.ask("SENTINEL", "DEBUG", name, str(value))

    def _whole(self) -> bool:
        (replica,) = [node for node in self.nodes if node is not self.master]
        known: Any
        with redis.Redis(port=self.sentinel.port, socket_timeout=10, decode_responses=True) as asked:
            known = asked.sentinel_master(SERVICE), *asked.sentinel_slaves(SERVICE)
        return (
            [one["flags"] for one in known] == ["master", "slave"]
            and known[1]["master-link-status"] == "ok"
            and replica.ask("ROLE")[:4] == ["slave", "127.0.0.1", self.master.port, "connected"]
            and self.master.ask("ROLE")[0] == "master"
        )

    @property
    def master(self) -> Node:
        """Whom the sentinel names."""
        if self.sentinel.running:
            _, port = self.sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
            (self._master,) = [node for node in self.nodes if node.port == int(port)]
        return self._master

    @property
    def running(self) -> bool:
        return all(one.running for one in (self.sentinel, *self.nodes))

    def command(self, *words: str) -> bytes:
        return self.master.command(*words)

    def kill(self) -> None:
        self.master.kill()

    def freeze(self) -> None:
        self.master.freeze()

    def thaw(self) -> None:
        for node in self.nodes:
            node.thaw()

    @property
    def url(self) -> str:
        return f"redis+sentinel://{self.host}:{self.sentinel.port}/{SERVICE}/0"

    @property
    def direct(self) -> str:
        return self.master.url

    # -- a failover ------------------------------------------------------------------------------------------------

    def patience(self, milliseconds: int) -> None:
        """How long the master may say nothing."""
        self.sentinel.ask("SENTINEL", "SET", SERVICE, "down-after-milliseconds", str(milliseconds))

    def cut(self) -> None:
        """Nothing that is written from now on comes to the replica, until it is the master.

        After a kill its kernel would still have what had been sent; so it is not let in any more.
        """
        (replica,) = [node for node in self.nodes if node is not self.master]
        replica.ask("CONFIG", "SET", "masteruser", "nobody", "masterauth", "wrong")
        replica.ask("CLIENT", "KILL", "TYPE", "master")

    def forget(self) -> None:
        """The sentinel does not come to tell an old master that it is none; by itself it takes about ten seconds."""
        self._pace(**{"publish-period": FOR_EVER})

    def promote(self) -> None:
        """Have the sentinel see that the master is dead; return when the other one is it."""
        dead = self.master
        self.patience(PATIENCE)
        for _ in deadline(60, "the replica to be the master"):
            with contextlib.suppress(redis.RedisError):
                if self.master is not dead and self.master.ask("ROLE")[0] == "master":
                    break
        self.patience(FOR_EVER)
        self.master.ask("CONFIG", "SET", "masteruser", "", "masterauth", "")

    def fail_over(self) -> None:
        """`kill -9` of the master; return when the other one is it. `start` brings the old one back, as a replica."""
        self.kill()
        self.promote()


@contextlib.contextmanager
def opened(servers: Servers) -> Iterator[Backend]:
    """As `backends.opened`: PostgreSQL, and a log that fails over, of its own."""
    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(backends.opened("postgres", servers))
        pair = Pair()
        stack.callback(pair.close)
        pair.start()
        yield backend._replace(name=NAME, redis=pair, prefix="test:")
