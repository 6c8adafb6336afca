"""A seeded state machine over log and store: workers that crash, freeze and are taken over, against one simple model.

hypothesis chooses the steps and shrinks what fails to the shortest history. The short form takes always the same ones;
the long form many more, longer ones and each time others. A step is all that one worker does at once: a request, a
tick, a round of the sweep; a crash may come at any commit within it (`machine.POINTS`). What is held, whatever happens:

- a reader's events are dense, the same for every reader, and never fewer than somebody has seen (P1, P2);
- the stored events and text are those events; one terminal event, the last one, which is the state that is stored (P3);
- a run ends as something explains: done with all that its model said, else with a beginning of it;
- the same client id is the same run on whatever worker, asked of the model once (P4);
- after everybody has crashed, a new worker has ended all runs within the rounds that make up 15 seconds (P3);
- nothing is refused but while another process holds the database's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from flaskchat import sweep, tasks
from flaskchat.log import endings, journal, rows
from tests.backends import Servers
from tests.hosts_machine import GONE_AFTER, Hosts
from tests.machine import Backend, Postgres, SQLite, SQLiteAndRedis

HISTORIES = {"sqlite": 30, "sqlite+redis": 30, "postgres": 6}
"""In the short form; each of PostgreSQL's steps takes several times as long."""


@pytest.fixture(params=HISTORIES)
def make(request: pytest.FixtureRequest, database_servers: Servers) -> Callable[[Path], Backend]:
    if request.param == "sqlite":
        return SQLite
    if request.param == "postgres":
        return lambda folder: Postgres(database_servers.postgres)
    url = database_servers.redis.url
    return lambda folder: SQLiteAndRedis(folder, url)


def test_whatever_happens_between_commit_and_wake_the_promises_hold(
    make: Callable[[Path], Backend], tmp_path: Path, long: bool, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """30 histories of at most 30 steps, always the same; in the long form 3,000 of at most 80, each time others."""
    monkeypatch.setattr(tasks, "spawn", lambda function, *args, name="": function(*args))
    monkeypatch.setattr(rows, "KEEP", 0.0)
    monkeypatch.setattr(sweep, "GONE_AFTER", GONE_AFTER)
    monkeypatch.setattr(journal, "BUSY_MS", 1)
    monkeypatch.setattr(endings, "BUSY", 0.001)
    machine = type("Machine", (Hosts,), {"make": staticmethod(make), "home": tmp_path})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=3000 if long else HISTORIES[request.node.callspec.params["make"]],
            stateful_step_count=80 if long else 30, derandomize=not long,
            deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
