"""What a Redis that loses data excuses, and nothing beyond it.

While a run's worker lives, Redis is given again what it has lost, from memory. Where the worker is gone as well the run
ends as interrupted with what the log still had, and that is what whoever comes back is told: by a `reset`. Until either
has happened, a run that was live may be read with fewer events than somebody has seen, by way of a `reset` too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flaskchat.sweep import WORKER_LOST

if TYPE_CHECKING:
    from tests.server.dump import Run
    from tests.server.evidence import Case
    from tests.server.history import Event, Reading

LOSSES = ("redis flushall", "redis rollback", "redis failover")
"""The faults after which Redis has less than it had."""
TERMINAL = ("done", "error", "stopped", "interrupted")


def bereft(case: Case, run: Run) -> bool:
    """Whether a part of the run may be gone for good: it was live when Redis lost data, and its worker went as well."""
    log = case.logs.get(run.id)
    lost = bool(log) and log[-1].event == "interrupted" and log[-1].json["message"] == WORKER_LOST
    return run.state == "interrupted" and lost and _live_at_a_loss(case, run)


def _live_at_a_loss(case: Case, run: Run, until: float = math.inf) -> bool:
    began = run.started_at - case.history.wall_offset
    ended = math.inf if run.ended_at is None else run.ended_at - case.history.wall_offset
    return any(
        fault.what in LOSSES and began <= fault.until and fault.at < min(ended, until) for fault in case.history.faults
    )


def before(case: Case, run_id: str, in_time: float) -> dict[int, Event]:
    """What was seen of a run, and is gone with Redis: events in the place of its end, and after it. They are held
    against each other: there was one past before the loss, as there is one after it.
    """
    run = case.dump.runs.get(run_id)
    if run is None or not bereft(case, run):
        return {}
    log = {event.seq: event.what for event in case.logs[run_id]}
    ended = math.inf if run.ended_at is None else run.ended_at - case.history.wall_offset
    found: dict[int, Event] = {}
    for reading in case.by_run[run_id]:
        for event in reading.events:
            if event.seq < len(log) or log.get(event.seq) == event.what:
                continue
            first = found.setdefault(event.seq, event)
            if first.what != event.what:
                words = f"before Redis lost it, {event.event} {event.data[:60]!r}, but also {first.data[:60]!r}"
                case.say("same", words, run_id, event.seq, reading.client)
            if event.event in TERMINAL:
                case.say("end", f"{event.event} was seen, and then it was interrupted", run_id, event.seq)
            if event.at > ended + in_time:
                case.say("lost", "was seen long after the run's end without it", run_id, event.seq, reading.client)
    return found


def excused(case: Case, reading: Reading) -> bool:
    """Whether this reader may have been told of less than had been seen."""
    run = case.dump.runs.get(reading.run_id)
    return run is not None and _live_at_a_loss(case, run, reading.opened_at)
