"""More and more live replies, until the worker does not keep up: what each step costs, and how many it holds.

Every step begins with new replies, so that all are of the same age when they are measured, and ends them as a model
does that is done.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from typing import Any

import msgspec

from ..config import Settings
from . import machine, project
from .load import Target
from .loop import raise_files
from .processes import Child, Server, place, stand_in

LIMIT = 200.0
"""Milliseconds of delay, p99, above which a reply does not seem live any more."""
FULL = 0.9
"""Share of a core from which a process with one loop is at its limit."""
IDLE = 0.5
"""Share of a core below which it is not the worker that came to its limit."""
FIRST = 50
NEAR = 1.35
"""As near as the smallest number that is too many comes to the largest that is not."""
SETTLE = 0.5
"""Seconds after the last reply of a step began, before anything is counted."""
CALM = 5.0

QUESTION = Target("POST", "/conversation", '{"message": {"id": "{id}", "text": "How are you?"}}')

Say = Callable[[str], None]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    rate: float = 20.0
    """Tokens a second of one reply."""
    seconds: float = 5.0
    """That are counted in each step."""
    replies: int | None = None
    """At most; absent: until the limit."""
    workers: int = 1


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What so many live replies cost. CPU is in cores: 0.5 is half of one."""

    replies: int
    started: int
    errors: dict[str, int]
    seconds: float
    tokens_per_second: float
    cpu_us_per_token: float | None
    """Of the workers, all in: from the model's socket to the clients'."""
    cpu: float | None
    memory_kb_per_reply: float | None
    """Pss, above what the workers had before the first reply."""
    delay_ms_p50: float | None
    delay_ms_p99: float | None
    first_event_ms_p50: float | None
    """From the question to the reply's first event, while the others of the step begin as well."""
    model_cpu: float
    model_lag_ms: float
    """How late the stand-in has sent a token, at most."""
    client_cpu: float

    @property
    def whole(self) -> bool:
        return self.started == self.replies and not self.errors

    @property
    def in_time(self) -> bool:
        return self.whole and self.delay_ms_p99 is not None and self.delay_ms_p99 <= LIMIT


class Report(msgspec.Struct, frozen=True, kw_only=True):
    options: Options
    machine: machine.Machine
    idle_memory_kb: float | None
    """Pss of the workers before the first reply."""
    steps: list[Step]
    """From few replies to many."""
    held: int
    """Live replies at the largest step whose delay was below the limit."""
    ended_by: str
    """What ended the ramp: delay, model, client, refused, descriptors or replies."""
    verdict: str
    notes: list[str]


def sizes(most: int, first: int = FIRST) -> Generator[int, bool, None]:
    """Replies of one step after the other, to be sent whether the last were too many.

    50, 100, 200, 400 ..., `most` at last; once they are too many, halfway between these and the last that were not.
    """
    held, over, size = 0, 0, min(first, most)
    while True:
        if (yield size):
            over = size
        else:
            held = size
        if not over and held < most:
            size = min(2 * held, most)
        elif held and over > NEAR * held:
            size = (held + over) // 2
        else:
            return


class Bench:
    """A running server, its stand-in and a client.

    :param say: is told what is done at the moment.
    """

    def __init__(self, model: Child, load: Child, pids: Callable[[], list[int]], say: Say) -> None:
        self._model, self._load, self._pids, self._say = model, load, pids, say
        self.idle = machine.memory(pids())

    def step(self, count: int, seconds: float, targets: list[list[Any]] | None = None) -> Step:
        """:param targets: how often which request (see `load`); absent: `count` questions."""
        what = f"{count:,} live replies"

        def progress(done: int) -> None:
            self._say(f"{what}: {done:,} have begun")

        progress(0)
        patience = 10 + count / 50  # a worker that is far over its limit would take minutes
        asked = {"targets": targets or [[count, *QUESTION]], "seconds": patience}
        opened = self._load.ask("open", asked, seconds=patience + 10, progress=progress)
        self._load.ask("measure", SETTLE, seconds=30)  # and forgotten
        self._say(f"{what}: counting for {seconds:g} s")
        stats, cpu = self._model.ask("stats"), machine.cpu(self._pids())
        counted = self._load.ask("measure", seconds, seconds=seconds + 30)
        used, now = machine.cpu(self._pids()), self._model.ask("stats")
        memory = machine.memory(self._pids())
        took, tokens = max(counted["seconds"], 1e-3), counted["tokens"]
        cpu = None if cpu is None or used is None else used - cpu
        memory = None if memory is None or self.idle is None else memory - self.idle
        return Step(
            replies=count, started=opened["opened"], errors=opened["errors"], seconds=took,
            tokens_per_second=tokens / took,
            cpu_us_per_token=None if cpu is None or not tokens else cpu * 1e6 / tokens,
            cpu=None if cpu is None else cpu / took,
            memory_kb_per_reply=None if memory is None else memory / 1024 / count,
            delay_ms_p50=counted["delay_ms"]["p50"], delay_ms_p99=counted["delay_ms"]["p99"],
            first_event_ms_p50=opened["first_ms"]["p50"],
            model_cpu=(now["cpu_s"] - stats["cpu_s"]) / took, model_lag_ms=now["lag_ms"],
            client_cpu=counted["cpu_s"] / took,
        )  # fmt: skip

    def ramp(self, most: int, seconds: float, *, first: int = FIRST, workers: int = 1) -> list[Step]:
        """More and more replies, until they are too many, and how many fewer are not.

        :returns: from few replies to many.
        """
        steps: list[Step] = []
        asked = sizes(most, first)
        size = next(asked)
        with contextlib.suppress(StopIteration):
            while True:
                step = self.step(size, seconds)
                if limit_of(step) == "delay" and step.cpu is not None and step.cpu < IDLE * workers:
                    self.end()  # a worker that hardly computes was held up by something else, which may be over
                    step = self.step(size, seconds)
                steps.append(step)
                size = asked.send(bool(limit_of(step)))
                self.end()
        return sorted(steps, key=lambda step: step.replies)

    def end(self) -> dict[str, int]:
        """End all replies, as the model does, and wait until nothing is left to do.

        :returns: what the client has received in all.
        """
        self._say("ending the replies")
        self._model.ask("finish")
        rested: dict[str, int] = self._load.ask("rest", 30, seconds=60)
        until, before = time.monotonic() + CALM, machine.cpu(self._pids())
        while time.monotonic() < until:
            time.sleep(0.2)
            now = machine.cpu(self._pids())
            if before is None or now is None or now - before < 0.03:
                break
            before = now
        return rested


def measure(options: Options, host: Settings, say: Say) -> Report:
    """Run the ramp.

    :raises CannotMeasure: a process did not start or has died.
    """
    this = machine.this_machine()
    most, ended_by = options.replies, "replies"
    with place() as (folder, stack):
        fits = options.workers * (raise_files() - 200) * 9 // 20  # two descriptors each, as `serving` reckons
        if most is None or most > fits:
            most, ended_by = fits, "descriptors"
        say("starting the worker" if options.workers == 1 else f"starting {options.workers} workers")
        model, url = stack.enter_context(stand_in(folder))
        project.make(folder, project.settings_for(host, url))
        server = stack.enter_context(contextlib.closing(Server(folder, options.workers)))
        load = stack.enter_context(contextlib.closing(Child("load", server.port, folder)))
        server.wait()
        model.ask("rate", options.rate)
        bench = Bench(model, load, server.workers, say)
        bench.step(options.workers * 4, 0)  # what is loaded with the first replies belongs to none of them
        bench.end()
        bench.idle = machine.memory(server.workers())
        steps = bench.ramp(most, options.seconds, workers=options.workers)
    ended_by = next(filter(None, map(limit_of, steps)), ended_by)
    held = max((step.replies for step in steps if step.in_time), default=0)
    notes = [project.left_alone(host)]
    if steps[-1].cpu is None or bench.idle is None:
        notes.append("CPU and memory cannot be measured here: there is no /proc as on Linux.")
    if this.busy:
        notes.append(
            f"Something else was computing (load average {this.load:.1f} on {this.cores} cores): on a quiet machine "
            "the figures are lower."
        )
    return Report(
        options=options, machine=this, idle_memory_kb=None if bench.idle is None else bench.idle / 1024, steps=steps,
        held=held, ended_by=ended_by, verdict=verdict(options, steps, held, ended_by, this.cores),
        notes=[note for note in notes if note],
    )  # fmt: skip


def limit_of(step: Step) -> str:
    """What has come to its limit; empty if nothing has.

    The stand-in and the client first: what they do not send or count in time, they would find late.
    """
    if step.model_cpu >= FULL:
        return "model"
    if step.client_cpu >= FULL:
        return "client"
    if not step.whole:
        return "refused"
    return "" if step.in_time else "delay"


def verdict(options: Options, steps: list[Step], held: int, ended_by: str, cores: int) -> str:
    """How many live replies a worker holds, and what happened then, in a sentence or two."""
    last = next(filter(limit_of, steps), steps[-1])
    who = "One worker holds" if options.workers == 1 else f"{options.workers} workers hold"
    best = next((step for step in steps if step.replies == held), None)
    if best is None:
        words = f"{who} fewer than {last.replies:,} live replies at {options.rate:g} tokens/s"
    else:
        words = f"{who} {held:,} live replies at {options.rate:g} tokens/s with a delay (p99) of {_ms(best)}"
    there = f"at {last.replies:,}" if best is not None else "there"
    if ended_by == "replies":
        return f"{words}; no more were asked for."
    if ended_by == "descriptors":
        return f"{words}; more do not fit into the number of files that may be open here (ulimit -n)."
    if ended_by in ("model", "client"):
        what = "the stand-in model" if ended_by == "model" else "the client that counts"
        return f"{words}; {there} {what} came to its own limit, so a worker may hold more."
    if ended_by == "refused":
        why = ", ".join(f"{error}: {times:,}" for error, times in last.errors.items()) or "no answer in time"
        return f"{words}; {there} not all could begin ({why})."
    words += f"; {there} it rises to {_ms(last)}, over {LIMIT:.0f} ms." if last.delay_ms_p99 else "; then none came."
    others = last.model_cpu + last.client_cpu
    if last.cpu is not None and last.cpu < 0.8 * options.workers:
        words += f" The worker computed only {last.cpu:.0%} of the time then"
        if last.cpu + others > FULL * cores:
            words += f": the stand-in and the client took the rest of the {cores} cores, so it would hold more."
        else:
            words += ": something else on this machine slowed it."
    return words


def _ms(step: Step) -> str:
    return "nothing" if step.delay_ms_p99 is None else f"{step.delay_ms_p99:.0f} ms"

