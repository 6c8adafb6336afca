"""What the fault tests share: a run read to its end wherever it is, judged as a whole; the database from outside."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flaskchat import sse
from tests.conftest import Server
from tests.server.client import TERMINAL, Client, Stream, deadline, seqs, text

FAULTY = "tests.server.faulty:app"


def start_of(stream: Stream) -> dict[str, Any]:
    return dict(json.loads(stream.frames[0].data))


def everything(stream: Stream) -> list[sse.Frame]:
    """What was read already, and the rest."""
    stream.rest()
    return list(stream.frames)


def follow_to_the_end(client: Client, stream: Stream, frames: list[sse.Frame], seconds: float = 15) -> list[sse.Frame]:
    """Come back with the last id until the terminal event, as a browser does; any status but 200 would end one."""
    for _ in deadline(seconds, "the terminal event"):
        if frames and frames[-1].event in TERMINAL:
            return frames
        try:
            again = client.follow(stream.run_id, frames[-1].id if frames else None)
            assert again.status == 200, again.status
            frames = frames + again.rest()
        except OSError:
            continue
    raise AssertionError


def assert_whole(client: Client, stream: Stream, frames: list[sse.Frame], state: str) -> None:
    """One terminal event, no seq missing or twice, and the store says the same."""
    assert seqs(frames) == list(range(1, len(frames) + 1))
    assert [frame.event for frame in frames if frame.event in TERMINAL] == [state]
    start = json.loads(frames[0].data)
    message = client.message(start["conversation_id"], start["message_id"])
    assert (message["status"], message["text"]) == (state, text(frames))


@contextlib.contextmanager
def write_lock(server: Server) -> Iterator[None]:
    """Hold SQLite's write lock in another process."""
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN IMMEDIATE');"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(database(server))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield
    finally:
        process.communicate()


def database(server: Server) -> Path:
    return server.folder / "instance" / "flaskchat.sqlite3"


def rows(server: Server, statement: str, *values: object) -> list[Any]:
    with contextlib.closing(sqlite3.connect(database(server))) as connection:
        return connection.execute(statement, values).fetchall()


def ask(client: Client, **directive: Any) -> tuple[dict[str, Any], Stream]:
    directive.setdefault("tag", uuid.uuid4().hex)
    return directive, client.send(json.dumps(directive))


def error_of(frames: list[sse.Frame]) -> str:
    assert frames[-1].event == "error", frames[-1]
    return str(json.loads(frames[-1].data)["code"])
