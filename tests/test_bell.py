"""The bell between the processes of a host, and the journal that rings it."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flaskchat.ear import AGAIN, Ear
from flaskchat.log.base import Append, Orphan, Stop
from flaskchat.log.bell import Bell
from flaskchat.poller import Poller
from flaskchat.store.base import Lease
from tests.rooms import Rooms, ending_of, worker_rooms

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux'")


@pytest.fixture
def bells(tmp_path: Path) -> Iterator[tuple[Bell, Bell]]:
    bells = Bell(str(tmp_path / "bell")), Bell(str(tmp_path / "bell"))
    yield bells
    for bell in bells:
        bell.close()


def told(fd: int, timeout: float = 0) -> bool:
    return bool(select.select([fd], [], [], timeout)[0])


def test_whoever_listens_is_told_once_of_all_that_was_rung(bells: tuple[Bell, Bell]) -> None:
    mine, other = bells
    fd = mine.listen(True)
    assert not told(fd)
    for _ in range(3):
        other.ring()
    assert told(fd, 10)
    mine.heard()
    assert not told(fd)
    mine.heard()
    other.ring()
    assert told(fd, 10)


def test_nobody_is_told_who_does_not_listen(bells: tuple[Bell, Bell]) -> None:
    mine, other = bells
    other.ring()
    fd = mine.listen(True)
    assert not told(fd)
    mine.listen(False)
    other.ring()
    assert not told(fd)
    mine.listen(True)
    assert not told(fd)
    other.ring()
    assert told(fd, 10)


def test_who_listens_anew_rings_where_the_others_listen(bells: tuple[Bell, Bell], tmp_path: Path) -> None:
    old, other = bells
    (tmp_path / "bell").unlink()
    new = Bell(str(tmp_path / "bell"))
    fd = new.listen(True)
    other.listen(True)
    other.ring()
    assert told(fd, 10)
    new.close()
    assert not told(old.listen(True))


def test_nothing_is_written_by_a_bell_that_was_closed(tmp_path: Path) -> None:
    bell = Bell(str(tmp_path / "bell"))
    number = bell._file
    bell.close()
    with (tmp_path / "another").open("w+b", buffering=0) as file:
        assert file.fileno() == number
        bell.ring()
        assert file.read() == b""


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Bell(str(tmp_path / "none" / "bell"))


def test_a_journal_tells_of_what_others_append_and_not_of_its_own(make: Callable[[], Rooms]) -> None:
    mine, other = make(), make()
    own, theirs = mine.begin(), other.begin()
    fd = mine.journal.listen(True)
    assert fd is not None
    mine.journal.follow()

    mine.journal.turn(mine.holding.lease, [Append(own.run_id, 1, [b"frame"])], [])
    assert not told(fd)
    other.begin()
    assert not told(fd), "what the store writes is no news of the log"
    other.append(theirs, "word")
    assert told(fd, 10)
    mine.journal.heard()
    assert len(mine.journal.turn(None, [], [])) == 1

    other.journal.announce(Stop(own.run_id, 0.0))
    assert told(fd, 10)
    mine.journal.heard()

    mine.journal._disconnect()  # as after a fault
    other.append(theirs, "more")
    assert told(fd, 10)


def test_workers_that_name_the_database_by_a_link_hear_each_other(tmp_path: Path) -> None:
    with worker_rooms(tmp_path / "chat.sqlite3") as make:
        mine = make()
        (tmp_path / "link").mkdir()
        (tmp_path / "link" / "other.sqlite3").symlink_to(tmp_path / "chat.sqlite3")
        with worker_rooms(tmp_path / "link" / "other.sqlite3") as make_other:
            other = make_other()
            fd = mine.journal.listen(True)
            assert fd is not None
            other.append(other.begin(), "word")
            assert told(fd, 10)


def test_the_end_of_a_dead_worker_s_run_is_told_of(make: Callable[[], Rooms]) -> None:
    mine, dead = make(), make()
    theirs = dead.begin()
    dead.append(theirs, "word")
    fd = mine.journal.listen(True)
    assert fd is not None
    lease: Lease = dead.holding.lease
    ending = ending_of(theirs, "word", [b"word", b"end"])
    orphan = Orphan(lease, ending, Append(theirs.run_id, 3, [b"end"], True))
    assert make().journal.end([orphan]) == [theirs.run_id]
    assert told(fd, 10)


def test_who_cannot_listen_can_ring(make: Callable[[], Rooms], monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = make(), make()
    fd = mine.journal.listen(True)
    assert fd is not None

    def refused(self: Bell) -> None:
        raise OSError("too many")

    monkeypatch.setattr(Bell, "_open", refused)
    assert other.journal.listen(True) is None
    other.append(other.begin(), "word")
    assert told(fd, 10)
    assert other.journal.listen(False) is None


def test_who_cannot_ring_appends_all_the_same_and_says_so(
    make: Callable[[], Rooms], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "chat.sqlite3-bell").mkdir()
    rooms = make()
    assert "cannot tell others" in caplog.text
    assert rooms.journal.listen(True) is None
    rooms.append(rooms.begin(), "word")


def test_who_could_not_listen_for_want_of_descriptors_asks_again(
    make: Callable[[], Rooms], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def used_up(self: Bell) -> None:
        raise OSError(24, "Too many open files")

    journal, now = make().journal, 1000.0
    monkeypatch.setattr("flaskchat.ear.time.monotonic", lambda: now)
    poller = Poller()
    ear = Ear(lambda: journal, poller)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Bell, "_open", used_up)
            for _ in range(3):
                ear.listen(True)
                assert not ear.hears
                now += AGAIN
        ear.listen(True)
        assert ear.hears
        ear.listen(False)
        assert not ear.hears
    finally:
        poller.close()
    told = [record.getMessage() for record in caplog.records if "told of new events" in record.getMessage()]
    assert len(told) == 2, "once when it begins, once when it is over"
