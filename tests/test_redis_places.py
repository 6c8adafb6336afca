"""Where the log's Redis is: addresses, a failover by a sentinel, a cluster, a socket, what is refused and warned of."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from flaskchat.config import Settings
from flaskchat.errors import ConfigurationError
from flaskchat.log import link
from flaskchat.log.base import LogUnavailable
from flaskchat.log.link import Link, Seldom, pack, where
from flaskchat.log.server import Server, complaints
from tests.backends import RedisServer
from tests.programs import free_port
from tests.redis_rooms import events
from tests.rooms import ROOT, Rooms, worker_rooms
from tests.sentinel import Node, Pair
from tests.server.client import deadline


@pytest.fixture
def node() -> Iterator[Callable[..., Node]]:
    with ExitStack() as stack:

        def start(*options: str) -> Node:
            found = Node(*options)
            stack.callback(found.close)
            found.start()
            return found

        yield start


def rooms_of(url: str, folder: Path, stack: ExitStack) -> Callable[[], Rooms]:
    return stack.enter_context(worker_rooms(folder / "chat.sqlite3", Settings(redis_url=url, redis_prefix="test")))


def again(call: Callable[[], Any]) -> Any:
    """As the pump does it, until the log can be used."""
    for _ in deadline(60, "Redis to be found again"):
        try:
            return call()
        except LogUnavailable:
            pass
    raise AssertionError


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    try:
        made.start()
        yield made
    finally:
        made.close()


def test_a_failover_by_a_sentinel_loses_no_event_of_a_live_run(pair: Pair, tmp_path: Path) -> None:
    with ExitStack() as stack:
        rooms = rooms_of(pair.url, tmp_path, stack)()
        begun = rooms.begin()
        again(lambda: rooms.append(begun, "a", "b"))
        pair.cut()
        rooms.append(begun, "c")
        pair.fail_over()
        again(lambda: rooms.append(begun, "d"))
        assert events(rooms, begun) == rooms.live[begun.run_id]
        assert pair.command("EXISTS", f"{{test}}:run:{begun.run_id}") == b":1"


def stand_still(pair: Pair) -> Node:
    """The master does, and another is put in its place; then it goes on, and nobody tells it."""
    pair.forget()
    old = pair.master
    old.freeze()
    pair.promote()
    old.thaw()
    assert old.ask("ROLE")[0] == pair.master.ask("ROLE")[0] == "master"
    return old


def test_a_silent_connection_does_not_stay_with_a_master_that_is_none_any_more(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    pump, seldom = Link(where(pair.url)), Seldom(where(pair.url))
    for one in (pump, seldom):
        assert one.ask([b"SET", b"a", b"b"], [b"WAIT", b"1", b"20000"]) == [b"OK", 1]  # the replica has it too
        assert one.usable()
    old = stand_still(pair)
    monkeypatch.setattr(link, "SILENT", 0.0)
    assert not pump.usable(), "what it has in memory is compared with what the new one has, before it writes"
    assert (pump.ask([b"GET", b"a"]), pump.generation) == ([b"b"], 2)
    assert seldom.ask([b"SET", b"a", b"c"]) == [b"OK"]
    assert (old.ask("GET", "a"), pair.master.ask("GET", "a")) == ("b", "c")
    for one in (pump, seldom):
        one.close()


@pytest.mark.parametrize("replica", [True, False], ids=["with a replica", "without"])
def test_without_its_sentinels_a_master_is_asked_on(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, replica: bool
) -> None:
    """They are needed for a failover, and serving must not stop with them."""
    one = Seldom(where(pair.url))
    assert one.ask([b"PING"]) == [b"PONG"]
    if not replica:
        next(node for node in pair.nodes if node is not pair.master).kill()
        for _ in deadline(30, "the master to notice"):
            if pair.master.ask("ROLE")[2] == []:
                break
    pair.sentinel.kill()
    monkeypatch.setattr(link, "SILENT", 0.0)
    for _ in range(3):
        assert one.ask([b"PING"]) == [b"PONG"]
    assert one.generation == 1
    one.close()


def test_a_silent_connection_stays_where_no_sentinel_says_otherwise(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "SILENT", 0.0)
    one = Seldom(where(redis_server.url))
    for _ in range(3):
        assert one.ask([b"PING"]) == [b"PONG"]
    assert one.generation == 1
    one.close()


def test_a_master_that_has_no_replica_any_more_is_left_where_it_must_have_one(pair: Pair) -> None:
    """`min-replicas-to-write` has it refuse at once what it could only lose."""
    for node in pair.nodes:
        node.ask("CONFIG", "SET", "min-replicas-to-write", "1")
    one = Link(where(pair.url))
    assert one.ask([b"SET", b"a", b"b"]) == [b"OK"]
    old = stand_still(pair)
    with pytest.raises(LogUnavailable, match="NOREPLICAS"):
        one.ask([b"SET", b"a", b"c"])
    pair.master.ask("CONFIG", "SET", "min-replicas-to-write", "0")
    assert again(lambda: one.ask([b"SET", b"a", b"d"])) == [b"OK"]
    assert (old.ask("GET", "a"), pair.master.ask("GET", "a")) == ("b", "d")
    one.close()


def cluster(node: Callable[..., Node]) -> list[Node]:
    """Three masters; the second one has the keys of `rooms_of`."""
    buses = [free_port() for _ in range(3)]
    some = ("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")
    nodes = [node(*some, "--cluster-port", str(bus)) for bus in buses]
    bounds = [0, 5461, 10923, 16384]
    for one, first, after in zip(nodes, bounds, bounds[1:], strict=False):
        assert one.command("CLUSTER", "ADDSLOTS", *map(str, range(first, after))) == b"+OK"
        one.command("CLUSTER", "MEET", "127.0.0.1", str(nodes[0].port), str(buses[0]))
    for _ in deadline(60, "the cluster to stand"):
        if [one.command("EXISTS", "{test}:x").partition(b" ")[0] for one in nodes] == [b"-MOVED", b":0", b"-MOVED"]:
            break
    return nodes


def test_in_a_cluster_the_node_that_has_the_keys_is_found_from_any_other(
    node: Callable[..., Node], tmp_path: Path
) -> None:
    for number, one in enumerate(cluster(node)):
        with ExitStack() as stack:
            (tmp_path / str(number)).mkdir()
            make = rooms_of(f"redis+cluster://127.0.0.1:{one.port}", tmp_path / str(number), stack)
            rooms, other = make(), make()
            begun = rooms.begin()
            again(lambda r=rooms, b=begun: r.append(b, "a"))  # type: ignore[misc]
            rooms.append(begun, "b")
            assert events(other, begun) == rooms.live[begun.run_id]
            other.journal.follow()
            assert other.journal.past([begun.run_id]) == {begun.run_id: rooms.live[begun.run_id]}


def test_in_a_cluster_nothing_is_appended_behind_what_a_new_master_has_lost(
    node: Callable[..., Node], tmp_path: Path
) -> None:
    """The old one is alive and says where to go. Its replica, which has taken over, lacks the last that it took."""
    first, old, third = cluster(node)
    with ExitStack() as stack:
        rooms = rooms_of(f"redis+cluster://127.0.0.1:{old.port}", tmp_path, stack)()
        begun = rooms.begin()
        again(lambda: rooms.append(begun, "a"))
        key = f"{{test}}:run:{begun.run_id}"
        with redis.Redis(port=old.port) as had, redis.Redis(port=first.port) as has:
            lagging = had.dump(key)
            rooms.append(begun, "b")
            slot = int(old.ask("CLUSTER", "KEYSLOT", "{test}"))
            for name in had.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                had.delete(name)
            new = first.ask("CLUSTER", "MYID")
            for one in (first, old, third):
                one.ask("CLUSTER", "SETSLOT", str(slot), "NODE", new)
            has.restore(key, 0, lagging)
        with pytest.raises(LogUnavailable, match="another node"):
            rooms.append(begun, "c")
        again(lambda: rooms.append(begun, "c"))
        assert events(rooms, begun) == rooms.live[begun.run_id]


def test_in_a_cluster_a_node_that_was_away_is_found_again_by_what_the_others_say(
    node: Callable[..., Node], tmp_path: Path
) -> None:
    first, master, third = cluster(node)
    with ExitStack() as stack:
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in (first, third, master))
        rooms = rooms_of(f"redis+cluster://{hosts}", tmp_path, stack)()
        begun = rooms.begin()
        again(lambda: rooms.append(begun, "a"))
        master.kill()
        with pytest.raises(LogUnavailable):
            rooms.append(begun, "b")
        for _ in deadline(30, "another node to be asked"):
            with contextlib.suppress(LogUnavailable):
                (reply,) = rooms.journal._link.ask([b"PING"])
                assert reply == b"PONG"
                break
        master.start()
        again(lambda: rooms.append(begun, "b"))
        first.kill()
        rooms.journal._link.close()
        again(lambda: rooms.append(begun, "c"))
        assert events(rooms, begun) == rooms.live[begun.run_id]


def test_a_unix_socket_is_an_address_too(node: Callable[..., Node], tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    node("--unixsocket", str(path))
    one = Link(where(f"unix://{path}?db=1"))
    assert one.ask([b"PING"]) == [b"PONG"]
    one.close()


def test_of_several_hosts_the_next_is_tried(redis_server: RedisServer) -> None:
    one = Link(where(f"redis://127.0.0.1:1,127.0.0.1:{redis_server.port}/3"))
    assert one.ask([b"PING"]) == [b"PONG"]
    assert b"db=3" in one.ask([b"CLIENT", b"INFO"])[0]
    one.close()


@pytest.mark.parametrize(
    ("url", "hosts", "service", "more"),
    [
        ("redis://", [("localhost", 6379)], "", {}),
        ("redis://:pass%40word@h:1/2", [("h", 1)], "", {"password": "pass@word", "db": 2}),
        ("rediss://me:secret@[::1]:7/0", [("::1", 7)], "", {"username": "me", "password": "secret"}),
        ("redis://a,b:2,c", [("a", 6379), ("b", 2), ("c", 6379)], "", {}),
        ("valkey://h?db=4", [("h", 6379)], "", {"db": 4}),
        ("redis+sentinel://:s@a:1,b/main/5", [("a", 1), ("b", 26379)], "main", {"password": "s", "db": 5}),
    ],
)
def test_an_address_is_read(
    url: str, hosts: list[tuple[str, int]], service: str, more: dict[str, object]
) -> None:
    found = where(url)
    assert (found.hosts, found.service) == (hosts, service)
    assert {key: found.options.get(key) for key in more} == more
    assert found.options["socket_timeout"] == link.TIMEOUT
    assert ("connection_class" in found.options) == url.startswith("rediss")


def test_sentinels_may_have_a_password_of_their_own() -> None:
    found = where("redis+sentinel://:one@a/main?sentinel_password=two")
    assert (found.options["password"], found.sentinel_options["password"]) == ("one", "two")


@pytest.mark.parametrize(
    "url", ["127.0.0.1:6379", "http://h", "redis://h:port", "redis://h/name", "redis+sentinel://h:1", "redis://h:99999"]
)
def test_an_address_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="FLASKCHAT_REDIS_URL") as refused:
        where(url.replace("://", "://:hunter2@"))
    assert "hunter2" not in str(refused.value)


def test_without_redis_py_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.connection", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'flaskchat\[redis\]'"):
        where("redis://h")


def test_redis_py_is_loaded_only_where_it_is_wanted() -> None:
    script = (
        "import flask, sys, flaskchat; flaskchat.FlaskChat(flask.Flask('x')); sys.exit('redis' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_a_failed_connection_is_not_tried_again_at_once() -> None:
    one = Link(where("redis://127.0.0.1:1"))
    for _ in range(1000):  # within the pause
        with pytest.raises(LogUnavailable, match=r"127\.0\.0\.1:1"):
            one.ask([b"PING"])
    assert one.generation == 0


def test_a_command_is_packed_as_the_protocol_wants_it() -> None:
    assert pack([b"SET", b"k", b"\r\n\x00"]) == b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\n\r\n\x00\r\n"


def test_what_would_lose_replies_is_said_once_for_each_server(
    node: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    bad = node("--appendonly", "no", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    one, server = Link(where(bad.url)), Server()
    server.look_at(one)
    server.look_at(one)
    assert caplog.text.count("`appendonly` is no") == 1
    assert caplog.text.count("`maxmemory-policy` is allkeys-lru") == 1
    bad.restart()
    one.close()
    again(lambda: server.look_at(one))
    assert caplog.text.count("`appendonly` is no") == 2
    one.close()


def test_a_user_who_may_not_ask_is_served_and_told_so(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    redis_server.command("ACL", "SETUSER", "weak", "on", ">pw", "~*", "+@all", "-config")
    one = Link(where(f"redis://weak:pw@127.0.0.1:{redis_server.port}"))
    Server().look_at(one)
    assert "may not ask for its settings" in caplog.text
    assert one.ask([b"PING"]) == [b"PONG"]
    one.close()


def test_a_wrong_password_is_a_log_that_cannot_be_used(redis_server: RedisServer) -> None:
    one = Link(where(f"redis://nobody:wrong@127.0.0.1:{redis_server.port}"))
    with pytest.raises(LogUnavailable, match=r"(?i)invalid username"):
        one.ask([b"PING"])


def test_a_redis_that_keeps_everything_is_not_complained_of() -> None:
    assert complaints([[b"appendonly", b"yes"], [b"maxmemory", b"0", b"maxmemory-policy", b"allkeys-lru"]]) == []


def test_an_old_redis_is_refused_with_its_version() -> None:
    class Old:
        def ask(self, *commands: object) -> list[Any]:
            return [b"# Server\r\nredis_version:6.0.16\r\nrun_id:a\r\n", [], []]

        def close(self) -> None:
            pass

    with pytest.raises(LogUnavailable, match=r"6\.0\.16"):
        Server().look_at(Old())  # type: ignore[arg-type]


def test_a_redis_that_is_too_old_is_refused_each_time(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flaskchat.log.server.OLDEST", (99, 0))
    with ExitStack() as stack:
        rooms = rooms_of(redis_server.url, tmp_path, stack)()
        begun = rooms.begin()
        for _ in range(2):
            with pytest.raises(LogUnavailable, match="is needed"):
                rooms.append(begun, "a")
