"""Streams counted over several machines on one PostgreSQL: never more than there may be, and none left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from flaskchat.nodes import GONE_AFTER, Nodes, SharedPlace
from flaskchat.places import Places
from flaskchat.store import migrate
from flaskchat.store.engine import Database
from flaskchat.store.kinds import open_database
from flaskchat.store.schema import holders, places
from tests.backends import Backend
from tests.rooms import where
from tests.server.client import deadline

pytestmark = pytest.mark.backends("postgres")


class Node:
    """A process on a machine of its own. Its task runs only where a test starts it."""

    def __init__(self, url: str, folder: Path, number: int) -> None:
        self.database: Database = open_database(url, timeout=2.0)
        migrate.upgrade(self.database)
        self.here = Places(folder / f"machine-{number}")
        self.nodes = Nodes(self.database, self.here, lambda host, holder: False)

    def take(self, most: int, key: str = "ada") -> SharedPlace | None:
        return self.nodes.take(key, most)

    def taken(self, most: int) -> SharedPlace:
        found = self.take(most)
        assert found is not None
        return found

    def written(self) -> None:
        self.nodes._write()

    def close(self) -> None:
        self.here.close()
        self.database.close()


@pytest.fixture
def start(backend: Backend, tmp_path: Path) -> Iterator[Callable[[], Node]]:
    made: list[Node] = []

    def begin() -> Node:
        made.append(Node(where(backend, tmp_path), tmp_path, len(made)))
        return made[-1]

    yield begin
    for node in made:
        node.close()


def test_two_machines_together_take_as_many_as_there_are(start: Callable[[], Node]) -> None:
    one, other = start(), start()
    found = [(one, other)[number % 2].take(10) for number in range(14)]
    assert [place is not None for place in found] == [True] * 10 + [False] * 4
    assert other.take(10, "bob") is not None, "another key has places of its own"


def test_many_at_once_at_two_machines_never_take_one_too_many(start: Callable[[], Node]) -> None:
    machines = [start(), start()]
    for round_ in range(3):
        found: list[SharedPlace | None] = []

        def take(node: Node, found: list[SharedPlace | None], key: str) -> None:
            found.append(node.take(7, key))

        threads = [threading.Thread(target=take, args=(node, found, f"ada {round_}")) for node in machines * 10]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(place is not None for place in found) == 7


def test_a_place_that_was_given_back_is_had_at_another_machine(start: Callable[[], Node]) -> None:
    one, other = start(), start()
    first, second = one.taken(2), other.taken(2)
    assert other.take(2) is None
    first.release()
    first.release()
    one.written()
    third = other.taken(2)
    assert one.take(2) is None
    second.release()
    third.release()
    other.written()
    assert other.database.read(lambda c: c.execute(sa.select(places)).all()) == []


def test_what_is_given_back_is_written_by_a_task_and_nobody_waits_for_it(start: Callable[[], Node]) -> None:
    one, other = start(), start()
    one.nodes.start()
    one.taken(1).release()
    for _ in deadline(30, "the place to be free at the other machine"):
        if other.take(1) is not None:
            break
    one.nodes.close()
    assert one.nodes.holder not in other.database.read(lambda c: list(c.execute(sa.select(holders.c.id)).scalars()))


def test_a_machine_that_stands_still_loses_its_places_and_takes_them_again_when_it_goes_on(
    start: Callable[[], Node],
) -> None:
    one, other = start(), start()
    one.taken(3)
    one.taken(3)
    other.taken(3)
    assert other.take(3) is None
    for _ in range(1 + GONE_AFTER):
        other.nodes.round()
    extra = other.taken(3)
    one.nodes.round()
    one.written()
    assert other.take(3) is None, "four are held, by machines that both live"
    extra.release()
    other.written()
    assert other.take(3) is None
    assert one.take(3) is None


def test_a_machine_that_holds_nothing_itself_frees_what_another_left_behind(start: Callable[[], Node]) -> None:
    one, other = start(), start()
    one.taken(1)
    for _ in range(1 + GONE_AFTER):
        assert other.take(1) is None
        other.nodes.round()
    assert other.take(1) is not None


def test_machines_that_beat_keep_what_they_hold(start: Callable[[], Node]) -> None:
    one, other = start(), start()
    one.taken(2)
    other.taken(2)
    for _ in range(3 * GONE_AFTER):
        one.nodes.round()
        other.nodes.round()
    assert one.take(2) is None
    assert other.take(2) is None


def test_a_process_that_is_seen_to_be_gone_is_not_counted_for_long(start: Callable[[], Node]) -> None:
    one, other = start(), start()
    one.taken(1)
    other.taken(2)
    other.nodes._gone = lambda host, holder: host == one.here.host and holder == one.nodes.holder
    other.nodes.round()
    assert other.take(2) is not None


def test_without_the_database_each_machine_counts_and_tells_later(start: Callable[[], Node], backend: Backend) -> None:
    one, other = start(), start()
    other.taken(2)
    with one.database.engine.connect() as c:
        c.execute(sa.text("LOCK TABLE flaskchat_holders IN ACCESS EXCLUSIVE MODE"))
        one.database.timeout = 0.1
        assert one.take(2) is not None
        assert one.take(2) is not None, "who cannot ask lets in what one machine may have"
        assert one.take(2) is None
        c.rollback()
    one.database.timeout = 2.0
    one.written()
    assert other.take(3) is None, "all three are known now"


def test_a_request_that_is_given_up_while_it_waits_holds_no_place(start: Callable[[], Node]) -> None:
    """Its greenlet is killed; the transaction is seen through (tasks.Offloader), and nobody has what it took."""
    one, other = start(), start()
    write = one.database.write

    def killed(function: Callable[[sa.Connection], object]) -> None:
        write(function)
        raise SystemExit

    one.database.write = killed  # type: ignore[method-assign,assignment]
    with pytest.raises(SystemExit):
        one.take(1)
    one.database.write = write  # type: ignore[method-assign]
    one.written()
    other.taken(1).release()
    other.written()
    for _ in deadline(30, "the machine's own place"):
        if one.take(1) is not None:
            return


def test_an_idle_process_leaves_nothing_behind(start: Callable[[], Node]) -> None:
    one = start()
    one.taken(1).release()
    one.written()
    one.nodes.round()
    assert one.database.read(lambda c: c.execute(sa.select(holders)).all()) == []
    one.nodes.round()
    assert one.take(1) is not None
