"""The checker of histories: what clients saw against the log, the store and the model's own count.

`check` returns every violation there is, so that a test prints them all; `judge` waits for the runs' ends, dumps,
checks and fails with the list. The rules, each with the promise that it holds:

    wire      every byte of a stream is as the contract has it, and nothing comes after the terminal event
    resume    a stream from n begins with n + 1 (P2)
    order     within a stream each event is the next: none twice, none missing (P2)
    same      all readers of a run see the same events, byte for byte (P2)
    lost      what anybody saw is in the log (P1)
    log       a run's log is dense, begins with start, and only its owner writes it, and nobody past its end (fencing)
    reset     comes only where continuity cannot be shown, and has the text and the seq of the log
              (for a run that was live when Redis lost data, losses.py says what else may be)
    end       every accepted run has exactly one terminal event; the store says the same (P3)
    late      within the time allowed of what ended it (P3)
    text      deltas joined are the stored text (P2)
    model     a run's text is what the model sent: a part of it from its beginning, all of it where it is done
    once      one run per client id, and one generation at the model (P4)
    owner     nothing of one owner's is at another's (P9)
    answer    no answer outside the contract: a 500, a 404 for what is one's own, a 204 before the end
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from flaskchat.log.base import Append
from tests.conftest import Server
from tests.server import counts, losses
from tests.server.badmodel import Running
from tests.server.client import TERMINAL
from tests.server.dump import Dump, Run, Tap
from tests.server.evidence import Case, Violation, cursor_of, text_of_log
from tests.server.history import Event, Fault, History, Reading, Wire

IN_TIME = 15.0
"""Seconds from a fault to the end of the runs that it ended (P3)."""


def check(
    history: History, dump: Dump, stats: dict[str, Any] | None = None, *, in_time: float | None = IN_TIME,
    refusals: Iterable[int] = (409, 422, 429, 503),
) -> list[Violation]:  # fmt: skip
    """All that is wrong.

    :param stats: of the misbehaving model (`Running.stats()`); without them nothing is counted there.
    :param in_time: seconds that runs of a killed or stopped worker have to end; None where the wall clock was moved.
    :param refusals: statuses that may answer a POST in place of a stream.
    """
    case = Case(history, dump, stats)
    _logs(case)
    for run_id in list(case.by_run):
        case.gone[run_id] = losses.before(case, run_id, in_time if in_time is not None else IN_TIME)
    _journal(case)
    for reading in history.readings:
        _stream(case, reading)
    for run_id, readings in case.by_run.items():
        _same(case, run_id, readings)
    for run in dump.runs.values():
        _ended(case, run)
        if in_time is not None:
            _in_time(case, run, in_time)
    _texts(case)
    counts.once(case)
    counts.owners(case)
    counts.answers(case, frozenset(refusals))
    return case.found


def judge(
    history: History, server: Server, model: Running | None = None, *, tap: Tap | None = None, seconds: float = 60,
    **more: Any,
) -> None:  # fmt: skip
    """Wait until every run has ended (at most `seconds`), then check and fail with all violations, one a line.

    :param more: as `check` takes it.
    """
    until = time.monotonic() + seconds
    dump = Dump.of(server, tap)
    while time.monotonic() < until and any(run.state == "running" for run in dump.runs.values()):
        time.sleep(0.05)
        dump = Dump.of(server, tap)
    history.close()
    found = check(history, dump, model.stats() if model is not None else None, **more)
    assert not found, f"{len(found)} violations:\n" + "\n".join(map(str, found))


# -- the log ---------------------------------------------------------------------------------------------------


def _logs(case: Case) -> None:
    for run_id, frames in case.dump.frames.items():
        wire = Wire()
        case.logs[run_id] = wire.feed(frames, 0.0)
        case.whole.add(run_id)
        if wire.bad is not None or wire.rest:
            case.say("log", f"stored frames are damaged: {(wire.bad or wire.rest)[:80]!r}", run_id)
    for run_id, events in case.logs.items():
        seqs = [event.seq for event in events]
        if seqs != list(range(1, len(seqs) + 1)):
            case.say("log", f"seqs are not dense from 1: {_gap(seqs)}", run_id)
        if not events or events[0].event != "start":
            case.say("log", "does not begin with start", run_id)
        ends = [event.seq for event in events if event.event in TERMINAL]
        if len(ends) != 1 or ends[0] != len(events):
            case.say("end", f"terminal events at {ends} of {len(events)} events", run_id)


def _journal(case: Case) -> None:
    """Each run's appends follow each other, are its owner's, and stop at its end."""
    at: dict[str, int] = {}
    ended: dict[str, int] = {}
    writers: dict[str, set[str]] = defaultdict(set)
    past: dict[str, list[Event]] = defaultdict(list)
    said: dict[str, list[bytes]] = defaultdict(list)
    bereft = {run_id for run_id in (*case.dump.runs, *case.by_run) if losses.bereft(case, run_id)}
    for row_id, (worker, entries) in sorted(case.dump.journal.items()):
        for entry in entries:
            if case.dump.repeats:
                entry = _without_known(entry, said[entry.run_id])
                if not entry.frames:
                    continue
            run_id, last = entry.run_id, entry.seq + len(entry.frames) - 1
            if run_id in bereft:
                continue  # what stood there went with Redis, and the end stands after what was left
            if run_id in ended:
                case.say("log", f"{worker} appended after the end, in row {row_id}", run_id, entry.seq)
                continue
            if run_id in at and entry.seq != at[run_id] + 1:
                kind = "again" if entry.seq <= at[run_id] else "after a gap"
                case.say("log", f"{worker} appended {kind} (before: {at[run_id]}), row {row_id}", run_id, entry.seq)
            at[run_id] = last
            said[run_id] += entry.frames
            wire = Wire()
            past[run_id] += wire.feed(b"".join(entry.frames), 0.0)
            if entry.ended:
                ended[run_id] = row_id
            if worker != "control":
                writers[run_id].add(worker)
    for run_id, workers in writers.items():
        run = case.dump.runs.get(run_id)
        if len(workers) > 1 or (run is not None and workers != {run.worker_id}):
            case.say("log", f"written by {sorted(workers)}", run_id)
    for run_id, events in past.items():
        stored = case.logs.get(run_id)
        if stored is None:
            if events and events[0].seq == 1:
                case.logs[run_id] = events
            continue
        same = {event.seq: event.what for event in stored}
        for event in events:
            if same.get(event.seq) != event.what:
                case.say("lost", "is in the journal, but not in what was stored", run_id, event.seq)


def _without_known(entry: Append, said: list[bytes]) -> Append:
    """What is new in an append that was made once more, since the answer to the first was lost."""
    known = said[entry.seq - 1 :]
    if not known or entry.frames[: len(known)] != known[: len(entry.frames)]:
        return entry
    return Append(entry.run_id, entry.seq + len(known), entry.frames[len(known) :], entry.ended)


# -- what clients saw ------------------------------------------------------------------------------------------


def _stream(case: Case, reading: Reading) -> None:
    run_id, client = reading.run_id, reading.client
    if reading.wire.bad is not None:
        case.say("wire", f"not a frame of the contract: {reading.wire.bad[:80]!r}", run_id, reading.last, client)
    if reading.how == "end" and reading.wire.rest:
        case.say("wire", f"ended within a frame: {reading.wire.rest[:80]!r}", run_id, reading.last, client)
    if reading.status != 200:
        return
    cursor = cursor_of(reading.cursor)
    events = reading.events
    if events and events[0].event == "reset":
        _reset(case, reading, events[0], cursor)
        cursor = int(events[0].json["seq"])
        events = events[1:]
    elif cursor is None and events:
        case.say("reset", f"none for the cursor {reading.cursor!r}", run_id, events[0].seq, client)
        cursor = events[0].seq - 1
    assert cursor is not None or not events
    if events and events[0].seq != (cursor or 0) + 1:
        case.say("resume", f"from {cursor}: began with {events[0].seq}", run_id, events[0].seq, client)
    for before, event in itertools.pairwise(events):
        if event.event == "reset":
            case.say("reset", "in the middle of a stream", run_id, before.seq, client)
        elif event.seq != before.seq + 1:
            how = "twice or out of order" if event.seq <= before.seq else "after a gap"
            case.say("order", f"{event.seq} came {how}, after {before.seq}", run_id, event.seq, client)
        if before.event in TERMINAL:
            case.say("wire", f"{event.event} came after the terminal event", run_id, event.seq, client)


def _reset(case: Case, reading: Reading, reset: Event, cursor: int | None) -> None:
    log, gone = case.logs.get(reading.run_id), case.gone[reading.run_id]
    seq = int(reset.json["seq"])
    known = max(
        (e.seq for r in case.by_run[reading.run_id] for e in r.events if e.seq and e.at < reading.opened_at),
        default=0,
    )
    if cursor is not None and cursor <= known and not losses.excused(case, reading):
        words = f"though somebody had seen {known} before; the cursor was {cursor}"
        case.say("reset", words, reading.run_id, seq, reading.client)
    if log and seq > log[-1].seq and reading.run_id not in case.dump.runs:
        # Of what was deleted, the log may have been read in part.
        if not str(reset.json["text"]).startswith(text_of_log(log)):
            case.say("reset", "its text is not that of the log", reading.run_id, seq, reading.client)
    elif log is not None and not losses.told_before(case, reading, reset):
        pasts = [text_of_log(event for event in log if event.seq <= seq)]
        if seq in gone:  # told from a memory that Redis had outlived
            pasts.append(text_of_log([*log[:-1], *(gone[n] for n in sorted(gone) if n <= seq)]))
        if reset.json["text"] not in pasts:
            case.say("reset", "its text is not that of the log", reading.run_id, seq, reading.client)
        if log and seq > log[-1].seq and seq not in gone:
            case.say("reset", f"its seq is past the log's {log[-1].seq}", reading.run_id, seq, reading.client)


def _same(case: Case, run_id: str, readings: list[Reading]) -> None:
    log = {event.seq: event.what for event in case.logs.get(run_id, ())}
    gone = case.gone[run_id]
    seen: dict[int, tuple[Event, str]] = {}
    for reading in readings:
        for event in reading.events:
            if not event.seq or (event.seq in gone and gone[event.seq].what == event.what):
                continue
            first, who = seen.setdefault(event.seq, (event, reading.client))
            if first.what != event.what:
                words = f"{event.event} {event.data[:60]!r}, but {first.event} {first.data[:60]!r} at {who}"
                case.say("same", words, run_id, event.seq, reading.client)
    kept = run_id in case.dump.runs  # of what was deleted, the journal may have been read in part
    for seq, (event, who) in seen.items():
        if seq not in log:
            if kept and log:
                case.say("lost", "was seen, and is not in the log", run_id, seq, who)
        elif log[seq] != event.what:
            case.say("lost", "differs from the log", run_id, seq, who)


# -- how runs ended --------------------------------------------------------------------------------------------


def _ended(case: Case, run: Run) -> None:
    message = case.dump.messages.get(run.message_id)
    log = case.logs.get(run.id, [])
    if run.state == "running":
        case.say("end", "has not ended", run.id)
    elif run.id not in case.whole:
        case.say("end", f"is {run.state}, and its events are not in the store", run.id)
    elif log:
        if log[-1].event != run.state:
            case.say("end", f"the run is {run.state}, its last event {log[-1].event}", run.id, log[-1].seq)
        if log[-1].seq != run.last_seq:
            case.say("end", f"the store says {run.last_seq} events, the log has {log[-1].seq}", run.id)
    if message is None:
        case.say("end", "its message is not there", run.id)
    elif message.run_id == run.id and message.status != run.state:
        case.say("end", f"the run is {run.state}, its message {message.status}", run.id)


def _in_time(case: Case, run: Run, limit: float) -> None:
    """Whoever's worker was killed has so many seconds to end."""
    began = run.started_at - case.history.wall_offset
    ended = [e.at for reading in case.by_run[run.id] for e in reading.events if e.event in TERMINAL]
    if run.ended_at is not None:
        ended.append(run.ended_at - case.history.wall_offset)
    end = min(ended, default=time.monotonic())
    for fault in case.history.faults:
        if fault.until > fault.at and run.state != "interrupted":
            continue  # its worker came back before it was counted out, and went on
        if fault.pid and fault.pid in case.workers[run.id] and began <= fault.at < end:
            over = _last_of(case.history.faults, fault, limit)
            if end - over > limit:
                words = f"ended {end - fault.at:.1f} s after {fault.what} of its worker {fault.pid}"
                if over > fault.at:
                    words += f", {end - over:.1f} s after the last fault that could delay it"
                case.say("late", words, run.id)


def _last_of(faults: list[Fault], fault: Fault, limit: float) -> float:
    """When the faults were over that followed this one within its time: whoever was to end its runs is hit as well."""
    over = fault.at
    for other in sorted(faults):
        if other != fault and fault.at < other.until and other.at < over + limit:
            over = max(over, other.until)
    return over


def _texts(case: Case) -> None:
    runs: dict[str, list[Run]] = defaultdict(list)
    for run in case.dump.runs.values():
        runs[run.message_id].append(run)
    for message_id, writers in runs.items():
        message = case.dump.messages.get(message_id)
        if message is None or any(run.state == "running" for run in writers):
            continue
        said = "".join(text_of_log(case.logs.get(run.id, ())) for run in writers)
        if said != message.text:
            words = f"the deltas joined ({len(said)} characters) are not the stored text ({len(message.text)})"
            case.say("text", f"{words}; they part at {_parting(said, message.text)}", writers[-1].id)
    tags = counts.tags(case)
    for run_id, log in case.logs.items():
        tag = tags.get(run_id)
        if tag is None or tag not in case.history.expected:
            continue
        sent, said = case.history.expected[tag], text_of_log(log)
        if not sent.startswith(said):
            case.say("model", f"its text parts from what the model sent at {_parting(sent, said)}", run_id)
        elif log and log[-1].event == "done" and said != sent:
            case.say("model", f"is done with {len(said)} characters of the model's {len(sent)}", run_id)


def _gap(seqs: list[int]) -> str:
    with contextlib.suppress(StopIteration):
        at = next(n for n, seq in enumerate(seqs, 1) if seq != n)
        return f"{seqs[at - 1]} stands where {at} should"
    return "empty"


def _parting(one: str, other: str) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
