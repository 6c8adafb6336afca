"""What befalls the workers of `test_log_machine.py`: its steps, a model of what must come of them, and how it ends."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from flaskchat import sse
from flaskchat.errors import ModelRaised, Unavailable
from flaskchat.models import Delta, Done
from flaskchat.store.base import Command
from tests.machine import (
    OWNER,
    POINTS,
    Backend,
    Crash,
    Following,
    Models,
    Run,
    Worker,
)
from tests.server.client import TERMINAL, text

WORKERS = 3
GONE_AFTER = 2
"""Rounds of the sweep; fewer than the product's, because each costs several transactions."""
LONG = GONE_AFTER + 1
"""Rounds after which a worker that stands still is counted out."""
TEXTS = ("a", "word ", "ü€😀", "\n\ndata: forged\n\n")


STEPS = (
    "a_tick", "a_tick", "the_model_speaks", "the_model_speaks", "the_model_ends", "the_model_ends", "a_question",
    "the_same_question_again", "a_reply_is_continued", "a_reader_comes", "a_reader_comes", "a_reader_comes_back",
    "stop_is_asked_for", "time_passes", "a_worker_is_held_up", "a_worker_is_held_up", "a_takeover_crashes",
    "a_worker_crashes", "memory_is_let_go_of", "a_worker_starts",
)  # fmt: skip


class Hosts(RuleBasedStateMachine):
    """One rule for all steps: of several, hypothesis leaves some out of each history, and what matters here takes many
    kinds of them. Each takes what it needs of the same few numbers."""

    make: Callable[[Path], Backend]
    home: Path

    @initialize()
    def open(self) -> None:
        self.host = type(self).make(Path(tempfile.mkdtemp(dir=self.home)))
        self.models = Models()
        self.alive: list[Worker] = []
        self.known: list[Run] = []
        self.following: list[Following] = []
        self.asked = 0
        self.locked = False
        for number in range(2):
            self.start()
            self.a_question(number=number)
            self.a_reader_comes(which=0, number=1 - number, flag=False, kind=0)

    # Which step, of which run or reader (counted from the newest), on which worker; a choice, and one of some kinds.
    @rule(
        step=st.sampled_from(STEPS), which=st.integers(0, 3), number=st.integers(0, WORKERS - 1), flag=st.booleans(),
        kind=st.integers(0, len(POINTS)),
    )  # fmt: skip
    def then(self, step: str, **choice: Any) -> None:
        getattr(self, step)(**choice)

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
        """What happens within is this worker's, which may be gone before its end; or refused by a locked database."""
        try:
            yield
        except Crash:
            self.bury(worker)
        except Unavailable:
            assert self.locked, "refused without a reason"

    def a_worker_starts(self, **choice: Any) -> None:
        if len(self.alive) < WORKERS:
            self.start()

    def a_worker_crashes(self, number: int, kind: int, **choice: Any) -> None:
        """At once, or at a point within the next thing that it does."""
        worker = self.worker(number)
        if kind == len(POINTS):
            return self.bury(worker)
        self.all_say(worker, "last ")
        worker.crash_at = POINTS[kind]
        with self.may_crash(worker):
            if any(word in POINTS[kind] for word in ("append", "wake", "log")):
                worker.tick()
            elif choice["flag"]:
                self.a_question(number)
            else:
                worker.sweep()
        worker.crash_at = None

    def a_worker_is_held_up(self, number: int, flag: bool, kind: int, **choice: Any) -> None:
        """For a round of the others, or for so long that it is taken over. Then it goes on, with what has come."""
        worker = self.worker(number)
        if len(self.alive) < 2:
            self.start()
        worker.frozen = True
        if flag:
            self.endanger(worker)
        self.all_say(worker, "late " if kind else "")
        self.time_passes(flag=flag)
        worker.frozen = False
        self.tick(worker)

    def a_takeover_crashes(self, number: int, kind: int, **choice: Any) -> None:
        """Everybody but one stands still; that one counts them out, and is gone at some commit of doing so."""
        worker = self.worker(number)
        others = [other for other in self.alive if other is not worker]
        for other in others:
            self.endanger(other)
            self.all_say(other, "late " if kind else "")
        with self.may_crash(worker):
            for _ in range(GONE_AFTER):
                worker.sweep()
            worker.crash_at = POINTS[2 + kind % 4]
            worker.sweep()
        worker.crash_at = None
        for other in others:
            self.tick(other)

    # -- questions ---------------------------------------------------------------------------------------------------

    def run(self, which: int) -> Run:
        return self.known[-1 - which % len(self.known)]

    def command(self, **more: Any) -> Command:
        self.asked += 1
        return Command(client_id=f"client-{self.asked}", body_hash="h", **more)

    def begin(self, worker: Worker, command: Command, before: str = "") -> bool:
        with self.may_crash(worker):
            begun, live = worker.runtime.runs.start(OWNER, command)
            assert (live is not None) == begun.created
            self.known.append(Run(begun, command, before, worker))
            return True
        return False

    def ask(self, worker: Worker, command: Command, before: str = "") -> None:
        """Who gets no answer asks again; it may have begun all the same."""
        if self.begin(worker, command, before):
            return
        another = self.start()
        known = another.runtime.store.known(OWNER, command)
        assert self.begin(another, command, before)
        if known is not None:
            assert self.known[-1].run_id == known.run_id
            self.known[-1].may_end.add("interrupted")

    def a_question(self, number: int, **choice: Any) -> None:
        self.ask(self.worker(number), self.command(action="send", text="Hi"))

    def the_same_question_again(self, which: int, number: int, **choice: Any) -> None:
        run, worker = self.run(which), self.worker(number)
        begun, live = worker.runtime.runs.start(OWNER, run.command)
        assert live is None
        assert (begun.run_id, begun.created) == (run.run_id, False)

    def a_reply_is_continued(self, which: int, number: int, **choice: Any) -> None:
        """Stopped first where it still runs; one that has ended by itself cannot go on."""
        message_id = self.run(which).message_id
        last = [run for run in self.known if run.message_id == message_id][-1]
        self.put(last, Delta("before Stop "))
        owner = self.owner_of(last)
        if owner is not None:
            self.tick(owner)
            self.stop(last, owner)
            self.tick(owner)
        worker = self.worker(number)
        row = worker.runtime.store.run(last.run_id, OWNER)
        assert row is not None
        if row.state in ("stopped", "interrupted"):
            before = self.message(worker, last)["text"]
            self.ask(worker, self.command(action="continue", message_id=message_id), before)

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

    def all_say(self, worker: Worker, said: str) -> None:
        for run in self.known:
            if said and worker.has(run.run_id):
                self.put(run, Delta(said))

    def the_model_speaks(self, which: int, flag: bool, kind: int, **choice: Any) -> None:
        run = self.run(which)
        self.put(run, Delta(TEXTS[kind % len(TEXTS)]))
        owner = self.owner_of(run)
        if flag and owner is not None:
            self.tick(owner)

    def the_model_ends(self, which: int, flag: bool, kind: int, **choice: Any) -> None:
        run = self.run(which)
        owner = self.owner_of(run)
        if owner is None:
            return
        if kind == 0:
            feed = owner.runtime.pump.feeds[run.run_id]
            if feed.decide(ModelRaised("in the test").event()):
                run.may_end.add("error")
            owner.runtime.pump.touch(feed)
        else:
            self.put(run, Delta("last words"), Done())
        if flag:
            self.tick(owner)

    # -- time --------------------------------------------------------------------------------------------------------

    def tick(self, worker: Worker) -> None:
        """And what it brings to the worker's readers."""
        with self.may_crash(worker):
            worker.tick()
            for following in self.following:
                if following.worker is worker:
                    following.read()

    def a_tick(self, number: int, flag: bool, kind: int, **choice: Any) -> None:
        """Of all, or of one while another process keeps every writer out."""
        if flag:
            for worker in [worker for worker in self.alive if not worker.frozen]:
                self.tick(worker)
        else:
            worker = self.worker(number)
            self.all_say(worker, "while it was locked " if kind else "")
            self.locked = True
            with self.host.locked():
                self.tick(worker)
            self.locked = False

    def time_passes(self, flag: bool, **choice: Any) -> None:
        """A round of the sweep for everybody; or as many as it takes to count out whoever stands still."""
        for _ in range(LONG if flag else 1):
            for worker in [worker for worker in self.alive if not worker.frozen]:
                with self.may_crash(worker):
                    worker.sweep()
                    self.tick(worker)

    def memory_is_let_go_of(self, number: int, **choice: Any) -> None:
        live = self.worker(number).runtime.live
        live._max_bytes = 0
        live.tidy(keep_ended=-1.0)

    # -- readers and Stop --------------------------------------------------------------------------------------------

    def a_reader_comes(self, which: int, number: int, flag: bool, kind: int) -> None:
        """From the start, or from some events before the last that anybody has seen."""
        run = self.run(which)
        self.following.append(Following(run, max(0, len(run.seen) - kind) if flag else 0))
        self.attach(self.following[-1], number)

    def a_reader_comes_back(self, which: int, number: int, **choice: Any) -> None:
        self.attach(self.following[-1 - which % len(self.following)], number)

    def attach(self, following: Following, number: int) -> None:
        worker = self.worker(number)
        with self.may_crash(worker):
            following.attach(worker)
            following.read()

    def stop_is_asked_for(self, which: int, number: int, **choice: Any) -> None:
        run = self.run(which)
        self.stop(run, self.worker(number))
        owner = self.owner_of(run)
        for _ in range(2):  # it is told, and commits the end
            if owner is not None:
                self.tick(owner)
        assert owner is None or not owner.has(run.run_id), "it was not stopped"

    def stop(self, run: Run, worker: Worker) -> None:
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
            last = self.start()
            for following in self.following:
                following.attach(last)
            for worker in self.alive[:-1]:
                self.bury(worker)
            for _ in range(LONG):
                last.sweep()
                self.tick(last)
            for following in self.following:
                assert following.over, "a reader waits for ever"
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
