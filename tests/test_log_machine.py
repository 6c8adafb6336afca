"""A seeded state machine over log and store: workers that crash, freeze and are taken over, against one simple model.

hypothesis chooses the steps and shrinks what fails to the shortest history. The short form takes always the same ones;
the long form many more, longer ones and each time others. A step is all that one worker does at once: a request, a
tick, a round of the sweep; a crash may come at any commit within it (`machine.POINTS`). What is held, whatever happens:

- a reader's events are dense, the same for every reader, and never fewer than somebody has seen (P1, P2);
- the stored events and text are those events; one terminal event, the last one, which is the state that is stored (P3);
- a run ends as something explains: done with all that its model said, else with a beginning of it;
- the same client id is the same run on whatever worker, asked of the model once (P4);
- after everybody has crashed, a new worker has ended all runs within the rounds that make up 15 seconds (P3).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from flaskchat import sse, sweep, tasks
from flaskchat.errors import ModelRaised, Unavailable
from flaskchat.log import journal
from flaskchat.models import Delta, Done
from flaskchat.store.base import Command
from tests.machine import OWNER, POINTS, Backend, Crash, Following, Models, Run, SQLite, Worker
from tests.server.client import TERMINAL, text

WORKERS = 3
NUMBER = st.integers(0, WORKERS - 1)
LONG = sweep.GONE_AFTER + 1
"""Rounds after which a worker that stands still is counted out."""


class Hosts(RuleBasedStateMachine):
    """The steps. Bundles hold what they are about: runs and readers; workers are picked among those that live."""

    make: Callable[[Path], Backend]
    home: Path
    runs = Bundle("runs")
    readers = Bundle("readers")

    @initialize()
    def open(self) -> None:
        self.host = type(self).make(Path(tempfile.mkdtemp(dir=self.home)))
        self.models = Models()
        self.alive: list[Worker] = []
        self.known: list[Run] = []
        self.following: list[Following] = []
        self.asked = 0
        self.start()

    # -- processes ---------------------------------------------------------------------------------------------------

    def start(self) -> Worker:
        self.alive.append(Worker(self.host, self.models))
        return self.alive[-1]

    def worker(self, number: int) -> Worker:
        """One that runs; there is always one."""
        running = [worker for worker in self.alive if not worker.frozen] or [self.start()]
        return running[number % len(running)]

    def bury(self, worker: Worker) -> None:
        self.alive.remove(worker)
        self.endanger(worker)
        for one in self.following:
            if one.worker is worker:
                one.reader = one.worker = None
        worker.kill()

    def endanger(self, worker: Worker) -> None:
        for run in self.known:
            if run.worker is worker:
                run.may_end.add("interrupted")

    @contextlib.contextmanager
    def may_crash(self, worker: Worker) -> Iterator[None]:
        """What happens within is this worker's, which may be gone before its end; or refused by a database in use."""
        try:
            yield
        except Crash:
            self.bury(worker)
        except Unavailable:
            pass

    @precondition(lambda self: len(self.alive) < WORKERS)
    @rule()
    def a_worker_starts(self) -> None:
        self.start()

    @rule(number=NUMBER, point=st.sampled_from((None, *POINTS)), act=st.sampled_from(["tick", "sweep", "ask"]))
    def a_worker_crashes(self, number: int, point: str | None, act: str) -> None:
        """At once, or at a point within the next thing that it does."""
        worker = self.worker(number)
        if point is None:
            return self.bury(worker)
        for run in self.known:
            if worker.has(run.run_id):
                self.put(run, Delta("last "))
        worker.crash_at = point
        with self.may_crash(worker):
            if act == "ask":
                self.a_question(number)
            else:
                worker.tick() if act == "tick" else worker.sweep()
        worker.crash_at = None

    @rule(number=NUMBER, rounds=st.sampled_from([1, LONG]), says=st.booleans())
    def a_worker_is_held_up(self, number: int, rounds: int, says: bool) -> None:
        """For as long as so many rounds of the others, and for the longer time it is taken over. Then it goes on."""
        worker = self.worker(number)
        if len(self.alive) < 2:
            self.start()
        worker.frozen = True
        if rounds == LONG:
            self.endanger(worker)
        if says:
            for run in self.known:
                if worker.has(run.run_id):
                    self.put(run, Delta("late "))
        self.time_passes(rounds)
        worker.frozen = False
        self.tick(worker)

    # -- questions ---------------------------------------------------------------------------------------------------

    def command(self, **more: Any) -> Command:
        self.asked += 1
        return Command(client_id=f"client-{self.asked}", body_hash="h", **more)

    def begin(self, worker: Worker, command: Command, before: str = "") -> Run | None:
        with self.may_crash(worker):
            begun, live = worker.runtime.runs.start(OWNER, command)
            assert (live is not None) == begun.created
            run = Run(begun, command, before, worker)
            self.known.append(run)
            return run
        return None

    @rule(target=runs, number=NUMBER)
    def a_question(self, number: int) -> Any:
        worker, command = self.worker(number), self.command(action="send", text="Hi")
        run = self.begin(worker, command)
        if run is None:  # crashed or refused: it may have begun all the same, and whoever asked asks again
            return self.repeat(command)
        return run

    def repeat(self, command: Command, before: str = "") -> Run:
        worker = self.start()
        known = worker.runtime.store.known(OWNER, command)
        run = self.begin(worker, command, before)
        assert run is not None
        if known is not None:
            assert run.run_id == known.run_id
            run.may_end.add("interrupted")
        return run

    @rule(run=runs, number=NUMBER)
    def the_same_question_again(self, run: Run, number: int) -> None:
        worker = self.worker(number)
        with self.may_crash(worker):
            begun, live = worker.runtime.runs.start(OWNER, run.command)
            assert live is None
            assert (begun.run_id, begun.created) == (run.run_id, False)

    @rule(target=runs, run=runs, number=NUMBER, said=st.booleans())
    def a_reply_is_stopped_and_continued(self, run: Run, number: int, said: bool) -> Any:
        """As far as it can be: one that has ended by itself cannot."""
        worker = self.worker(number)
        last = [one for one in self.known if one.message_id == run.message_id][-1]
        if said:
            self.put(last, Delta("before Stop "))
        owner = self.owner_of(last)
        if owner is not None:
            self.tick(owner)
        self.stop_is_asked_for(last, number)
        self.time_passes(1)
        before = ""
        with self.may_crash(worker):
            row = worker.runtime.store.run(last.run_id, OWNER)
            assert row is not None
            if row.state not in ("stopped", "interrupted"):
                return multiple()
            before = self.message(worker, last)["text"]
            command = self.command(action="continue", message_id=run.message_id)
            return self.begin(worker, command, before) or self.repeat(command, before)
        return multiple()

    # -- the model ---------------------------------------------------------------------------------------------------

    def owner_of(self, run: Run) -> Worker | None:
        return next((worker for worker in self.alive if worker.has(run.run_id)), None)

    def put(self, run: Run, *events: Any) -> None:
        source, owner = self.models.sources.get(run.run_id), self.owner_of(run)
        if source is None or owner is None or {"done", "error"} & run.may_end:
            return
        source.waiting += events
        for event in events:
            run.put += event.text if isinstance(event, Delta) else ""
            if isinstance(event, Done):
                run.may_end.add("done")
        owner.runtime.pump.touch(owner.runtime.pump.feeds[run.run_id])

    @rule(run=runs, said=st.sampled_from(["a", "word ", "ü€😀", "\n\ndata: forged\n\n"]), committed=st.booleans())
    def the_model_speaks(self, run: Run, said: str, committed: bool) -> None:
        self.put(run, Delta(said))
        owner = self.owner_of(run)
        if committed and owner is not None:
            self.tick(owner)

    @rule(run=runs, fails=st.booleans(), committed=st.booleans())
    def the_model_ends(self, run: Run, fails: bool, committed: bool) -> None:
        owner = self.owner_of(run)
        if owner is None:
            return
        if fails:
            feed = owner.runtime.pump.feeds[run.run_id]
            if feed.decide(ModelRaised("in the test").event()):
                run.may_end.add("error")
            owner.runtime.pump.touch(feed)
        else:
            self.put(run, Delta("last words"), Done())
        if committed:
            self.tick(owner)

    # -- time --------------------------------------------------------------------------------------------------------

    def tick(self, worker: Worker) -> None:
        """And what it brings to the worker's readers."""
        with self.may_crash(worker):
            worker.tick()
            for following in self.following:
                if following.worker is worker:
                    following.read()

    @rule(number=NUMBER, locked=st.booleans())
    def a_tick(self, number: int, locked: bool) -> None:
        """Also while another process keeps every writer out."""
        with self.host.locked() if locked else contextlib.nullcontext():
            self.tick(self.worker(number))

    @rule(rounds=st.sampled_from([1, LONG]))
    def time_passes(self, rounds: int) -> None:
        """For so many rounds of the sweep; in the longer time whoever stands still is counted out."""
        for _ in range(rounds):
            for worker in [worker for worker in self.alive if not worker.frozen]:
                with self.may_crash(worker):
                    worker.sweep()
                    self.tick(worker)

    @rule(number=NUMBER)
    def memory_is_let_go_of(self, number: int) -> None:
        live = self.worker(number).runtime.live
        live._max_bytes = 0
        live.tidy(keep_ended=-1.0)

    # -- readers and Stop --------------------------------------------------------------------------------------------

    @rule(target=readers, run=runs, number=NUMBER, back=st.integers(0, 3))
    def a_reader_comes(self, run: Run, number: int, back: int) -> Following:
        """From the start, or from some events before the last that anybody has seen."""
        following = Following(run, max(0, len(run.seen) - back) if back else 0)
        self.following.append(following)
        self.attach(following, number)
        return following

    @rule(following=readers, number=NUMBER)
    def a_reader_comes_back(self, following: Following, number: int) -> None:
        self.attach(following, number)

    def attach(self, following: Following, number: int) -> None:
        worker = self.worker(number)
        with self.may_crash(worker):
            following.attach(worker)
            following.read()

    @rule(following=consumes(readers))
    def a_reader_leaves(self, following: Following) -> None:
        self.following.remove(following)
        following.leave()

    @rule(run=runs, number=NUMBER)
    def stop_is_asked_for(self, run: Run, number: int) -> None:
        worker = self.worker(number)
        run.may_end.add("stopped")
        with self.may_crash(worker):
            worker.stop(run.run_id)

    # -- the end -----------------------------------------------------------------------------------------------------

    def message(self, worker: Worker, run: Run) -> Any:
        found: Any = worker.runtime.store.conversation(run.conversation_id, OWNER)
        return next(message for message in found["messages"] if message["id"] == run.message_id)

    def teardown(self) -> None:
        if not hasattr(self, "host"):
            return
        try:
            for worker in list(self.alive):
                self.bury(worker)
            last = self.start()
            for _ in range(LONG):
                last.sweep()
            assert len({run.run_id for run in self.known}) == len(self.known)
            for run in self.known:
                self.judge(last, run)
            assert all(times == 1 for times in self.models.asked.values()), "a model was asked twice"
            self.bury(last)
        finally:
            self.host.close()

    def judge(self, worker: Worker, run: Run) -> None:
        row = worker.runtime.store.run(run.run_id, OWNER)
        assert row is not None
        assert row.state in run.may_end, f"{row.state}, though only {run.may_end} is explained"
        stored = sse.Decoder().feed(worker.runtime.store.frames(run.run_id) or b"")
        assert stored[: len(run.seen)] == run.seen, "what somebody saw is not there any more"
        assert [int(frame.id) for frame in stored] == list(range(1, row.last_seq + 1))
        assert [frame.event for frame in stored if frame.event in TERMINAL] == [row.state] == [stored[-1].event]
        said = text(stored)
        assert said == run.put if row.state == "done" else run.put.startswith(said), "not what the model said"
        if run is [one for one in self.known if one.message_id == run.message_id][-1]:
            message = self.message(worker, run)
            assert (message["text"], message["status"]) == (run.before + said, row.state)
        following = Following(run, 0)
        following.attach(worker)
        following.read()
        assert following.over
        assert [frame[1:] for frame in run.seen] == [frame[1:] for frame in stored]


@pytest.mark.parametrize("make", [SQLite])
def test_whatever_happens_between_commit_and_wake_the_promises_hold(
    make: Callable[[Path], Backend], tmp_path: Path, long: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 histories of at most 30 steps, always the same; in the long form 3,000 of at most 80, each time others."""
    monkeypatch.setattr(tasks, "spawn", lambda function, *args, name="": function(*args))
    monkeypatch.setattr(sweep, "KEEP", 0.0)
    monkeypatch.setattr(journal, "BUSY_MS", 1)
    machine = type("Machine", (Hosts,), {"make": make, "home": tmp_path})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=3000 if long else 40, stateful_step_count=80 if long else 30, derandomize=not long,
            deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
