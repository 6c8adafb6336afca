"""The measurements, each by its name. Each starts what it measures anew, and gives figures."""

from __future__ import annotations

import contextlib
import functools
import http.client
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flaskchat.bench import machine, ramp
from flaskchat.bench.load import quantile
from flaskchat.bench.processes import Child
from flaskchat.bench.project import APPLICATION
from tests.bench.subjects import Flaskchat, Networked, Running, Subject
from tests.rooms import OWNER, worker_rooms

ASK = list(ramp.QUESTION)
CPU = "CPU, µs per token"
PER_EVENT = "CPU, µs per delivered event"
SERVERS = "CPU of its database servers"
MEMORY = "memory, kB per reply"
PER_STREAM = "memory, kB per stream"
SILENCE = 0.1
"""Seconds without anything to do, so that what went before has no part in what is measured."""
P50, P99 = "delay p50, ms", "delay p99, ms"
COSTS = frozenset({CPU, PER_EVENT, MEMORY, PER_STREAM})
"""Figures that are compared with the first peer's, by their ratio; the others stand for themselves."""

Figures = dict[str, float | None]


class Bench(NamedTuple):
    """What all measurements use."""

    folder: Path
    model: Child
    model_url: str
    seconds: float
    scale: float

    def count(self, number: int) -> int:
        return max(2, round(number * self.scale))

    @contextlib.contextmanager
    def load(self, port: int) -> Iterator[Child]:
        with contextlib.closing(Child("load", port, self.folder)) as child:
            yield child

    @contextlib.contextmanager
    def warm(self, running: Running, rate: float) -> Iterator[tuple[ramp.Bench, Child]]:
        """A client, once a few replies have gone through."""
        with self.load(running.port) as load:
            self.model.ask("rate", 20)
            bench = ramp.Bench(self.model, load, running.pids, lambda words: None)
            bench.step(4, 0)
            bench.end()
            self.model.ask("rate", rate)
            bench.idle = machine.memory(running.pids())
            yield bench, load
            self.model.ask("finish")


def opened(load: Child, targets: list[list[Any]], *, heads: bool = False, at_once: int = 16) -> Any:
    """:raises RuntimeError: not all of them began."""
    count = sum(target[0] for target in targets)
    patience = 30 + count / 20
    asked = {"targets": targets, "seconds": patience, "heads": heads, "at_once": at_once}
    answer = load.ask("open", asked, seconds=patience + 10)
    if answer["opened"] != count:
        raise RuntimeError(f"{answer['opened']} of {count} streams began: {answer['errors']}")
    return answer


def followers(heads: list[list[str]], each: int = 1) -> list[list[Any]]:
    """Requests that follow the runs of these responses, as the same visitors."""
    return [[each, "GET", f"/runs/{run_id}/events", "", cookie] for run_id, cookie in heads]


# -- live replies ------------------------------------------------------------------------------------------------------


def replies(number: int, rate: float) -> Callable[[Bench, Subject], Figures]:
    def measure(bench: Bench, subject: Subject) -> Figures:
        with subject.running(bench.folder, bench.model_url) as running, bench.warm(running, rate) as (steps, load):
            step = steps.step(bench.count(number), bench.seconds)
            if not step.whole:
                raise RuntimeError(f"{step.started} of {step.replies} replies began: {step.errors}")
            return {
                CPU: step.cpu_us_per_token, SERVERS: of_servers(bench, load, running),
                MEMORY: step.memory_kb_per_reply, P50: step.delay_ms_p50, P99: step.delay_ms_p99,
                "tokens/s": step.tokens_per_second,
            }  # fmt: skip

    return measure


def of_servers(bench: Bench, load: Child, running: Running) -> float | None:
    """Microseconds a token, while the replies go on."""
    if running.servers is None:
        return None
    before = machine.cpu(running.servers())
    counted = load.ask("measure", bench.seconds, seconds=bench.seconds + 30)
    used = machine.cpu(running.servers())
    return None if before is None or used is None else (used - before) * 1e6 / max(1, counted["tokens"])


def most(bench: Bench, subject: Subject) -> Figures:
    """How many replies are not too many, as near as a third."""
    first = bench.count(400)
    with subject.running(bench.folder, bench.model_url) as running, bench.warm(running, 20) as (ramps, _):
        steps = ramps.ramp(20 * first, bench.seconds, first=first)
    best = max((step for step in steps if not ramp.limit_of(step)), key=lambda step: step.replies, default=None)
    over = next(filter(ramp.limit_of, steps), None)
    return {
        "tokens/s in time": best.tokens_per_second if best else 0.0, "replies": best.replies if best else 0,
        P99: best.delay_ms_p99 if best else None, "not in time at": over.replies if over else None,
    }  # fmt: skip


def first_event(bench: Bench, subject: Subject) -> Figures:
    """One question after the other, of models that say one word, with a silence before each."""
    with subject.running(bench.folder, bench.model_url) as running, bench.warm(running, 0) as (_, load):
        took = []
        for _ in range(bench.count(100)):
            time.sleep(SILENCE)
            took.append(opened(load, [[1, *ASK]], at_once=1)["first_ms"]["p50"])
        took.sort()
        return {"question to first event, p50, ms": statistics.median(took), "p99, ms": quantile(took, 0.99)}


# -- readers -----------------------------------------------------------------------------------------------------------


def held(bench: Bench, subject: Subject) -> Figures:
    """Open streams on which nothing happens: readers of a reply whose model is silent."""
    count = bench.count(1000)
    with subject.running(bench.folder, bench.model_url) as running, bench.warm(running, 0) as (_, load):
        targets: list[list[Any]] = [[count, "GET", "/held"]]
        if isinstance(subject, Flaskchat):
            targets = followers(opened(load, [[1, *ASK]], heads=True)["heads"], count)
        time.sleep(1)  # what the first of them needed is let go of
        before = machine.memory(running.pids())
        opened(load, targets)
        time.sleep(1)
        now = machine.memory(running.pids())
        health = sorted(seconds_of(running.port, "/healthz") for _ in range(50))
        return {
            PER_STREAM: None if now is None or before is None else (now - before) / 1024 / count,
            "health p50, ms": statistics.median(health) * 1e3, "health p99, ms": (quantile(health, 0.99) or 0) * 1e3,
        }  # fmt: skip


def crowd(bench: Bench, subject: Subject) -> Figures:
    """Many readers of one reply."""
    count = bench.count(2000)
    with subject.running(bench.folder, bench.model_url) as running, bench.warm(running, 20) as (_, load):
        opened(load, followers(opened(load, [[1, *ASK]], heads=True)["heads"], count))
        return delivered(bench, load, running.pids)


def delivered(bench: Bench, load: Child, pids: Callable[[], list[int]]) -> Figures:
    load.ask("measure", ramp.SETTLE)
    cpu = machine.cpu(pids())
    counted = load.ask("measure", bench.seconds, seconds=bench.seconds + 30)
    used = machine.cpu(pids())
    cost = None if cpu is None or used is None or not counted["events"] else (used - cpu) * 1e6 / counted["events"]
    return {
        PER_EVENT: cost, P50: counted["delay_ms"]["p50"], P99: counted["delay_ms"]["p99"],
        "events/s": counted["events"] / counted["seconds"],
    }  # fmt: skip


def across(bench: Bench, subject: Subject) -> Figures:
    """Replies that one worker writes, each followed on another. These are two servers of one worker on one database,
    so that nobody has to try which of the two has taken a connection.
    """
    assert isinstance(subject, Flaskchat)
    with (
        subject.database(bench.folder) as database,
        subject.running(bench.folder, bench.model_url, **database, SECRET_KEY="the same on both") as writer,
        subject.running(bench.folder, bench.model_url, **database, SECRET_KEY="the same on both") as other,
        bench.warm(other, 20) as (_, readers),
        bench.load(writer.port) as askers,
    ):
        heads = opened(askers, [[bench.count(200), *ASK]], heads=True)["heads"]
        opened(readers, followers(heads))
        figures = delivered(bench, readers, other.pids)
        bench.model.ask("finish")
        askers.ask("rest", 30, seconds=60)
        return figures


def finished(bench: Bench, subject: Subject) -> Figures:
    """Reading a reply of 5,000 events that has ended, from its start. It was written past the server, which would take
    minutes for it.
    """
    assert isinstance(subject, Flaskchat)
    events = bench.count(5000)
    run_id = ""
    file = bench.folder / f"finished-{time.monotonic_ns()}.sqlite3"

    def write(folder: Path) -> None:
        nonlocal run_id
        application = folder / "bench_project.py"
        identity = f"FlaskChat(app, identity=lambda: {OWNER.partition(':')[2]!r})"
        application.write_text(APPLICATION.replace("FlaskChat(app)", identity), encoding="utf-8")
        with worker_rooms(file) as make:
            rooms = make()
            run = rooms.begin()
            rooms.append(run, *(f"word {number} " for number in range(events - 2)))
            rooms.finish(run, "".join(f"word {number} " for number in range(events - 2)))
            run_id = run.run_id

    database = {"FLASKCHAT_DATABASE_URL": f"sqlite:///{file}"}
    with subject.running(bench.folder, bench.model_url, write, **database) as running:
        path = f"/runs/{run_id}/events"
        seconds_of(running.port, path)
        took = sorted(seconds_of(running.port, path, events=events) for _ in range(30))
        return {"request to end, p50, ms": statistics.median(took) * 1e3, "p99, ms": (quantile(took, 0.99) or 0) * 1e3}


def seconds_of(port: int, path: str, *, events: int | None = None) -> float:
    """From the request to the end of the answer, over a connection that stands.

    :param events: how many the body must have.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.connect()
        began = time.perf_counter()
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        took = time.perf_counter() - began
        if response.status != 200 or (events is not None and body.count(b"\n\n") != events):
            raise RuntimeError(f"{path}: {response.status}, {body.count(bytes((10, 10)))} events")
        return took


# -- the start ---------------------------------------------------------------------------------------------------------


def start(bench: Bench, subject: Subject) -> Figures:
    """On a database that is there; making it, once, is another thing."""
    with contextlib.ExitStack() as stack:
        started = functools.partial(subject.running, bench.folder, bench.model_url)
        if isinstance(subject, Flaskchat):
            started = functools.partial(started, **stack.enter_context(subject.database(bench.folder)))
            with started():
                pass
        running = stack.enter_context(started())
        time.sleep(1)
        memory = machine.memory(running.pids())
        return {
            "start to first answer, s": running.started,
            "memory of an idle worker, MB": None if memory is None else memory / (1 << 20),
        }


class Measurement(NamedTuple):
    title: str
    """`{0}` stands for how many there are."""
    number: int
    measure: Callable[[Bench, Subject], Figures]
    everybody: bool = True
    """Whether the peers can do it as well."""
    networked: bool = False
    """Whether it is another thing where the data is in database servers."""
    slow: bool = False
    """Whether it is left to who asks for it by name, or for all."""

    def concerns(self, subject: Subject) -> bool:
        if isinstance(subject, Networked):
            return self.networked
        return self.everybody or isinstance(subject, Flaskchat)


ALL = {
    "replies": Measurement("{0} live replies at 20 tokens/s", 200, replies(200, 20), networked=True),
    "many": Measurement("{0} live replies at 20 tokens/s", 1000, replies(1000, 20), networked=True),
    "fast": Measurement("{0} live replies at 100 tokens/s", 200, replies(200, 100)),
    "most": Measurement("Tokens through one worker before the delay's p99 passes 200 ms", 0, most, slow=True),
    "held": Measurement("{0} open streams on which nothing happens", 1000, held),
    "crowd": Measurement("One reply at 20 tokens/s with {0} readers", 2000, crowd, everybody=False),
    "across": Measurement(
        "{0} readers on another worker than the reply's", 200, across, everybody=False, networked=True
    ),
    "first": Measurement("From question to first event, nothing else going on", 100, first_event, networked=True),
    "finished": Measurement("Reading a finished reply of {0} events from its start", 5000, finished, everybody=False),
    "start": Measurement("Start", 0, start),
}
