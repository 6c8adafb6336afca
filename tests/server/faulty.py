"""The test application with Python models that misbehave, and a watch on the hub: `tests.server.faulty:app`."""

import contextlib
import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import gevent
from gevent import monkey

from flaskchat import Request, sweep
from tests.server.app import app, chat

# A lease that stands still is counted out sooner, where a test is not about how soon.
sweep.ROUND = float(os.environ.get("TEST_SWEEP_ROUND", sweep.ROUND))

FOLDER = Path(os.environ["TEST_INSTANCE"]).parent


@chat.model("sleeps")
def sleeps(request: Request) -> Iterator[str]:
    """Says in a file, named by the question, that its `finally` ran."""
    try:
        yield "Well "
        time.sleep(60)
        yield "bye"
    finally:
        (FOLDER / request.text).touch()


@chat.model("stubborn")
def stubborn(request: Request) -> Iterator[str]:
    """Passes over its end and goes on."""
    yield "Well "
    for _ in range(20):
        with contextlib.suppress(BaseException):
            time.sleep(0.2)
    yield "I would not"


@chat.model("mute")
def mute(request: Request) -> Iterator[str]:
    time.sleep(60)
    yield "too late"


@chat.model("empty")
def empty(request: Request) -> Iterator[str]:
    yield from ()


@chat.model("number")
def number(request: Request) -> Iterator[str]:
    yield "One "
    yield 2  # type: ignore[misc]


@chat.model("none")
def none(request: Request) -> Iterator[str]:
    return None  # type: ignore[return-value]


@chat.model("huge")
def huge(request: Request) -> Iterator[str]:
    """So many bytes at once."""
    yield "x" * int(request.text)


@chat.model("odd")
def odd(request: Request) -> Iterator[str]:
    yield "a\0b"
    yield "\ud83d"
    yield "\ude00"
    yield "\r\ndata: forged\n\nid: 99\n\u2028\u0085"


@chat.model("exits")
def exits(request: Request) -> Iterator[str]:
    yield "Before "
    raise SystemExit(3)


@chat.model("expires")
def expires(request: Request) -> Iterator[str]:
    yield "Before "
    with gevent.Timeout(0.01):
        time.sleep(60)


@chat.model("lines")
def lines(request: Request) -> Iterator[str]:
    """As many numbered lines of 1 kB as the question says, at as many a second: "100 50"."""
    many, rate = (int(word) for word in request.text.split()[:2])
    for n in range(many):
        yield f"{n:06d}".ljust(1023, ".") + "\n"
        if rate:
            time.sleep(1 / rate)


class Watch:
    """For how long the hub was held, at most, since it was last asked.

    A native thread ticks beside it. When both are late the machine was busy elsewhere, and that is taken off.
    """

    def __init__(self) -> None:
        self.worst = 0.0
        self.ticks = [time.perf_counter()]
        gevent.spawn(self.run)

    def run(self) -> None:
        monkey.get_original("_thread", "start_new_thread")(self.beside, ())
        last = time.perf_counter()
        while True:
            gevent.sleep(0.005)
            now = time.perf_counter()
            beside = [at for at in self.ticks if at >= last - 1]
            self.ticks = beside[-200:]
            late = max((b - a for a, b in pairwise([*beside, now]) if b > last), default=0.0)
            self.worst, last = max(self.worst, now - last - late), now

    def beside(self) -> None:
        sleep = monkey.get_original("time", "sleep")
        while True:
            sleep(0.005)
            self.ticks.append(time.perf_counter())


watch = Watch()


@app.get("/hub")
def hub() -> dict[str, float]:
    worst, watch.worst = watch.worst, 0.0
    return {"held": worst}


@app.get("/hold")
def hold() -> str:
    """Does what nothing should: waits in C, and counts, without letting others run."""
    monkey.get_original("time", "sleep")(0.3)
    return "held"


@app.get("/spin")
def spin() -> str:
    until = time.perf_counter() + 0.3
    while time.perf_counter() < until:
        pass
    return "spun"
