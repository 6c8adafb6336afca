"""What a Redis that loses data excuses, and nothing beyond it.

While a run's worker lives, Redis is given again what it has lost, from memory. Where the worker is gone as well the run
ends as interrupted with what the log still had, and that is what whoever comes back is told: by a `reset`. Until either
has happened, a run that was live may be read with fewer events than somebody has seen, by way of a `reset` too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from flaskchat.sweep import WORKER_LOST
from tests.server import counts
from tests.server.evidence import text_of_log

if TYPE_CHECKING:
    from tests.server.evidence import Case
    from tests.server.history import Event, Reading

LOSSES = ("redis flushall", "redis rollback", "redis failover")
"""The faults after which Redis has less than it had."""
TERMINAL = ("done", "error", "stopped", "interrupted")


class Life(NamedTuple):
    """Of a run; of one that was deleted, as far as anybody saw it."""

    began: float
    ended: float
    """The end of time, where it has not."""
    end: Event | None
    """Its terminal event."""


def _life(case: Case, run_id: str) -> Life:
    run = case.dump.runs.get(run_id)
    if run is not None:
        log = case.logs.get(run_id)
        ended = math.inf if run.ended_at is None else run.ended_at - case.history.wall_offset
        return Life(run.started_at - case.history.wall_offset, ended, log[-1] if log else None)
    seen = [event for reading in case.by_run[run_id] for event in reading.events]
    ends = [event for event in seen if event.event in TERMINAL]
    lost = [event for event in ends if _lost(event)]  # whoever saw another is not excused by it, see `before`
    began = min((event.at for event in seen), default=math.inf)
    return Life(began, min((event.at for event in ends), default=math.inf), (lost or ends or [None])[0])


def _lost(end: Event | None) -> bool:
    return end is not None and end.event == "interrupted" and end.json["message"] == WORKER_LOST


def bereft(case: Case, run_id: str) -> bool:
    """Whether a part of the run may be gone for good: it was live when Redis lost data, and its worker went as well."""
    run, life = case.dump.runs.get(run_id), _life(case, run_id)
    return (run is None or run.state == "interrupted") and _lost(life.end) and _live_at_a_loss(case, life)


def _live_at_a_loss(case: Case, life: Life, until: float = math.inf) -> bool:
    return any(
        fault.what in LOSSES and life.began <= fault.until and fault.at < min(life.ended, until)
        for fault in case.history.faults
    )


def before(case: Case, run_id: str, in_time: float) -> dict[int, Event]:
    """What was seen of a run, and is gone with Redis: events in the place of its end, and after it. They are held
    against each other: there was one past before the loss, as there is one after it.
    """
    end, ended = _life(case, run_id).end, _life(case, run_id).ended
    if end is None or not bereft(case, run_id):
        return {}
    found: dict[int, Event] = {}
    for reading in case.by_run[run_id]:
        for event in reading.events:
            if event.seq < end.seq or event.what == end.what:
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
    return _live_at_a_loss(case, _life(case, reading.run_id), reading.opened_at)


def told_before(case: Case, reading: Reading, reset: Event) -> bool:
    """Whether a `reset` told of what Redis lost after that, and what nobody has seen but in it. It has to fit what was
    left, and what the model sent.
    """
    run_id = reading.run_id
    life, seq, text = _life(case, run_id), int(reset.json["seq"]), str(reset.json["text"])
    if life.end is None or seq < life.end.seq or reading.opened_at > life.ended or not bereft(case, run_id):
        return False
    if all(number in case.gone[run_id] for number in range(life.end.seq, seq + 1)):
        return False  # others have seen it too, and say what its text has to be
    sent = case.history.expected.get(counts.tags(case).get(run_id, ""), "")
    return text.startswith(text_of_log(case.logs[run_id])) and sent.startswith(text)
