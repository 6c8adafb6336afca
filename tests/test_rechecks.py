"""Asking again who may still read, where the host answers late, never or with a fault."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from flaskchat import rechecks
from flaskchat.limits import Visitor
from flaskchat.rechecks import AT_ONCE, GRACE, Rechecks


class Streams:
    """What `Rechecks` needs of the readers: whose streams are open."""

    def __init__(self, *names: str) -> None:
        self.open = [Visitor(f"user:{name}", environ={"HTTP_COOKIE": name}) for name in names]

    def visitors(self) -> list[Visitor]:
        return list(self.open)

    def end(self, visitor: Visitor) -> None:
        self.open = [other for other in self.open if other is not visitor]

    def names(self) -> set[str]:
        return {visitor.owner.removeprefix("user:") for visitor in self.open}


class Host:
    """Says no for `gone`; for others whose name begins with `slow` nothing until it is let go."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.asked = 0

    def __call__(self, environ: Mapping[str, Any], owner: str) -> bool:
        self.asked += 1
        if owner.startswith("user:slow"):
            self.answers.wait(20)
        if owner == "user:fault":
            raise RuntimeError("no database")
        return owner != "user:gone"


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(rechecks, "PATIENCE", 0.3)
    host = Host()
    yield host
    host.answers.set()


Make = Callable[[Streams], Rechecks]


@pytest.fixture
def make(host: Host) -> Make:
    return lambda streams: Rechecks(streams, host)  # type: ignore[arg-type]


def test_one_that_the_host_does_not_answer_for_keeps_nobody_s_turn_from_coming(make: Make) -> None:
    streams = Streams("slow", "gone", *(f"user{number}" for number in range(20)))
    began = time.monotonic()
    make(streams).round()
    assert time.monotonic() - began < 12
    assert "gone" not in streams.names()
    assert len(streams.open) == 21


def test_no_answer_is_a_no_after_some_rounds_and_is_not_asked_for_again_meanwhile(make: Make, host: Host) -> None:
    streams = Streams("slow")
    asking = make(streams)
    for _ in range(GRACE):
        asking.round()
    assert streams.names() == {"slow"}
    asking.round()
    assert streams.names() == set()
    assert host.asked == 1


def test_an_answer_that_comes_late_is_one(make: Make, host: Host) -> None:
    streams = Streams("slow")
    asking = make(streams)
    for _ in range(GRACE):
        asking.round()
    host.answers.set()
    while asking._stuck[0].since:
        time.sleep(0.01)
    for _ in range(GRACE + 1):
        asking.round()
    assert streams.names() == {"slow"}


def test_where_the_host_answers_nobody_all_streams_end_and_no_tasks_pile_up(make: Make, host: Host) -> None:
    streams = Streams(*(f"slow{number}" for number in range(AT_ONCE)), "user", "gone")
    asking = make(streams)
    for _ in range(GRACE + 1):
        asking.round()
    assert streams.names() == set()
    assert host.asked == AT_ONCE


def test_a_fault_of_the_host_s_is_told_once_and_is_a_no_after_some_rounds(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    streams = Streams("fault", "user")
    asking = make(streams)
    with caplog.at_level(logging.ERROR, "flaskchat"):
        for _ in range(GRACE):
            asking.round()
        assert streams.names() == {"fault", "user"}
        asking.round()
    assert streams.names() == {"user"}
    assert [record.message for record in caplog.records] == ["it could not be found out whether a user may still read"]
