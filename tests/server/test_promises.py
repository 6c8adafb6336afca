"""The promises P1-P6, with a real model server, real gunicorn and two workers.

All of them on SQLite, on PostgreSQL, and on PostgreSQL with the log in Redis.
"""

import json
import random
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from flaskchat import sse
from tests.backends import EVERYWHERE, Backend
from tests.conftest import Server, asking, holds_of_hub
from tests.server.badmodel import Running, text_of
from tests.server.checks import write_lock
from tests.server.client import TERMINAL, Client, Stream, deadline, seqs, text

pytestmark = pytest.mark.backends(*EVERYWHERE)


@pytest.fixture(scope="module")
def patience(long: bool) -> float:
    """Seconds that a request waits for the database's lock."""
    return 5 if long else 2


@pytest.fixture(scope="module")
def chat_server(
    shared_backend: Backend, tmp_path_factory: pytest.TempPathFactory, model: Running, patience: float
) -> Iterator[Server]:
    """One server for all of them on a backend; they leave it as they found it."""
    folder = tmp_path_factory.mktemp("promises")
    settings = {**asking(model), "FLASKCHAT_DATABASE_TIMEOUT": patience}
    server = Server(
        folder, settings, workers=2, kind="gevent", app="tests.server.app:app", args=[], backend=shared_backend
    )
    yield server
    server.close()
    print(server.log())
    assert holds_of_hub(server.log()) == []


def ask(client: Client, more: Any = None, **directive: Any) -> tuple[dict[str, Any], Stream]:
    directive.setdefault("tag", uuid.uuid4().hex)
    return directive, client.send(json.dumps(directive), **(more or {}))


def cut_after(stream: Stream, size: int) -> list[sse.Frame]:
    """Read so many bytes more and drop the connection: only what they complete has been seen."""
    decoder, seen = sse.Decoder(), []
    while size > 0:
        data = stream.response.read1(size)
        if not data:
            break
        size -= len(data)
        seen += decoder.feed(data)
    stream.close()
    return seen


def test_a_stream_cut_200_times_loses_and_doubles_nothing(chat_server: Server, seed: int) -> None:
    dice = random.Random(seed)
    client = chat_server.client()
    directive, stream = ask(client, tokens=30_000, rate=150)
    frames = stream.take(1)
    workers, cuts = set(), 0
    # Live: cut at random bytes, and at the end of the frames that one read brought, and resume wherever it is answered.
    while frames[-1].event not in TERMINAL:
        workers.add(stream.worker)
        if cuts % 2:
            frames += cut_after(stream, dice.randrange(1, 400))
        else:
            frames += stream.take(dice.randrange(1, 3))
            stream.close()
        cuts += 1
        if cuts > 60 and len(frames) > 150:  # however long that takes
            assert client.stop(stream.run_id)["state"] == "stopped"
        if frames[-1].event not in TERMINAL:
            stream = client.follow(stream.run_id, frames[-1].id)
            assert stream.status == 200
    assert cuts > 60
    assert frames[-1].event == "stopped"
    assert seqs(frames) == list(range(1, len(frames) + 1))
    start = json.loads(frames[0].data)
    assert client.message(start["conversation_id"], start["message_id"])["text"] == text(frames)
    assert text_of(directive).startswith(text(frames))
    assert len(workers) == 2
    # Finished: from every boundary.
    for cursor in range(0, len(frames) + 1, max(1, len(frames) // 200)):
        rest = client.follow(stream.run_id, cursor)
        assert rest.status == (204 if cursor == len(frames) else 200)
        if rest.status == 200:
            assert [f._replace(id="") for f in rest.rest()] == [f._replace(id="") for f in frames[cursor:]]
        cuts += 1
        rest.close()
    assert cuts >= 200


def test_fifty_readers_from_random_cursors_get_the_same_bytes_of_one_generation(
    chat_server: Server, model: Running, seed: int
) -> None:
    dice = random.Random(seed)
    cursors = [dice.randrange(20) for _ in range(50)]
    client = chat_server.client()
    directive, stream = ask(client, tokens=200, rate=100)
    first = stream.take(20)
    found: dict[int, tuple[int, bytes, int]] = {}

    def read(number: int) -> None:
        cursor = cursors[number]
        reader = Client(chat_server.port)
        reader.cookie = client.cookie
        follower = reader.follow(stream.run_id, cursor)
        follower.rest()
        raw = follower.raw.replace(b": hb\n", b"")
        found[number] = (cursor, raw.partition(b"\n")[2], follower.worker)  # without the jittered retry
        reader.close()

    threads = [threading.Thread(target=read, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    frames = first + stream.rest()
    for thread in threads:
        thread.join()
    whole = stream.raw.partition(b"\n")[2]
    assert len(found) == 50
    assert {worker for _, _, worker in found.values()} == set(chat_server.workers())
    for cursor, raw, _ in found.values():
        assert raw == whole[whole.index(b"id: %d\n" % (cursor + 1)) :]
    assert text(frames) == text_of(directive)
    assert model.stats(directive["tag"])["posts"] == 1


def test_the_stored_reply_is_complete_when_the_client_leaves_after_five_tokens(chat_server: Server) -> None:
    client = chat_server.client()
    directive, stream = ask(client, tokens=60, rate=100)
    start = json.loads(stream.take(6)[0].data)
    stream.close()
    message = client.wait_state(start["conversation_id"], start["message_id"])
    assert (message["status"], message["text"]) == ("done", text_of(directive))


def test_twenty_equal_posts_at_once_ask_the_model_once(chat_server: Server, model: Running) -> None:
    client = chat_server.client()
    client.json("/conversations")
    question = json.dumps({"tag": uuid.uuid4().hex, "tokens": 30, "rate": 60})
    found: list[str] = []

    def post() -> None:
        stream = client.send(question, client_id="equal")
        found.append(stream.run_id + text(stream.rest()))

    threads = [threading.Thread(target=post) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert len(set(found)) == 1
    assert model.stats(json.loads(question)["tag"])["posts"] == 1


@pytest.mark.parametrize(
    ("moment", "directive"),
    [
        ("before the head", {"fault": "silent-before-head", "hold": 60}),
        ("before the first token", {"fault": "silent-before-first-token", "hold": 60}),
        ("in the middle", {"tokens": 2000, "rate": 50}),
        ("while the model is silent", {"tokens": 20, "fault": "stall", "after": 5, "hold": 60}),
    ],
)
def test_stop_through_the_other_worker_closes_the_model_within_300_ms(
    chat_server: Server, model: Running, moment: str, directive: dict[str, Any]
) -> None:
    """The best of five: a busy machine pauses any of them."""
    took: list[float] = []
    while not took or (took[-1] >= 0.3 and len(took) < 5):
        took.append(stop_through_the_other(chat_server, model, {**directive, "tag": uuid.uuid4().hex}))
    assert min(took) < 0.3, (moment, took)


def stop_through_the_other(chat_server: Server, model: Running, directive: dict[str, Any]) -> float:
    """:returns: seconds from the request until the model saw its connection closed."""
    client = chat_server.client()
    directive, stream = ask(client, **directive)
    tag = directive["tag"]
    seen = stream.take(2 if directive.get("tokens") else 1)
    for _ in deadline(30, "the model to be asked"):
        if model.stats(tag)["live"] == 1:
            break
    other = next(pid for pid in chat_server.workers() if pid != stream.worker)
    connection = client.connect_to(other)
    # Or Stop would open the chat there first, and its database, which deploy/gunicorn.conf.py does before all requests.
    client.request("GET", "/conversations", connection=connection).json()
    asked_at = time.monotonic()
    answer = client.stop(stream.run_id, connection=connection)
    answered_at = time.monotonic()
    assert answer["state"] == "stopped"
    for _ in deadline(30, "the model to see its connection closed"):
        closed_at = model.stats(tag)["closed_at"]
        if closed_at:
            break
    # Counted from the request's arrival, so it is no longer than what was seen from here; its tenths are rounded.
    assert 0 <= answer["upstream_closed_ms"] <= (answered_at - asked_at) * 1000 + 0.1
    frames = seen + stream.rest()
    assert frames[-1].event == "stopped"
    start = json.loads(frames[0].data)
    message = client.message(start["conversation_id"], start["message_id"])
    assert (message["status"], message["text"]) == ("stopped", text(frames))
    assert text_of(directive).startswith(message["text"])
    return float(closed_at[0] - asked_at)


def test_a_database_locked_for_ten_seconds_delays_nobody_else_and_loses_no_token(
    chat_server: Server, patience: float
) -> None:
    """In the short form for four seconds, of which a request waits for two. If others waited as well, most of them
    would take as long: a busy machine delays some.
    """
    seconds = int(2 * patience)
    client = chat_server.client(timeout=60)
    directive, stream = ask(client, tokens=seconds * 40, rate=40)
    frames = stream.take(10)
    connections = [client.connect_to(pid) for pid in chat_server.workers()]
    took: list[float] = []
    with write_lock(chat_server):
        until = time.monotonic() + seconds
        post = threading.Thread(target=lambda: refused.append(server_client.send("late").status))
        refused: list[int] = []
        server_client = chat_server.client(timeout=60)
        post.start()
        while time.monotonic() < until or len(took) < 8:
            for connection in connections:
                began = time.monotonic()
                plain = client.request("GET", "/plain", connection=connection)
                plain.response.read()
                took.append(time.monotonic() - began)
            time.sleep(0.02)
        post.join()
    took.sort()
    print(f"slowest of {len(took)} unrelated requests: {took[-1] * 1000:.1f} ms")
    assert took[len(took) // 2] < patience / 2, "requests waited for the database"
    assert refused == [503]
    frames += stream.rest()
    assert frames[-1].event == "done"
    assert seqs(frames) == list(range(1, len(frames) + 1))
    assert text(frames) == text_of(directive)


@pytest.mark.backends("sqlite")  # the same bytes wherever they come from
def test_a_reply_costs_at_most_three_bytes_on_the_wire_per_byte_of_text(chat_server: Server) -> None:
    # 400 tokens of 28 bytes at 50 a second, as the load generator's stand-in model sends them.
    words = "".join(f" word {number:4d} of this long reply" for number in range(400))
    client = chat_server.client()
    _, stream = ask(client, text=words, rate=len(words) / 4 / 8)
    frames = stream.rest()
    assert text(frames) == words
    wire = len(stream.raw) + sum(len(hex(len(frame.data))) + 2 for frame in frames)  # with the chunks' framing
    print(f"{len(words)} bytes of text, {wire} on the wire, {len(frames)} events")
    assert wire <= 3 * len(words)


def test_an_error_of_the_model_keeps_the_text_and_hides_its_words(chat_server: Server) -> None:
    client = chat_server.client()
    directive, stream = ask(client, tokens=20, fault="error", after=5)
    frames = stream.rest()
    assert frames[-1].event == "error"
    error = json.loads(frames[-1].data)
    assert error["code"] == "model_failed"
    assert text_of(directive).startswith(text(frames))
    assert len(text(frames)) > 0
    start = json.loads(frames[0].data)
    assert client.message(start["conversation_id"], start["message_id"])["status"] == "error"
    for _ in deadline(30, "the words for the operator"):
        if stream.run_id in chat_server.log():
            break


def test_a_busy_model_is_asked_again_as_retry_after_says_and_only_before_the_first_byte(
    chat_server: Server, model: Running
) -> None:
    client = chat_server.client()
    directive, stream = ask(client, tokens=5, fault="429", times=1, retry_after=1)
    frames = stream.rest()
    assert frames[-1].event == "done"
    assert model.stats(directive["tag"])["posts"] == 2
    directive, stream = ask(client, tokens=20, fault="reset", after=5)
    assert stream.rest()[-1].event == "error"
    assert model.stats(directive["tag"])["posts"] == 1
