"""Behind nginx, haproxy and caddy as they come, behind one that cuts streams, and deploys behind nginx (P2, P7).

In the long form a stream is silent for five minutes behind the proxies' own patience, and is cut every 20 s; in the
short one they have patience for 6 s, and a second goes by between two cuts.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import ROOT, Server
from tests.server import proxies
from tests.server.badmodel import Running, text_of
from tests.server.checker import judge
from tests.server.checks import FAULTY, rows
from tests.server.client import TERMINAL, Client, deadline
from tests.server.crowd import Crowd
from tests.server.dump import Tap
from tests.server.history import History

PATIENCE = 6
"""Seconds of silence that the proxies have in the short form; six heartbeats."""


def settings(model: Running) -> dict[str, object]:
    return {
        "FLASKCHAT_MODEL": "openai:fake", "FLASKCHAT_OPENAI_BASE_URL": model.base_url, "FLASKCHAT_TITLES": "no",
        "FLASKCHAT_MAX_RUNS_PER_OWNER": "0", "FLASKCHAT_MESSAGES_PER_MINUTE": "0",
        "FLASKCHAT_MAX_STREAMS_PER_OWNER": "0", "FLASKCHAT_MAX_STREAMS_PER_ADDRESS": "0",
        "FLASKCHAT_CONNECTIONS_PER_SECOND": "0",
    }  # fmt: skip


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory, model: Running, long: bool) -> Iterator[Server]:
    """The server behind all of them; its heartbeat is the default in the long form."""
    more = {"FLASKCHAT_GAP_TIMEOUT": "600"} | ({} if long else {"FLASKCHAT_HEARTBEAT": "1", "TEST_SSE_PAUSE": "0.4"})
    folder = tmp_path_factory.mktemp("behind")
    server = Server(folder, {**settings(model), **more}, workers=2, kind="gevent", app=FAULTY, args=[])
    yield server
    server.close()
    print(server.log())


@pytest.fixture(scope="module")
def fronts(tmp_path_factory: pytest.TempPathFactory, behind: Server, long: bool) -> Iterator[dict[str, int]]:
    """The port of each proxy by its name."""
    with contextlib.ExitStack() as stack:
        found = {}
        for name in proxies.NAMES:
            folder = tmp_path_factory.mktemp(name)
            patience = None if long else PATIENCE
            found[name] = stack.enter_context(proxies.running(name, folder, behind.port, patience=patience))
        yield found


@pytest.fixture
def through() -> Iterator[Callable[[int], Client]]:
    """Makes clients of a port; they are closed with the test."""
    with contextlib.ExitStack() as stack:

        def make(port: int) -> Client:
            client = Client(port, timeout=60)
            stack.callback(client.close)
            return client

        yield make


@pytest.mark.parametrize("name", proxies.NAMES)
def test_tokens_come_one_by_one_and_stop_works_through_a_proxy_as_it_comes(
    fronts: dict[str, int], behind: Server, model: Running, through: Callable[[int], Client], name: str
) -> None:
    history = History()
    visitor = history.visitor("alice", through(fronts[name]))
    for _ in range(5):  # a busy machine makes a lump of some
        reading = visitor.ask(tokens=40, rate=20)
        reading.rest()
        deltas = [event.at for event in reading.events if event.event == "delta"]
        gaps = sorted(later - earlier for earlier, later in pairwise(deltas))
        # 50 ms lie between two of them where nothing holds them up, and nothing where they were collected
        if len(deltas) >= 20 and sum(gap > 0.02 for gap in gaps) >= 10 and gaps[len(gaps) * 9 // 10] < 0.5:
            break
    else:
        raise AssertionError(f"they came in a lump, or in lumps: {gaps}")
    long = visitor.ask(tokens=4000, rate=20)
    long.take(3)
    assert visitor.stop(long.run_id).body["state"] == "stopped"
    assert long.rest()[-1].event == "stopped"
    # who is at the end gets nothing more, and who comes back gets what follows
    assert visitor.follow(long.run_id, long.last).status == 204
    assert [event.seq for event in visitor.follow(reading.run_id, 5).rest()] == [e.seq for e in reading.events[5:]]
    judge(history, behind, model)


def test_sse_comes_message_by_message_through_every_proxy(
    fronts: dict[str, int], through: Callable[[int], Client], long: bool
) -> None:
    """The endpoint with which a proxy is checked; in the short form its messages come sooner."""
    pause = 1.0 if long else 0.4
    left = dict(fronts)
    times: dict[str, list[float]] = {}

    def read(name: str) -> None:
        times[name] = []
        for _ in through(fronts[name]).get("/sse"):
            times[name].append(time.monotonic())

    for _ in range(4):  # a busy machine makes a lump of some
        at_once(read, left)
        for name in list(left):
            came = times[name]
            assert len(came) == 12, name
            apart = sum(later - earlier > 0.5 * pause for earlier, later in pairwise(came[1:11])) >= 7
            if apart and came[-1] - came[0] > 8 * pause:
                del left[name]
        if not left:
            return
    raise AssertionError(f"in a lump: {[(name, times[name]) for name in left]}")


def at_once(act: Callable[[str], object], fronts: dict[str, int]) -> None:
    threads = [threading.Thread(target=act, args=(name,)) for name in fronts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_stream_outlives_minutes_of_silence_behind_every_proxy(
    fronts: dict[str, int], behind: Server, model: Running, through: Callable[[int], Client], long: bool
) -> None:
    """Five minutes of silence (short: 12 s behind a patience of 6), then the rest of the reply on that connection."""
    silence = 300 if long else 2 * PATIENCE
    history = History()
    visitors = {name: history.visitor(name, through(port)) for name, port in fronts.items()}
    found = {}

    def read(name: str) -> None:
        reading = visitors[name].ask(tokens=20, rate=20, fault="stall", after=10, hold=silence)
        reading.rest()
        found[name] = reading

    at_once(read, fronts)
    for name, reading in found.items():
        assert reading.ended, f"{name} cut it off after {reading.events[-1].at - reading.opened_at:.0f} s"
        assert reading.events[-1].event == "done"
        gap = max(later.at - earlier.at for earlier, later in pairwise(reading.events))
        assert gap > 0.75 * silence, name  # longer than a proxy's patience
    judge(history, behind, model)


def test_without_heartbeats_the_proxies_would_have_cut_the_silent_stream(
    serve: Callable[..., Server], tmp_path: Path, model: Running, through: Callable[[int], Client]
) -> None:
    """So the test before this one can fail; and whoever was cut off comes back and misses nothing."""
    server = serve({**settings(model), "FLASKCHAT_HEARTBEAT": "60"}, app=FAULTY)
    history = History()
    with proxies.running("nginx", tmp_path, server.port, patience=PATIENCE) as port:
        visitor = history.visitor("alice", through(port))
        reading = visitor.ask(tokens=20, rate=20, fault="stall", after=10, hold=2 * PATIENCE)
        reading.rest()
        assert reading.how == "cut"
        assert not reading.ended
        assert visitor.to_the_end(reading.run_id, reading.last)[-1].event == "done"
    judge(history, server, model)


@pytest.mark.parametrize("name", proxies.NAMES)
def test_a_client_that_leaves_is_noticed_behind_a_proxy(
    fronts: dict[str, int], behind: Server, through: Callable[[int], Client], name: str
) -> None:
    client = through(fronts[name])
    stream = client.send('{"tokens": 5, "rate": 20, "fault": "stall", "after": 2, "hold": 600}')
    stream.take(2)
    stream.close()
    for _ in deadline(60, "its place to be free, within some heartbeats"):
        if streams(behind) == 0:
            break
    client.stop(stream.run_id)


def streams(server: Server) -> int:
    client = server.client()
    found = sum(
        int(client.request("GET", "/readyz", connection=client.connect_to(pid)).json()["streams"])
        for pid in server.workers()
    )
    client.close()
    return found


def test_a_stream_that_a_proxy_cuts_cleanly_goes_on_where_it_was(
    behind: Server, model: Running, through: Callable[[int], Client], long: bool
) -> None:
    """Cut every 20 s (short: every second), four times and more: the end of a body is not the end of a reply."""
    every = 20.0 if long else 1.0
    tokens = int((4.5 if long else 9) * every * 30)
    history = History()
    with proxies.Cutter(behind.port, every) as cutter:
        visitor = history.visitor("alice", through(cutter.port))
        reading = visitor.ask(tokens=tokens, rate=30)
        whole = list(reading.rest())
        assert reading.how == "end", "the proxy did not cut it cleanly"
        assert whole[-1].event not in TERMINAL
        whole += visitor.to_the_end(reading.run_id, reading.last, seconds=60 + 8 * every)
    assert cutter.cuts >= 4
    assert [event.seq for event in whole] == list(range(1, len(whole) + 1))
    text = "".join(event.json["text"] for event in whole if event.event == "delta")
    assert text == text_of({"tag": history.posts[0].tag, "tokens": tokens})
    judge(history, behind, model)


# -- a deploy behind nginx ---------------------------------------------------------------------------------------------

LONGER = 320
"""Tokens of a reply that takes longer than a worker's drain."""


def test_a_rolling_restart_behind_nginx_shows_no_error_to_anybody(
    serve: Callable[..., Server], tmp_path: Path, model: Running, long: bool, seed: int
) -> None:
    """deploy's own gunicorn.conf.py and nginx.conf; reloads under load, and one worker told to leave in between.

    Three visitors with two tabs each and two deploys; in the long form eight, and twelve. Every fourth reply is longer
    than a leaving worker may take, so it ends as interrupted; no stream is cut, no request refused for good.
    """
    server = serve(settings(model), app=FAULTY, args=["-c", str(ROOT / "deploy" / "gunicorn.conf.py")])
    history = History()
    with (
        proxies.deployed_nginx(tmp_path, server.port) as port,
        contextlib.closing(proxies.Front(port)) as front,
        Tap(server) as tap,
    ):
        crowd = Crowd(front, history, 8 if long else 3, question, seed)  # type: ignore[arg-type]
        with crowd:
            crowd.wait(4)
            for number in range(12 if long else 2):
                struck = server.workers() if number % 2 == 0 else server.workers()[:1]
                told_at = time.monotonic()
                if number % 2 == 0:
                    server.process.send_signal(signal.SIGHUP)
                else:
                    os.kill(struck[0], signal.SIGTERM)
                for _ in deadline(120, "the workers to be replaced"):
                    now = server.workers()
                    if len(now) == 2 and not set(now) & set(struck):
                        break
                print(f"deploy {number} took {time.monotonic() - told_at:.1f} s")
                crowd.wait(4)
        print(f"{crowd.replies} replies, {len(crowd.moves)} moves, {crowd.refused} questions sent elsewhere")
        assert crowd.errors == []
        judge(history, server, model, tap=tap)
    cut = "SELECT m.text FROM flaskchat_runs r JOIN flaskchat_messages m ON m.id = r.user_message_id WHERE r.state = ?"
    assert {json.loads(text)["tokens"] for (text,) in rows(server, cut, "interrupted")} <= {LONGER}
    assert "SIGKILL" not in server.log(), "a worker had to be killed"


def question(dice: random.Random) -> dict[str, object]:
    return {"tokens": dice.choice((20, 60, 80, LONGER)), "rate": 40}


def test_a_page_behind_nginx_on_another_port_than_80_may_send(serve: Callable[..., Server], tmp_path: Path) -> None:
    """Over plain HTTP a browser says no more than its Origin, and that has the port."""
    server = serve({"FLASKCHAT_TRUSTED_PROXIES": "1"})
    with proxies.deployed_nginx(tmp_path, server.port) as port:
        body = json.dumps({"message": {"id": "from-another-port", "text": '{"tokens": 3}'}})
        for origin, status in ((f"http://127.0.0.1:{port}", 200), ("http://127.0.0.1", 403)):
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
                headers = {"Content-Type": "application/json", "Origin": origin}
                connection.request("POST", "/conversation", body, headers)
                assert connection.getresponse().status == status, origin
