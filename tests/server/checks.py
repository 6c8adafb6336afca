"""What the fault tests share: a run read to its end wherever it is, judged as a whole; the database from outside."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from flaskchat import sse
from tests.conftest import Server
from tests.server.client import TERMINAL, Client, Stream, deadline, seqs, text
from tests.server.data import data_of

FAULTY = "tests.server.faulty:app"


def start_of(stream: Stream) -> dict[str, Any]:
    return dict(json.loads(stream.frames[0].data))


def everything(stream: Stream) -> list[sse.Frame]:
    """What was read already, and the rest."""
    stream.rest()
    return list(stream.frames)


def follow_to_the_end(client: Client, stream: Stream, frames: list[sse.Frame], seconds: float = 60) -> list[sse.Frame]:
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


def write_lock(server: Server) -> AbstractContextManager[None]:
    """Keep everybody from writing to the database, as somebody does that holds its lock."""
    return data_of(server).locked()


def database(server: Server) -> Path:
    """SQLite's file."""
    return server.folder / "instance" / "flaskchat.sqlite3"


def rows(server: Server, statement: str, *values: object) -> list[Any]:
    return data_of(server).rows(statement, *values)


def assert_closed_in_time(stop: Callable[[], Any]) -> None:
    """Within the 300 ms of P5, as the server counts, in the best of five: a busy machine pauses any of them.

    :param stop: begins a reply anew, stops it, and returns the answer.
    """
    took: list[float] = []
    while not took or (took[-1] >= 300 and len(took) < 5):
        answer = stop()
        assert answer["state"] == "stopped"
        took.append(answer["upstream_closed_ms"])
    assert min(took) < 300, took


def ask(client: Client, **directive: Any) -> tuple[dict[str, Any], Stream]:
    directive.setdefault("tag", uuid.uuid4().hex)
    return directive, client.send(json.dumps(directive))


def error_of(frames: list[sse.Frame]) -> str:
    assert frames[-1].event == "error", frames[-1]
    return str(json.loads(frames[-1].data)["code"])
