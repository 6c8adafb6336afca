"""A reader whose connection is its own: what happens where the log fails it."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

import pytest

from flaskchat import metrics
from flaskchat.limits import Visitor
from flaskchat.live import LiveRun
from flaskchat.outlet import HandedOver, Offer, Outlet
from flaskchat.poller import Poller
from flaskchat.reader import Reader


class Keeper:
    """Holds one reader, of a run whose first events memory has let go of."""

    heartbeat = 15.0
    parting = False

    def __init__(self) -> None:
        self.metrics = metrics.Metrics()
        self.poller = Poller()
        self.log: Any = b""
        self.detached = threading.Event()

    def detach(self, reader: Reader) -> None:
        self.detached.set()

    def from_log(self, reader: Reader) -> bytes:
        if isinstance(self.log, Exception):
            raise self.log
        reader.cursor = reader.run.base
        return bytes(self.log)


@pytest.mark.parametrize("log", [RuntimeError("it was closed"), b""], ids=["raises", "has nothing"])
def test_a_reader_that_the_log_fails_is_let_go_of_and_its_client_sees_the_end(
    log: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = socket.socketpair()
    keeper, run = Keeper(), LiveRun("run_a", own=True)
    keeper.log = log
    try:
        reader = Reader(keeper, run, 0, b"", b"first", Visitor("owner", sock=ours))
        assert next(reader) == b"first"
        reader.offer = Offer(ours, True)
        run.extend([b"one", b"two"], False)
        run.forget()
        with pytest.raises(HandedOver):
            next(reader)
        ours.close()
        assert keeper.detached.wait(60)
        theirs.settimeout(10)
        received = b""
        while data := theirs.recv(100):
            received += data
        assert received == b"0\r\n\r\n"
        assert ("could not be given" in caplog.text) is isinstance(log, Exception)
    finally:
        theirs.close()
        keeper.poller.close()


def test_a_reader_for_whose_bytes_there_is_no_memory_is_cut_off_and_misses_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = socket.socketpair()
    keeper, run = Keeper(), LiveRun("run_a", own=True)
    try:
        reader = Reader(keeper, run, 0, b"", b"first", Visitor("owner", sock=ours))
        assert next(reader) == b"first"
        reader.offer = Offer(ours, True)
        run.extend([b"one"], False)
        with pytest.raises(HandedOver):
            next(reader)
        ours.close()

        def scarce(outlet: Outlet, data: bytes) -> bool:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(Outlet, "write", scarce)
            run.extend([b"two"], False)
            reader.wake()
        run.extend([b"three"], True)
        reader.wake()
        assert keeper.detached.is_set()
        theirs.settimeout(10)
        assert theirs.recv(100) == b"3\r\none\r\n"
        with contextlib.suppress(ConnectionResetError):
            assert theirs.recv(100) == b""
    finally:
        theirs.close()
        keeper.poller.close()
