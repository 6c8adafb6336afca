"""Thousands of readers that come back in one moment, as after a network's outage or a deploy (P11)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest

from tests.conftest import ROOT, Server
from tests.server.client import deadline

DELIBERATE = {"429", "503", "come back"}
"""Refusals that say what they are. A stream that ends at once means: come back; an EventSource gives up at a 503."""


def test_thousands_come_back_at_once_and_are_served_or_told_so(serve: Callable[..., Server], long: bool) -> None:
    """4,000, more than two workers admit, with the first event for 99 of 100 within 3 s where nobody else uses the
    machine (short: 300, all of them). Health and Stop are answered meanwhile. With deploy's own configuration.
    """
    quiet = os.getloadavg()[0] < (os.cpu_count() or 1)
    number = 4000 if long else 300
    if resource_limit() < number + 500:
        pytest.skip("this system allows too few descriptors")
    settings = {
        "FLASKCHAT_MODEL": "count",
        "FLASKCHAT_MAX_RUNS_PER_OWNER": "0",
        "FLASKCHAT_MESSAGES_PER_MINUTE": "0",
        "FLASKCHAT_MAX_STREAMS_PER_OWNER": str(number // 20 + 50),
        "FLASKCHAT_MAX_STREAMS_PER_ADDRESS": "0",  # all of them have the same one here
        "FLASKCHAT_HEARTBEAT": "60",  # one second in this test's minute need not be the fifteenth of all
    }
    server = serve(settings, workers=2, args=["-c", "deploy/gunicorn.conf.py"])
    owners = [server.client() for _ in range(20)]
    streams = [owner.send("400 2") for owner in owners]
    for stream in streams:
        stream.take(2)
        stream.close()
    requests = [[f"/runs/{streams[n % 20].run_id}/events", owners[n % 20].cookie, 1] for n in range(number)]
    before = {pid: psutil.Process(pid).num_fds() for pid in server.workers()}
    cpu = {pid: cpu_of(pid) for pid in server.workers()}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.server.storm"], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        told = {"port": server.port, "requests": requests, "seconds": 60}
        process.stdin.write(json.dumps(told) + "\n")
        process.stdin.flush()
        visitor = owners[0]
        asked_at = time.monotonic()
        assert visitor.get("/healthz").status == 200
        assert visitor.stop(streams[0].run_id)["state"] == "stopped"
        took = time.monotonic() - asked_at
        found = json.loads(process.stdout.readline())
        first, others = found["first"], found["others"]
        assert set(others) <= DELIBERATE, others
        assert len(first) + sum(others.values()) == number
        p50, p99 = first[len(first) // 2], first[int(len(first) * 0.99)]
        spent = sum(cpu_of(pid) - before for pid, before in cpu.items()) / number * 1000
        print(
            f"{len(first)} of {number} served, p50 {p50:.2f} s, p99 {p99:.2f} s, last {first[-1]:.2f} s; {others}; "
            f"health and Stop in {took:.2f} s; connecting took {found['connecting']:.2f} s; "
            f"{spent:.2f} ms of the workers' CPU for each"
        )
        if not long:
            assert others == {}
        assert len(first) >= min(number, 1800), "fewer than one worker has room for"
        assert p99 < (3 if long and quiet else 30)
        assert visitor.get("/healthz").status == 200
    finally:
        process.communicate()
    for _ in deadline(30, "the descriptors to be back"):
        # but for those that the database's threads opened meanwhile
        if all(psutil.Process(pid).num_fds() <= fds + 30 for pid, fds in before.items()):
            break
    for owner, stream in zip(owners, streams, strict=True):
        owner.stop(stream.run_id)
    assert "Traceback" not in server.log()


def cpu_of(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def resource_limit() -> int:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 1 << 20 if hard == resource.RLIM_INFINITY else hard
