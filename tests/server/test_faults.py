"""Databases locked and disks full: replies wait, lose nothing and go on. For processes see test_kill.py."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

from tests.conftest import Server
from tests.server.checks import FAULTY, assert_whole, database, everything, start_of, write_lock
from tests.server.client import deadline, text

BREAKING = "tests.server.breaking:app"


def test_a_fast_python_model_loses_nothing_while_the_database_is_locked(serve: Callable[..., Server]) -> None:
    """More comes than may wait for the log: the model waits, and goes on by itself."""
    server = serve({"FLASKCHAT_MODEL": "lines", "FLASKCHAT_GAP_TIMEOUT": "20"}, app=FAULTY)
    client = server.client()
    stream = client.send("1500 700")
    stream.take(3)
    with write_lock(server):
        time.sleep(0.05)
        for _ in deadline(30, "the workers to notice"):
            if "the log cannot be used" in server.log():
                break
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            assert client.get("/healthz").status == 200
    frames = everything(stream)
    assert_whole(client, stream, frames, "done")
    assert text(frames) == "".join(f"{n:06d}".ljust(1023, ".") + "\n" for n in range(1500))


def test_a_full_disk_loses_nothing_and_the_replies_go_on_when_there_is_room(serve: Callable[..., Server]) -> None:
    server = serve({"FLASKCHAT_MODEL": "count", "TEST_GIVE_UP": "120"}, app=BREAKING)
    client = server.client()
    stream = client.send("200 50")
    stream.take(20)
    unlimited = psutil.Process(server.workers()[0]).rlimit(psutil.RLIMIT_FSIZE)
    wal = database(server).with_name("flaskchat.sqlite3-wal")
    for pid in server.workers():  # every write past the end of what there is fails
        psutil.Process(pid).rlimit(psutil.RLIMIT_FSIZE, (wal.stat().st_size, unlimited[1]))
    try:
        for _ in deadline(30, "the workers to notice"):
            if "the log cannot be used" in server.log():
                break
        refused = client.send("5 0")
        assert (refused.status, "Retry-After" in refused.headers) == (503, True)
        assert client.get("/healthz").status == 200
        assert client.json(f"/conversations/{start_of(stream)['conversation_id']}")["running"]
    finally:
        for pid in server.workers():
            psutil.Process(pid).rlimit(psutil.RLIMIT_FSIZE, unlimited)
    frames = everything(stream)
    assert_whole(client, stream, frames, "done")
    assert text(frames) == "".join(f"word{n} ü€😀 " for n in range(200))
    assert client.send("5 0").rest()[-1].event == "done"
