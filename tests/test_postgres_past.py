"""A long past in PostgreSQL's log, over a network that takes longer for it than a statement may take."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from flaskchat.log.base import Append
from flaskchat.log.postgres import PAGE, PATIENCE
from flaskchat.log.rows import VERSION, encode_row
from flaskchat.store import postgres
from flaskchat.store.base import Begun
from flaskchat.store.schema import journal
from tests.backends import Backend
from tests.rooms import Rooms, where, worker_rooms

pytestmark = pytest.mark.backends("postgres")

ROWS, TEXT = 7000, 2000
RATE = 5e6
"""Bytes a second."""


def _pass_on(source: socket.socket, target: socket.socket, rate: float) -> None:
    """Until one of the two has gone; at most `rate` bytes a second."""
    due = time.monotonic()
    with contextlib.suppress(OSError):
        while data := source.recv(32768):
            target.sendall(data)
            due = max(due, time.monotonic()) + len(data) / rate
            time.sleep(min(0.05, max(0.0, due - time.monotonic())))
    for sock in (source, target):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def slow_network(port: int) -> Iterator[int]:
    """A port behind which is another, whose answers come at RATE."""
    opened: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.socket()
                far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                far.connect(("127.0.0.1", port))
                opened.extend((near, far))
                for source, target, rate in ((near, far, 1e9), (far, near, RATE)):
                    threads.append(threading.Thread(target=_pass_on, args=(source, target, rate)))
                    threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads.append(threading.Thread(target=accept, args=(listener,)))
        threads[-1].start()
        try:
            yield listener.getsockname()[1]
        finally:
            for sock in (listener, *opened):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(10)
            for sock in opened:
                sock.close()


@contextlib.contextmanager
def far(backend: Backend, folder: Path) -> Iterator[tuple[Rooms, Begun, list[Append]]]:
    """A worker behind the slow network, a run of another one, and what the log has of it."""
    url = where(backend, folder)
    assert backend.postgres is not None
    with worker_rooms(url) as make, slow_network(backend.postgres.port) as port:
        owner = make()
        begun = owner.begin()
        entries = [Append(begun.run_id, seq, [b"%d" % seq + b"x" * TEXT]) for seq in range(1, ROWS + 1)]
        values = {"worker_id": owner.holding.lease.worker_id, "version": VERSION}
        rows = [{**values, "data": encode_row([entry])} for entry in entries]
        for at in range(0, ROWS, PAGE):
            some = rows[at : at + PAGE]
            owner.database.write(lambda c, some=some: c.execute(sa.insert(journal), some))  # type: ignore[misc]
        with worker_rooms(url.replace(f":{backend.postgres.port}/", f":{port}/")) as make_far:
            yield make_far(), begun, entries


def test_a_past_that_takes_longer_than_a_statement_may_is_read_all_the_same(backend: Backend, tmp_path: Path) -> None:
    assert ROWS * TEXT / RATE > 2 * PATIENCE
    assert PAGE * TEXT / RATE < PATIENCE / 4
    with far(backend, tmp_path) as (rooms, begun, entries):
        assert rooms.journal.read(begun.run_id) == entries


def test_a_past_that_takes_longer_than_the_store_waits_is_taken_over_all_the_same(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "MARGIN", 0.5)
    with far(backend, tmp_path) as (rooms, begun, entries):
        assert rooms.database.timeout + 2 * postgres.MARGIN < ROWS * TEXT / RATE
        past = rooms.journal.past([begun.run_id])
        assert past == {begun.run_id: [frame for entry in entries for frame in entry.frames]}
