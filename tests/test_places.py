"""Places that several workers share: never more than there are, and none that a dead worker leaves behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flaskchat import places
from flaskchat.config import Settings
from flaskchat.limits import Limits, Visitor
from flaskchat.places import FILES, Place, Places
from tests.conftest import ROOT
from tests.server.client import deadline


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[[], Places]]:
    opened: list[Places] = []

    def start() -> Places:
        opened.append(Places(tmp_path / "places"))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def take(worker: Places, key: str, most: int) -> Place:
    found = worker.take(key, most)
    assert found is not None
    return found


def taken_again(worker: Places, key: str, most: int) -> Place:
    """A place that is free now; that there was none is remembered for a moment."""
    for _ in deadline(30, "a free place"):
        if (place := worker.take(key, most)) is not None:
            return place
    raise AssertionError


def test_two_workers_together_take_as_many_as_there_are(worker: Callable[[], Places]) -> None:
    one, other = worker(), worker()
    taken = [(one, other)[number % 2].take("ada", 10) for number in range(20)]
    assert [place is not None for place in taken] == [True] * 10 + [False] * 10
    assert one.take("bob", 10) is not None, "another key has places of its own"


def test_a_place_that_was_given_back_is_had_by_the_next(worker: Callable[[], Places]) -> None:
    one, other = worker(), worker()
    first, second = take(one, "ada", 2), take(other, "ada", 2)
    assert other.take("ada", 2) is None
    first.release()
    first.release()
    taken_again(other, "ada", 2)
    assert one.take("ada", 2) is None
    second.release()
    taken_again(one, "ada", 2)


def test_a_key_whose_places_lie_scattered_is_filled_to_the_last(worker: Callable[[], Places]) -> None:
    workers = [worker() for _ in range(3)]
    held = [take(workers[number % 3], "ada", 100) for number in range(100)]
    for place in held[::7]:
        place.release()
    free = len(held[::7])
    found = 0
    for _ in deadline(30, "all places"):
        found += workers[found % 3].take("ada", 100) is not None
        if found == free:
            break
    assert [one.take("ada", 100) for one in workers] == [None] * 3


def test_a_worker_that_ends_leaves_no_place_behind(worker: Callable[[], Places]) -> None:
    one, other = worker(), worker()
    place = take(one, "ada", 1)
    assert other.take("ada", 1) is None
    one.close()
    taken_again(other, "ada", 1)
    place.release()
    assert worker().take("ada", 1) is None, "what it gives back after its end is not another's"


HOLD = """
import sys
from pathlib import Path
from flaskchat.places import Places
sys.platform = sys.argv[2]
place = Places(Path(sys.argv[1])).take("ada", 3)
print(place is not None, flush=True)
sys.stdin.read()
"""


def test_the_places_of_a_killed_process_are_free_at_once(worker: Callable[[], Places], tmp_path: Path) -> None:
    here = worker()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "places"), sys.platform]
    others = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    try:
        for other in others:
            assert other.stdout is not None
            assert other.stdout.readline() == "True\n"
        assert here.take("ada", 3) is None
        others[1].kill()
        others[1].wait()
        taken_again(here, "ada", 3)
        assert here.take("ada", 3) is None
    finally:
        for other in others:
            other.kill()
            other.communicate()


def test_closing_one_side_in_a_process_leaves_the_other_its_places(worker: Callable[[], Places]) -> None:
    """Locks of a process would all be lost: two chats in one process share a database, a test's and its host's."""
    one, other, third = worker(), worker(), worker()
    take(one, "ada", 1)
    other.close()
    assert third.take("ada", 1) is None


def test_a_full_key_is_not_searched_again_and_again(
    worker: Callable[[], Places], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = worker(), worker()
    for _ in range(50):
        take(one, "ada", 50)
    asked = []
    lock = Places._lock_byte
    monkeypatch.setattr(Places, "_lock_byte", lambda *args: asked.append(args) or lock(*args))
    monkeypatch.setattr(places, "FULL", 60.0)
    assert [other.take("ada", 50) for _ in range(1000)] == [None] * 1000
    assert 1 <= len(asked) <= 5, "what lies together is passed over as one"


def test_who_takes_a_place_is_seen_to_be_alive_until_its_process_is_gone(
    worker: Callable[[], Places], tmp_path: Path
) -> None:
    one = worker()
    command = [sys.executable, "-c", HOLD.replace("3", "1"), str(tmp_path / "places"), sys.platform]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert not one.gone(one.host, "ada")
        other.kill()
        other.wait()
        assert one.gone(one.host, "ada")
    assert not one.gone("elsewhere", "ada"), "of another host's nothing is known"


def test_of_those_in_another_folder_nothing_is_known(tmp_path: Path, worker: Callable[[], Places]) -> None:
    one, elsewhere = worker(), Places(tmp_path / "others")
    assert one.host != elsewhere.host
    assert not one.gone(elsewhere.host, "ada")
    elsewhere.close()
    assert one.host == worker().host


def test_a_process_whose_files_were_cleared_away_is_not_taken_for_dead(
    tmp_path: Path, worker: Callable[[], Places]
) -> None:
    before = worker()
    take(before, "ada", 1)
    for file in (tmp_path / "places").iterdir():
        file.unlink()
    after = worker()
    assert not after.gone(before.host, "ada")
    assert after.host == worker().host


def test_files_and_folder_are_their_owner_s_alone(worker: Callable[[], Places], tmp_path: Path) -> None:
    worker()
    folder = tmp_path / "places"
    assert folder.stat().st_mode & 0o777 == 0o700
    files = list(folder.iterdir())
    assert len(files) == FILES
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert {file.stat().st_size for file in files} == {0}


def test_where_nothing_can_be_locked_a_worker_counts_by_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "places").write_text("a file in the folder's place")
    one = Places(tmp_path / "places")
    assert "each worker counts by itself" in caplog.text
    first = take(one, "ada", 2)
    take(one, "ada", 2)
    assert one.take("ada", 2) is None
    first.release()
    assert one.take("ada", 2) is not None
    one.close()


def test_without_locks_of_the_open_file_those_of_the_process_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on systems other than Linux."""
    monkeypatch.setattr(places.sys, "platform", "darwin")
    one = Places(tmp_path / "places")
    command = [sys.executable, "-c", HOLD, str(tmp_path / "places"), "darwin"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        held = [one.take("ada", 3) for _ in range(3)]
        assert [place is not None for place in held] == [True, True, False]
        other.communicate()
    taken_again(one, "ada", 3)
    one.close()


def test_who_made_room_for_somebody_faster_asks_once_more(tmp_path: Path) -> None:
    """Of ten who come back at once each asks for one stream to give way, and one who comes last need not ask."""
    held = Places(tmp_path)
    limits = Limits(Settings(max_streams_per_owner=1), held)
    before, back, faster = (Visitor("user:1") for _ in range(3))
    back.returning = True
    limits.enter(before)
    there, asked = [before], []

    def make_room() -> None:
        asked.append(there[-1])
        there.pop().release()
        if asked == [before]:
            limits.enter(faster)
            there.append(faster)

    limits.enter_again(back, make_room)
    assert back.entered
    assert asked == [before, faster]
    held.close()
