"""The write-ahead log stays short however many read, and a disk that does not sync is told of and forgiven."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Server
from tests.server.checks import assert_whole, database, everything
from tests.server.client import Client, deadline
from tests.server.disk import Disk

BREAKING = "tests.server.breaking:app"
MB = 1 << 20


class Crowd:
    """Readers that come back as soon as their stream has ended, as plain sockets in one thread."""

    def __init__(self, server: Server, cookie: str) -> None:
        self._server, self._cookie = server, cookie
        self._selector = selectors.DefaultSelector()
        self._run_ids: list[str] = []
        self._wanted = 0
        self._open = 0
        self._ended = False
        self.bytes = 0
        self.answers = 0
        self.bad: set[bytes] = set()
        self._thread = threading.Thread(target=self._read)

    def start(self, readers: int, run_ids: list[str]) -> None:
        """:param run_ids: to be followed; looked at anew whenever somebody comes back."""
        self._wanted, self._run_ids = readers, run_ids
        self._thread.start()

    @property
    def open(self) -> int:
        return self._open

    def _connect(self) -> None:
        run_id = self._run_ids[self.answers % len(self._run_ids)]
        sock = socket.create_connection(("127.0.0.1", self._server.port), timeout=60)
        head = f"GET /runs/{run_id}/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCookie: {self._cookie}\r\n\r\n"
        sock.sendall(head.encode())
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, [b""])
        self._open += 1
        self.answers += 1

    def _read(self) -> None:
        while not self._ended:
            for _ in range(min(50, self._wanted - self._open)):
                self._connect()
            for key, _ in self._selector.select(0.05):
                sock, head = key.fileobj, key.data
                assert isinstance(sock, socket.socket)
                data = b""
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    data = sock.recv(262144)
                self.bytes += len(data)
                if head[0] == b"":
                    head[0] = data[:12]
                    if head[0] != b"HTTP/1.1 200":
                        self.bad.add(data)
                if not data:
                    self._leave(sock)
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            self._leave(key.fileobj)
        self._selector.close()

    def _leave(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        sock.close()
        self._open -= 1

    def close(self) -> None:
        self._ended = True
        self._thread.join(30)


def size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


class Replies:
    """So many replies of one kind at any time, none of them read."""

    def __init__(self, client: Client, number: int, question: str, model: str) -> None:
        self._client, self._question, self._model = client, question, model
        self.run_ids = [self._ask() for _ in range(number)]
        self.done = 0

    def _ask(self) -> str:
        stream = self._client.send(self._question, model=self._model)
        assert stream.status == 200, stream.json()
        stream.close()
        return stream.run_id

    def renew(self, running: set[str]) -> None:
        """Begin a new one for each that has ended."""
        for place, run_id in enumerate(self.run_ids):
            if run_id not in running:
                self.run_ids[place] = self._ask()
                self.done += 1


def test_the_write_ahead_log_does_not_grow_under_five_hundred_readers(serve: Callable[..., Server], long: bool) -> None:
    """500 readers for ten minutes and a few writers, hundreds of megabytes in all; in the short form 60 for 6 seconds,
    or until it has shrunk once, with the sweep's rounds shortened."""
    seconds, readers, sweep = (600, 500, {}) if long else (6, 60, {"TEST_SWEEP_ROUND": "0.6"})
    bound = 32 * MB  # eight times what a checkpoint waits for: on a busy machine one comes late now and then
    low, soon = 8 * MB, 20.0
    settings: dict[str, object] = {
        "FLASKCHAT_MODEL": "lines",
        "FLASKCHAT_MODELS": "count",
        "FLASKCHAT_MAX_REPLY_BYTES": str(8 * MB),
    }
    server = serve({**settings, **sweep}, app=BREAKING, holds_hub=True)  # so many wakes at once are another test's
    client = server.client()
    wal = database(server).with_name("flaskchat.sqlite3-wal")
    written = Replies(client, 4, "800 100", "lines")
    followed = Replies(client, 4, "150 10", "count")
    crowd = Crowd(server, client.cookie)
    crowd.start(readers, followed.run_ids)
    largest = before = added = shrunk = 0
    try:
        for _ in deadline(60, "all readers"):
            if crowd.open == readers:
                break
        until = time.monotonic() + seconds
        low_at = time.monotonic()
        while time.monotonic() < until or not shrunk:
            now = size(wal)
            largest, added, shrunk = max(largest, now), added + max(0, now - before), shrunk + (now < before)
            before = now
            low_at = time.monotonic() if now < low else low_at
            assert time.monotonic() - low_at < soon, f"{now / MB:.1f} MB, and not short for {soon:.0f} s"
            assert now < bound, f"{now / MB:.1f} MB after {seconds - until + time.monotonic():.0f} s"
            assert time.monotonic() < until + 60, "it was never checkpointed"
            page = client.get("/conversations?limit=50")
            running = {item["running_run_id"] for item in page.json()["items"]}
            page.close()
            written.renew(running)
            followed.renew(running)
            time.sleep(0.05)
    finally:
        crowd.close()
    print(
        f"the log was {largest / MB:.1f} MB at most, begun anew {shrunk} times; {added / MB:.0f} MB were added; "
        f"{written.done + followed.done} replies; {crowd.answers} answers, {crowd.bytes / MB:.0f} MB read"
    )
    assert crowd.bad == set()
    for run_id in [*written.run_ids, *followed.run_ids]:
        client.stop(run_id)
    for _ in deadline(30, "an idle server's log to be short"):
        if size(wal) <= 5 * MB:
            break


def test_a_disk_that_does_not_sync_is_told_of_and_the_log_shrinks_when_it_does(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    """Commits go on, since only a checkpoint syncs; the log grows meanwhile, and somebody has to know."""
    disk = Disk(tmp_path)
    settings = {"FLASKCHAT_MODEL": "lines", "FLASKCHAT_MAX_REPLY_BYTES": str(64 * MB), "TEST_SWEEP_ROUND": "0.6"}
    server = serve({**settings, **disk.settings}, app=BREAKING)
    client = server.client()
    wal = database(server).with_name("flaskchat.sqlite3-wal")
    stream = client.send("3500 1500")
    stream.take(1)
    with disk.fault("syncs fail"):
        for _ in deadline(40, "the operator to be told"):
            if "cannot be checkpointed, its write-ahead log grows: disk I/O error" in server.log():
                break
        grown = size(wal)
        assert grown > 4 * MB
    frames = everything(stream)
    assert_whole(client, stream, frames, "done")
    for _ in deadline(40, "the log to shrink"):
        if size(wal) < grown:
            break
