"""Every way in which a model breaks: the text so far is kept, the user is told in words, the operator in detail, and
nothing is asked again in silence."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from flaskchat import errors
from tests.conftest import Server
from tests.server.badmodel import Running, text_before_fault, text_of
from tests.server.checks import ask, assert_whole, everything, follow_to_the_end
from tests.server.client import Client, Stream, deadline, text

BREAKING = "tests.server.breaking:app"
PACED = {"tokens": 20, "rate": 40}
"""So that what came before a fault has been read when it strikes."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Running) -> Iterator[Server]:
    """Two workers that wait for a model for 1.5 seconds, and ask a busy one once more."""
    settings = {
        "FLASKCHAT_MODEL": "openai:fake", "FLASKCHAT_OPENAI_BASE_URL": model.base_url, "FLASKCHAT_TITLES": "no",
        "FLASKCHAT_OPENAI_API_KEY": "sk-secret-key-of-the-test", "FLASKCHAT_FIRST_BYTE_TIMEOUT": "1.5",
        "FLASKCHAT_GAP_TIMEOUT": "1.5", "FLASKCHAT_RETRIES": "1", "FLASKCHAT_DRAIN": "0.5",
        "FLASKCHAT_LOG_MODEL_ERRORS": "yes",
    }  # fmt: skip
    server = Server(tmp_path_factory.mktemp("broken"), settings, workers=2, kind="gevent", app=BREAKING, args=[])
    yield server
    server.close()
    print(server.log())


class Row(NamedTuple):
    """One fault, and what a user and an operator deserve of it."""

    directive: dict[str, Any]
    error: type[errors.ModelError]
    log: str
    """What the operator's line says, as a pattern."""
    posts: int = 1
    """How often the model was asked."""


ENDED_BY_THE_FAULT = {
    "silent before the head": Row({"fault": "silent-before-head"}, errors.ModelTimeout, r"no answer|nothing came"),
    "silent before the first token": Row({"fault": "silent-before-first-token"}, errors.ModelTimeout, "nothing came"),
    "silent in the middle": Row({**PACED, "fault": "stall"}, errors.ModelTimeout, r"silent for 1\.5 s"),
    "refused": Row({"fault": "401"}, errors.ModelRefused, r"401 \(look at FLASKCHAT_OPENAI_API_KEY\): .*status 401"),
    "a model that the server does not have": Row({"fault": "404"}, errors.ModelRefused, "404"),
    "a redirect": Row({"fault": "302"}, errors.ModelRefused, "redirects to"),
    "429 for longer than is waited": Row({"fault": "429", "retry_after": 60}, errors.ModelBusy, "429"),
    "500 before the first token": Row({"fault": "500"}, errors.ModelBusy, "500: .*status 500", posts=2),
    "500 after the first token": Row({**PACED, "fault": "error"}, errors.ModelFailed, "the model went away"),
    "500 at once with the text before it": Row({"tokens": 9, "fault": "error"}, errors.ModelFailed, "model went away"),
    "reset": Row({**PACED, "fault": "reset"}, errors.ModelClosedEarly, "reset"),
    "reset before the first token": Row({**PACED, "fault": "reset", "after": 0}, errors.ModelClosedEarly, "reset"),
    "half-closed": Row({**PACED, "fault": "close"}, errors.ModelClosedEarly, "ended before"),
    "a body that ends with its connection": Row(
        {**PACED, "fault": "close", "framing": "close"}, errors.ModelClosedEarly, "ended before"
    ),
    "an end without a finish": Row({**PACED, "fault": "no-finish"}, errors.ModelClosedEarly, "ended before"),
    "HTML with status 200": Row({"fault": "html200"}, errors.ModelProtocolError, "200 text/html: .*sign in"),
    "invalid JSON": Row({**PACED, "fault": "invalid-json"}, errors.ModelProtocolError, "not JSON"),
    "invalid JSON at once with the text before it": Row(
        {"tokens": 9, "fault": "invalid-json"}, errors.ModelProtocolError, "not JSON"
    ),
    "a line of 50 MB": Row({**PACED, "fault": "huge-line"}, errors.ModelProtocolError, "not HTTP|a line"),
    "a line of 50 MB without framing": Row(
        {**PACED, "fault": "huge-line", "framing": "close"}, errors.ModelProtocolError, "a line or a frame of more than"
    ),
}


def said_before(directive: dict[str, Any]) -> str:
    """What the model had said when it broke."""
    if "tokens" not in directive:
        return ""
    return text_of(directive) if directive["fault"] == "no-finish" else text_before_fault(directive)


@pytest.mark.parametrize("name", ENDED_BY_THE_FAULT)
def test_a_fault_of_the_model_keeps_the_text_and_is_told_in_words(server: Server, model: Running, name: str) -> None:
    row = ENDED_BY_THE_FAULT[name]
    client = server.client()
    directive, stream = ask(client, **row.directive)
    frames = stream.rest()
    assert_whole(client, stream, frames, "error")
    assert text(frames) == said_before(directive)
    told = json.loads(frames[-1].data)
    assert (told["code"], told["message"]) == (row.error.code, row.error.message)
    assert told["retryable"] is row.error.retryable
    assert_told_the_operator_alone(server, client, stream, row.error.code, row.log)
    assert_asked(model, directive, row.posts)


def assert_told_the_operator_alone(server: Server, client: Client, stream: Stream, code: str, pattern: str) -> None:
    """The log says what happened, with the run's id and without the key; the user gets none of the server's words."""
    line = re.search(rf"run {stream.run_id}: {code}: (.*)", server.log())
    assert line is not None, "not in the log"
    assert re.search(pattern, line[1]), line[1]
    assert "sk-secret" not in server.log()
    for words in (b"went away", b"sign in", b"status 4", b"status 5", b"127.0.0.1", b"sk-secret"):
        assert words not in stream.raw


def assert_asked(model: Running, directive: dict[str, Any], posts: int) -> None:
    """So often, and let go of."""
    for _ in deadline(30, "the model's connection to be closed"):
        stats = model.stats(directive["tag"])
        if stats["live"] == 0:
            break
    assert stats["posts"] == posts


HARMLESS: dict[str, dict[str, Any]] = {
    "429 with a Retry-After that fits": {"fault": "429", "times": 1, "retry_after": 1, "tokens": 5},
    "500 once": {"fault": "500", "times": 1, "tokens": 5},
    "one byte per packet": {"tokens": 12, "fault": "one-byte"},
    "packets that end within a character": {"tokens": 60, "fault": "split"},
    "invalid UTF-8": {"tokens": 20, "fault": "invalid-utf8"},
    "no [DONE]": {"tokens": 20, "fault": "no-done"},
    "no [DONE] and a body that ends with its connection": {"tokens": 20, "fault": "no-done", "framing": "close"},
    "CR and SSE fields inside the text": {"tokens": 20, "fault": "fields"},
    "half code points in two deltas": {"tokens": 20, "fault": "surrogates"},
    "one document that is no stream": {"tokens": 20, "fault": "json"},
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_odd_and_does_no_harm_is_a_whole_reply(server: Server, model: Running, name: str) -> None:
    client = server.client()
    directive, stream = ask(client, **HARMLESS[name])
    frames = stream.rest()
    assert_whole(client, stream, frames, "done")
    assert text(frames) == text_of(directive)
    for line in stream.raw.split(b"\n"):
        assert line == b"" or line.startswith((b"id: ", b"event: ", b"data: {", b"retry: ", b": hb"))
    assert_asked(model, directive, 2 if "times" in directive else 1)


def test_a_retry_waits_as_long_as_retry_after_says(server: Server, model: Running) -> None:
    client = server.client()
    began = time.monotonic()
    directive, stream = ask(client, fault="429", times=1, retry_after=1, tokens=3)
    assert stream.rest()[-1].event == "done"
    assert time.monotonic() - began >= 1
    assert_asked(model, directive, 2)


def test_a_reply_that_takes_too_long_is_not_called_silent(serve: Callable[..., Server], model: Running) -> None:
    server = serve(
        {"FLASKCHAT_MODEL": "openai:fake", "FLASKCHAT_OPENAI_BASE_URL": model.base_url, "FLASKCHAT_RUN_TIMEOUT": "1"}
    )
    found = server.client().send(json.dumps({"tokens": 1000, "rate": 20})).rest()
    assert found[-1].event == "error"
    said = json.loads(found[-1].data)
    assert said["code"] == "model_timeout"
    assert said["message"] == errors.ModelTooSlow.message
    assert "silent" not in said["message"]
    assert text(found), "what it had written is kept"


def test_nobody_listens_at_the_model_s_address(serve: Callable[..., Server]) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
        settings = {"FLASKCHAT_MODEL": "openai:fake", "FLASKCHAT_OPENAI_BASE_URL": address, "FLASKCHAT_RETRIES": "1"}
        server = serve(settings, workers=1, app=BREAKING)
        client = server.client()
        stream = client.send("x")
        frames = stream.rest()
    assert_whole(client, stream, frames, "error")
    assert json.loads(frames[-1].data)["message"] == errors.ModelUnreachable.message
    assert_told_the_operator_alone(server, client, stream, "model_unreachable", "refused")


# -- Python models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said", "words"),
    [("raises", "Before ", "secret inner words"), ("library", "From afar ", "RateLimitError")],
    ids=["a Python model that raises", "a client library's exception"],
)
def test_an_exception_in_a_python_model_keeps_the_text_and_its_stack_is_the_operator_s(
    server: Server, name: str, said: str, words: str
) -> None:
    client = server.client()
    stream = client.send("x", model=name)
    frames = stream.rest()
    assert_whole(client, stream, frames, "error")
    assert text(frames) == said
    told = json.loads(frames[-1].data)
    assert (told["code"], told["message"]) == ("model_raised", errors.ModelRaised.message)
    assert words in server.log()
    assert f"the model '{name}' raised" in server.log()
    assert re.search(rf"run {stream.run_id}: model_raised: \w+", server.log())
    said_to_user = b"".join(frame.data for frame in frames if frame.event != "start")  # its ids are drawn by lot
    for inner in (b"secret", b"429", b"Rate", b"Runtime"):
        assert inner not in said_to_user


def test_a_python_model_that_never_yields_is_given_up_and_nobody_waits(server: Server) -> None:
    client = server.client()
    stream = client.send("x", model="mute")
    frames = stream.rest()
    assert_whole(client, stream, frames, "error")
    assert json.loads(frames[-1].data)["message"] == errors.ModelTimeout.message


def test_a_python_model_that_blocks_the_hub_delays_its_worker_is_named_and_loses_nothing(
    serve: Callable[..., Server]
) -> None:
    server = serve({"FLASKCHAT_MODELS": "holds,count"}, app=BREAKING, holds_hub=True)
    client = server.client()
    beside = client.send("150 50", model="count")
    beside.take(3)
    elsewhere = client.connect_to(next(pid for pid in server.workers() if pid != beside.worker))
    body = {"message": {"id": "blocks", "text": "1.5"}, "model": "holds"}
    blocking = client.request("POST", "/conversation", body, connection=client.connect_to(beside.worker))
    took = []
    for _ in range(40):  # the other worker minds nothing
        began = time.monotonic()
        client.request("GET", "/plain", connection=elsewhere).response.read()
        took.append(time.monotonic() - began)
    assert sorted(took)[len(took) // 2] < 0.5, took
    frames = blocking.rest()
    assert blocking.worker == beside.worker
    assert_whole(client, blocking, frames, "done")
    assert text(frames) == "Before after"
    rest = everything(beside)
    assert_whole(client, beside, rest, "done")
    assert text(rest) == "".join(f"word{n} ü€😀 " for n in range(150))
    for _ in deadline(30, "the watch to name it"):
        if re.search(r"the hub was held for .* by\n(?:.*\n)*?.*breaking\.py.*in holds", server.log()):
            break


def test_a_python_model_that_spins_for_ever_costs_its_worker_and_no_reply_its_text(
    serve: Callable[..., Server]
) -> None:
    """It lets nothing else run, so the worker can do nothing for itself: another ends its replies, gunicorn ends it."""
    settings = {"FLASKCHAT_MODELS": "spins,count", "TEST_SWEEP_ROUND": "0.6", "FLASKCHAT_DRAIN": "0.5"}
    server = serve(settings, app=BREAKING, args=["--timeout", "8"], holds_hub=True)
    client = server.client()
    beside = client.send("3000 40", model="count")
    beside.take(10)
    body = {"message": {"id": "spins", "text": "x"}, "model": "spins"}
    spinning = client.request("POST", "/conversation", body, connection=client.connect_to(beside.worker))
    spinning.take(2)
    for stream in (spinning, beside):
        other = client.connect_to(next(pid for pid in server.workers() if pid != beside.worker))
        again = client.follow(stream.run_id, stream.frames[-1].id, connection=other)
        assert again.status == 200
        frames = list(stream.frames) + again.rest()
        frames = frames if frames[-1].event == "interrupted" else follow_to_the_end(client, stream, frames)
        assert_whole(client, stream, frames, "interrupted")
        if stream is spinning:
            assert text(frames) == "Before "
    for _ in deadline(30, "the worker to be replaced"):
        if beside.worker not in server.workers() and len(server.workers()) == 2:
            break
    assert client.send("5 0", model="count").rest()[-1].event == "done"
