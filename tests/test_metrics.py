"""What is counted, over several workers and their ends, and who may read it."""

from __future__ import annotations

import ast
import errno
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from prometheus_client.parser import text_string_to_metric_families

from flaskchat import errors, metrics
from flaskchat.metrics import (
    FAMILIES,
    FIRST_TOKEN,
    HEARTBEATS,
    OTHER,
    REFUSALS,
    REFUSED,
    REPLIES_ENDED,
    REPLIES_RUNNING,
    STREAMS_OPEN,
    Metrics,
)  # fmt: skip
from flaskchat.testing import ChatClient
from tests.conftest import ROOT
from tests.hosts import host, problem

TOKEN = "a token of the operator's"


def read(text: str) -> dict[str, float]:
    """Each sample by its name and label, as Prometheus' own parser finds them."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name + "".join(f" {value}" for value in sample.labels.values())] = sample.value
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "places"


def test_counts_of_all_workers_are_added(folder: Path) -> None:
    one, two = Metrics(folder), Metrics(folder)
    for worker in (one, two, two):
        worker.add(HEARTBEATS)
        worker.add(REPLIES_ENDED, "done", 2)
        worker.set(STREAMS_OPEN, 7)
    for worker in (one, two):
        found = read(worker.text())
        assert found["flaskchat_heartbeats_total"] == 3
        assert found["flaskchat_replies_ended_total done"] == 6
        assert found["flaskchat_replies_ended_total error"] == 0, "there before the first of them"
        assert found["flaskchat_streams_open"] == 14
        assert found["flaskchat_workers"] == 2
    one.close()
    two.close()


def test_of_a_worker_that_has_gone_counters_stand_and_gauges_do_not(folder: Path) -> None:
    one, two = Metrics(folder), Metrics(folder)
    for worker in (one, two):
        worker.add(HEARTBEATS)
        worker.set(REPLIES_RUNNING, 5)
    one.close()
    one.add(HEARTBEATS)  # a task that is late
    found = read(two.text())
    assert (found["flaskchat_heartbeats_total"], found["flaskchat_replies_running"]) == (2, 5)
    assert found["flaskchat_workers"] == 1
    for _ in range(5):
        third = Metrics(folder)
        third.add(HEARTBEATS)
        assert read(third.text())["flaskchat_replies_running"] == 5
        third.close()
    assert read(two.text())["flaskchat_heartbeats_total"] == 7
    assert len(list(folder.glob("metrics-*"))) == 2, "who begins counts on in the file of one that is gone"
    two.close()


KILLED = """
import os, signal, sys
from pathlib import Path
from flaskchat import metrics
counts = metrics.Metrics(Path(sys.argv[1]))
counts.add(metrics.HEARTBEATS, amount=41)
counts.set(metrics.STREAMS_OPEN, 3)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_has_counted_is_there(folder: Path) -> None:
    counts = Metrics(folder)
    counts.add(HEARTBEATS)
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT, timeout=60)
    assert done.returncode == -9
    found = read(counts.text())
    counts.close()
    assert (found["flaskchat_heartbeats_total"], found["flaskchat_streams_open"]) == (42, 0)


def test_a_histogram_counts_up_to_each_bound(folder: Path) -> None:
    counts = Metrics(folder)
    for seconds in (0.1, 0.2, 7, 1000):
        counts.observe(FIRST_TOKEN, seconds)
    found = read(counts.text())
    counts.close()
    name = "flaskchat_reply_first_token_seconds"
    expected = {"0.1": 1, "0.25": 2, "5": 2, "10": 3, "120": 3, "+Inf": 4}
    assert {bound: found[f"{name}_bucket {bound}"] for bound in expected} == expected
    assert (found[f"{name}_count"], found[f"{name}_sum"]) == (4, pytest.approx(1007.3))


def test_names_follow_the_conventions_and_are_told_with_type_and_help() -> None:
    found = {family.name: family for family in text_string_to_metric_families(Metrics().text())}
    for family in FAMILIES:
        shown = found[family.name.removesuffix("_total")]  # so does the parser call a counter
        assert shown.type == family.kind
        assert shown.documentation == family.help
        assert family.name.endswith("_total") == (family.kind == "counter")
        assert list(family.buckets) == sorted(family.buckets)


def test_a_label_that_is_not_known_makes_no_series(folder: Path) -> None:
    counts = Metrics(folder)
    counts.add(REFUSED, "made up by a visitor")
    found = read(counts.text())
    counts.close()
    assert found[f"flaskchat_requests_refused_total {OTHER}"] == 1
    assert not any("visitor" in name for name in found)


def test_every_code_with_which_a_request_is_refused_has_a_series() -> None:
    said = {errors.NotReady.code}
    for path in (ROOT / "flaskchat").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("TooMany", "Unavailable"):
                said |= {ast.literal_eval(given.value) for given in node.keywords if given.arg == "code"}
    assert said == set(REFUSALS)


def test_every_way_that_a_model_fails_has_a_series() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ModelError)]
    assert {kind.code for kind in kinds} | {OTHER} == set(metrics.REPLY_ERRORS.index)


def test_files_are_their_owner_s_alone_and_those_of_another_version_go(folder: Path) -> None:
    folder.mkdir()
    (folder / "metrics-0ld-0").touch()
    counts = Metrics(folder)
    (file,) = folder.glob("metrics-*")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.stat().st_size == metrics.SIZE
    counts.close()


def test_on_a_full_disk_a_worker_counts_by_itself_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with caplog.at_level(logging.WARNING, "flaskchat"):
        counts = Metrics(folder)
    assert "each worker counts by itself" in caplog.text
    counts.add(HEARTBEATS)
    assert read(counts.text())["flaskchat_heartbeats_total"] == 1
    counts.close()


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    app = host(tmp_path, FLASKCHAT_METRICS_TOKEN=TOKEN, FLASKCHAT_MESSAGES_PER_MINUTE=2)
    yield app
    app.extensions["flaskchat"].close()


def test_metrics_are_for_who_has_the_token(app: Flask) -> None:
    client = app.test_client()
    for given in ("", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer ü", f"Basic {TOKEN}", TOKEN):
        response = client.get("/chat/metrics", headers={"Authorization": given, "X-Forwarded-For": "127.0.0.1"})
        problem(response, 401, "unauthorized")
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert TOKEN not in response.text
    response = client.get("/chat/metrics", headers={"Authorization": f"bearer {TOKEN}"})
    assert response.status_code == 200
    assert response.content_type == metrics.CONTENT_TYPE
    assert response.headers["Cache-Control"] == "no-store"
    assert "Set-Cookie" not in response.headers


@pytest.mark.parametrize("token", [None, ""])
def test_without_a_token_there_are_no_metrics(tmp_path: Path, token: str | None) -> None:
    app = host(tmp_path, FLASKCHAT_METRICS_TOKEN=token)
    for given in ({}, {"Authorization": "Bearer"}, {"Authorization": "Bearer "}):
        problem(app.test_client().get("/chat/metrics", headers=given), 404, "not_found")


def test_a_reply_and_a_refusal_are_counted(app: Flask) -> None:
    chat = ChatClient(app)
    chat.ask("hello you")
    chat.ask("hello again")
    refused = chat.client.post("/chat/conversation", json={"message": {"id": "x", "text": "more"}})
    problem(refused, 429, "too_many_messages")
    found = read(chat.client.get("/chat/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text)
    assert found["flaskchat_replies_started_total"] == 2
    assert found["flaskchat_replies_ended_total done"] == 2
    assert found["flaskchat_reply_duration_seconds_count"] == 2
    assert found["flaskchat_reply_first_token_seconds_count"] == 2
    assert found["flaskchat_requests_refused_total too_many_messages"] == 1
    assert found["flaskchat_streams_opened_total"] == 2
    assert found["flaskchat_events_total"] >= 6
    assert found["flaskchat_tick_seconds_count"] >= 2
    assert found["flaskchat_streams_capacity"] > 0
