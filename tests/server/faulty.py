"""The test application with Python models that misbehave, and routes that hold the hub: `tests.server.faulty:app`."""

import contextlib
import gc
import os
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import gevent
from flask import Response, g, request
from gevent import monkey

from flaskchat import Request, sweep, watch
from flaskchat.store import sqlite
from flaskchat.views import demo
from tests.server.app import app, chat

# A lease that stands still is counted out sooner, where a test is not about how soon.
sweep.ROUND = float(os.environ.get("TEST_SWEEP_ROUND", sweep.ROUND))
# Or hardly ever, where it is about how else a worker's death is seen.
sweep.GONE_AFTER = int(os.environ.get("TEST_GONE_AFTER", sweep.GONE_AFTER))
# And the write-ahead log goes into the database sooner, so that a test sees it happen.
sqlite.CHECKPOINT_BYTES = int(os.environ.get("TEST_CHECKPOINT_BYTES", sqlite.CHECKPOINT_BYTES))
# And the messages of /sse come sooner.
demo.PAUSE = float(os.environ.get("TEST_SSE_PAUSE", demo.PAUSE))
watch.STUCK = float(os.environ.get("TEST_STUCK", watch.STUCK))

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
    """Passes over its end and goes on, for as many seconds as the question says."""
    yield "Well "
    until = time.monotonic() + float(request.text)
    while time.monotonic() < until:
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


@app.before_request
def hurry() -> None:
    """A host that gives its requests so many seconds, and then ends them wherever they are."""
    if "X-Seconds" in request.headers:
        g.hurry = gevent.Timeout.start_new(float(request.headers["X-Seconds"]))


@app.after_request
def hurry_no_more(response: Response) -> Response:
    if "hurry" in g:
        g.hurry.close()
    return response


@app.get("/hub")
def hub() -> dict[str, float]:
    """What the watch has found: for how long the hub was held at most since this was last asked, and how often ever."""
    found = app.extensions["flaskchat"].runtime.watch
    return {"held": found.reset(), "holds": found.holds}


@app.get("/greenlets")
def greenlets() -> dict[str, int]:
    """What this worker's greenlets do, and how many of them: the innermost lines of each."""
    found: Counter[str] = Counter()
    for one in gc.get_objects():
        if isinstance(one, gevent.Greenlet) and one.gr_frame is not None:
            found[" < ".join(f"{f.name}:{f.lineno}" for f in reversed(traceback.extract_stack(one.gr_frame)[-6:]))] += 1
    return dict(found)


@app.get("/linger")
def linger() -> str:
    """From now on this worker learns so many seconds late that it has committed something; others see it at once."""
    log, seconds = app.extensions["flaskchat"].runtime.pump.log, float(request.args["seconds"])
    turn = type(log).turn

    def late(lease: object, entries: list[object], endings: list[object]) -> object:
        found = turn(log, lease, entries, endings)
        if entries:
            time.sleep(seconds)
        return found

    log.turn = late
    return "lingers"


@app.get("/hold")
def hold() -> str:
    """Does what nothing should: waits in C, without letting others run."""
    monkey.get_original("time", "sleep")(float(request.args.get("seconds", 0.3)))
    return "held"


@app.get("/spin")
def spin() -> str:
    """Computes for 0.3 s, however long that takes on a machine with other work."""
    compute(0.3)
    return "spun"


@app.get("/mute")
def mute_threads() -> str:
    """Computes for about a second within one call into C, so that no other thread runs either."""
    sum(range(40_000_000))
    return "summed"


@app.get("/crowd")
def crowd() -> str:
    """Many greenlets, of which none takes long."""
    gevent.joinall([gevent.spawn(compute, 0.005) for _ in range(60)])
    return "gone"


def compute(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass
