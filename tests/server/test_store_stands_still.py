"""PostgreSQL stands still while the log is in Redis: replies go on, and what has ended waits for the store (P1, P3)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.backends import Backend
from tests.conftest import Server
from tests.server.badmodel import Running
from tests.server.checker import judge
from tests.server.checks import FAULTY, rows
from tests.server.client import deadline
from tests.server.history import History
from tests.server.test_kill import KEPT, Beside, ask_at, newcomer, settings


@pytest.mark.backends("postgres+redis")
def test_while_the_store_stands_still_a_reply_that_ends_waits_and_the_others_go_on(
    serve: Callable[..., Server], model: Running, backend: Backend
) -> None:
    assert backend.postgres is not None
    server = serve(settings(model), app=FAULTY, args=KEPT)
    history = History()
    asker = newcomer(history, server, "somebody")
    elsewhere = asker.tab()
    worker, other = server.workers()
    going_on = ask_at(asker, worker, tokens=4000, rate=25)
    going_on.take(2)
    followed = elsewhere.follow(going_on.run_id, connection=elsewhere.client.connect_to(other))
    followed.take(2)
    ending = ask_at(asker, worker, tokens=25, rate=25)
    ending.take(2)
    backend.postgres.freeze()
    struck = history.fault("postgres freeze")
    try:
        waiting = Beside(ending.rest)
        for _ in deadline(30, "the model to have said all of it"):
            if model.stats(str(history.posts[1].tag))["live"] == 0:
                break
        while "cannot be kept yet" not in server.log() or len(going_on.events) < 60:
            for reading in (going_on, followed):
                assert [event.event for event in reading.take(5)] == ["delta"] * 5
        assert not ending.ended, "its end was told before the store had it"
    finally:
        backend.postgres.thaw()
    history.healed(struck)
    waiting.join(30)
    assert ending.events[-1].event == "done"
    assert rows(server, "SELECT state FROM flaskchat_runs WHERE id = ?", ending.run_id) == [("done",)]
    assert "ended replies can be kept again" in server.log()
    assert asker.stop(going_on.run_id).body["state"] == "stopped"
    for reading in (going_on, followed):
        assert reading.rest()[-1].event == "stopped"
    judge(history, server, model)
