"""A rush's memory goes back to the system once it is over."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flaskchat import memory, runtime
from flaskchat.testing import ChatClient
from tests.hosts import host
from tests.server.client import deadline

RUSH = """
from flaskchat.memory import give_back

def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

before = held()
pieces = [bytes(1000) for _ in range(100_000)]
kept = pieces[-1]  # above all others, as something always is
del pieces
rush = held()
give_back()
print(rush - before, held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to")
def test_what_was_freed_below_something_that_is_used_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", RUSH], capture_output=True, text=True, timeout=60, check=True)
    rush, after = map(int, done.stdout.split())
    assert rush > 80 << 20, "it would have gone back by itself, and this shows nothing"
    assert after < rush / 4


def test_it_is_given_back_once_when_nobody_has_written_or_read_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []
    monkeypatch.setattr(memory, "give_back", lambda: given.append(time.monotonic()))
    monkeypatch.setattr(runtime, "QUIET", 0.5)
    app = host(tmp_path)
    with ChatClient(app) as chat:
        chat.ask("hello")
        ended = time.monotonic()
        ours = app.extensions["flaskchat"].runtime
        for _ in deadline(30, "the memory to be given back"):
            ours.pump.poller.ring()  # an idle pump looks seldom
            if given:
                break
        assert given[0] - ended > 0.4, "it was not over yet"
        now = time.monotonic()
        for _ in deadline(30, "some more looks"):
            ours.pump.poller.ring()
            if time.monotonic() - now > 1.5:
                break
        assert len(given) == 1
