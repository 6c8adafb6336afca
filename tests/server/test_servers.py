"""The same chat under other servers: gunicorn's gthread and sync workers, `flask run`. Proxies: test_proxies.py."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Server, free_port
from tests.server.badmodel import Running, text_of
from tests.server.checks import assert_closed_in_time, database, everything, follow_to_the_end, write_lock
from tests.server.client import Client, deadline, seqs, text


def test_gthread_streams_stops_and_drains_the_same(serve: Callable[..., Server], model: Running) -> None:
    server = serve(
        {
            "FLASKCHAT_MODEL": "openai:fake",
            "FLASKCHAT_OPENAI_BASE_URL": f"{model.origin}/v1",
            "FLASKCHAT_MODELS": "silent",
            "FLASKCHAT_TITLES": "no",
        },
        kind="gthread",
        args=["--threads", "8"],
    )
    client = server.client()
    directive = {"tag": "gthread", "tokens": 60, "rate": 60}
    stream = client.send(json.dumps(directive))
    frames = stream.take(10)
    stream.close()
    for worker in server.workers():
        other = client.follow(stream.run_id, 10, connection=client.connect_to(worker))
        rest = other.rest()
        assert text(frames + rest) == text_of(directive)
        assert seqs(rest)[0] == 11

    def stop() -> Any:
        silent = client.send(json.dumps({"tag": "gs", "fault": "silent-before-head", "hold": 60}))
        silent.take(1)
        other_worker = next(pid for pid in server.workers() if pid != silent.worker)
        return client.stop(silent.run_id, connection=client.connect_to(other_worker))

    assert_closed_in_time(stop)
    stream = client.send(json.dumps({"tag": "leave", "tokens": 100, "rate": 50}))
    stream.take(5)
    os.kill(stream.worker, signal.SIGTERM)
    assert follow_to_the_end(client, stream, everything(stream))[-1].event == "done"


def test_a_sync_worker_is_refused_with_the_line_to_change(tmp_path: Path) -> None:
    environment = {**os.environ, "TEST_INSTANCE": str(tmp_path), "PYTHONPATH": str(ROOT), "FLASKCHAT_MODEL": "count"}
    command = [
        sys.executable, "-m", "gunicorn", "-w", "1", "-b", f"127.0.0.1:{free_port()}", "--no-control-socket",
        "tests.server.app:app",
    ]  # fmt: skip
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert result.returncode != 0
    assert "gunicorn -k gevent" in result.stderr


def test_two_first_requests_at_once_after_a_preload_do_not_hold_the_worker(serve: Callable[..., Server]) -> None:
    """The application is loaded before the fork, in a process that gevent has not patched yet."""
    server = serve({"FLASKCHAT_DATABASE_TIMEOUT": 60}, workers=1, args=["--preload"])
    client = server.client(timeout=60)
    path = database(server)
    path.parent.mkdir(exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    with ThreadPoolExecutor() as beside:
        with write_lock(server):  # so that the tables cannot be made
            first = [beside.submit(client.json, "/conversations") for _ in range(2)]
            for _ in range(20):
                assert client.get("/plain").response.read() == b"plain"
            assert not any(one.done() for one in first)
        assert [one.result()["items"] for one in first] == [[], []]


@pytest.fixture
def flask_run(tmp_path: Path) -> Iterator[Client]:
    port = free_port()
    environment = {**os.environ, "TEST_INSTANCE": str(tmp_path), "PYTHONPATH": str(ROOT), "FLASKCHAT_MODEL": "count"}
    command = [sys.executable, "-m", "flask", "--app", "tests.server.app", "run", "--debug", "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    client = Client(port)
    try:
        for _ in deadline(60, "flask run to answer"):
            try:
                if client.get("/healthz").status == 200:
                    break
            except OSError:
                continue
        yield client
    finally:
        client.close()
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def test_flask_run_with_its_reloader_streams_and_stops_the_same(flask_run: Client) -> None:
    stream = flask_run.send("30 60")
    frames = stream.take(5)
    stream.close()
    rest = flask_run.follow(stream.run_id, 5).rest()
    assert text(frames + rest) == "".join(f"word{n} ü€😀 " for n in range(30))
    stream = flask_run.send("x", model="silent")
    stream.take(2)
    assert flask_run.stop(stream.run_id)["state"] == "stopped"
    assert stream.rest()[-1].event == "stopped"
