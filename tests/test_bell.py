"""The bell between the processes of a host, and the journal that rings it."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flaskchat.log.base import Append, Stop
from flaskchat.log.bell import Bell
from flaskchat.store.base import Lease
from tests.rooms import Rooms, ending_of

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


def test_the_end_of_a_dead_worker_s_run_is_told_of(make: Callable[[], Rooms]) -> None:
    mine, dead = make(), make()
    theirs = dead.begin()
    dead.append(theirs, "word")
    fd = mine.journal.listen(True)
    assert fd is not None
    lease: Lease = dead.holding.lease
    ending = ending_of(theirs, "word", [b"word", b"end"])
    assert make().journal.end(lease, ending, Append(theirs.run_id, 3, [b"end"], True))
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
