"""Two versions on one database, for the time of a rolling update: each serves the other's conversations and streams."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from flaskchat.store.schema import HEAD, VERSION_TABLE
from tests.backends import Backend
from tests.conftest import Server
from tests.server.badmodel import Running
from tests.server.checker import judge
from tests.server.checks import FAULTY, data_of
from tests.server.client import seqs
from tests.server.dump import Tap
from tests.server.history import Event, History, Visitor
from tests.server.nodes import Nodes, kill, settings
from tests.server.test_kill import KEPT, newcomer

pytestmark = pytest.mark.backends("postgres+redis", long=("postgres",))


class Versions(NamedTuple):
    old: Server
    new: Server
    newest: Server
    """Which writes rows that the old one does not know."""

    def visitor(self, history: History, node: Server, like: Visitor) -> Visitor:
        return Nodes(self.old, node, 0).visitor(history, node, like)


@pytest.fixture(scope="module")
def versions(shared_backend: Backend, tmp_path_factory: pytest.TempPathFactory, model: Running) -> Iterator[Versions]:
    """The old one, and beside it two that have migrated the database and let the old one go on."""
    folder, postgres = tmp_path_factory.mktemp("versions"), shared_backend.postgres
    assert postgres is not None
    newer = "tests.server.newer:app"
    made: list[Server] = []
    with contextlib.ExitStack() as stack:
        for host, app, more in (("old", FAULTY, {}), ("new", newer, {}), ("newest", newer, {"TEST_ROWS": "2"})):
            own = folder / f"tmp-{host}"  # two machines share no folder
            own.mkdir()
            values = settings(model, FLASKCHAT_MODEL="openai:fake", TEST_HOST=host, TMPDIR=own, **more)
            values["TEST_SWEEP_ROUND"] = "1.5"  # of another machine, a killed one is found by counting alone
            made.append(
                Server(folder, values, workers=1, kind="gevent", app=app, args=KEPT, backend=shared_backend)
            )  # fmt: skip
            stack.callback(made[-1].close)
            if host == "old":
                made[0].client().json("/conversations")  # which makes its tables
                for change in (
                    f"UPDATE {VERSION_TABLE} SET version_num = '9999'",
                    f"UPDATE flaskchat_compatible SET oldest = '{HEAD}'",
                ):
                    postgres.execute(change, database=shared_backend.database)
        yield Versions(*made)
    for server in made:
        print(f"--- log of the server at {server.port}\n{server.log()}")


def kinds(events: list[Event]) -> set[str]:
    return {event.event for event in events}


def test_two_versions_serve_each_others_conversations_and_live_streams(versions: Versions, model: Running) -> None:
    """The newer one's replies have events that the older does not know: it passes them on as they are."""
    history = History()
    old = newcomer(history, versions.old, "somebody")
    new = versions.visitor(history, versions.new, old)
    with Tap(versions.old) as tap:
        theirs, ours = new.ask(tokens=40, rate=20), old.ask(tokens=400, rate=20)
        there, here = old.follow(theirs.run_id), new.follow(ours.run_id)
        for reading in (theirs, ours, here, there):
            reading.take(3)
        assert kinds(here.take(3)) == {"delta"}
        assert new.stop(ours.run_id).body["state"] == "stopped"
        for reading in (theirs, ours, here, there):
            reading.rest()
        assert kinds(there.events) == {"start", "delta", "citation", "done"}
        assert [event.what for event in there.events] == [event.what for event in theirs.events]
        assert [event.what for event in here.events] == [event.what for event in ours.events]
        conversation = theirs.start["conversation_id"]
        assert old.conversation(conversation).body == new.conversation(conversation).body
        further = old.ask(tokens=5, more={"conversation_id": conversation})
        assert further.rest()[-1].event == "done"
        silent = new.ask(tokens=20, fault="stall", after=5, hold=60)
        silent.take(2)
        assert old.stop(silent.run_id).body["state"] == "stopped"
        silent.rest()
        last = new.ask(tokens=4000, rate=50)
        last.take(20)
        kill(history, versions.new)
        last.rest()
        events = old.to_the_end(last.run_id)
        assert kinds(events) == {"start", "delta", "citation", "interrupted"}, "its text, and what nobody here knows"
    judge(history, versions.old, model, tap=tap)
    assert "damaged" not in versions.old.log()


def test_rows_of_a_format_that_a_worker_does_not_know_are_passed_over_and_the_reply_is_read_when_it_is_over(
    versions: Versions, model: Running
) -> None:
    history = History()
    old = newcomer(history, versions.old, "somebody")
    new = versions.visitor(history, versions.newest, old)
    ours, theirs = old.ask(tokens=60, rate=20), new.ask(tokens=40, rate=20)
    here = new.follow(ours.run_id)
    assert kinds(here.take(4)[1:]) == {"delta"}, "the newer reads both, as it is written"
    seen = old.to_the_end(theirs.run_id)
    assert seqs(seen) == list(range(1, len(seen) + 1))  # type: ignore[arg-type]
    for reading in (ours, here, theirs):
        reading.rest()
    assert [event.what for event in seen] == [event.what for event in theirs.events]
    assert seen[-1].event == "done"
    judge(history, versions.old, model)
    for node in (versions.old, versions.newest):
        assert "damaged" not in node.log()
        assert "Traceback" not in node.log()
    assert data_of(versions.old).rows("SELECT count(*) FROM flaskchat_runs WHERE state = 'running'") == [(0,)]
