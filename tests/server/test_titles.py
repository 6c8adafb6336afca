"""A conversation's title: at once from the question, then from the model, and never over a person's own."""

import json
from collections.abc import Callable

import pytest

from flaskchat.titles import clean
from tests.conftest import Server
from tests.server.badmodel import Running
from tests.server.client import Client, deadline


@pytest.fixture
def titled(serve: Callable[..., Server], model: Running) -> Client:
    settings = {"FLASKCHAT_MODEL": "openai:fake", "FLASKCHAT_OPENAI_BASE_URL": f"{model.origin}/v1"}
    return serve(settings).client()


def test_the_model_s_title_takes_the_place_of_the_question_s_first_words(titled: Client) -> None:
    question = json.dumps({"tag": "title", "text": '"A **short** title."', "rate": 20})
    start = json.loads(titled.send(question).take(1)[0].data)
    assert start["title"].startswith("{")
    path = f"/conversations/{start['conversation_id']}"
    for _ in deadline(10, "the title of the model"):
        if titled.json(path)["title"] == "A short title":
            break


def test_a_title_that_a_person_gave_meanwhile_stays(titled: Client, model: Running) -> None:
    stream = titled.send(json.dumps({"tag": "mine", "text": "Another title", "rate": 3}))
    conversation = json.loads(stream.take(1)[0].data)["conversation_id"]
    assert titled.request("PATCH", f"/conversations/{conversation}", {"title": "Mine"}).status == 200
    stream.rest()
    for _ in deadline(10, "both answers of the model"):
        if model.stats("mine")["finished"] == 2 and not titled.json(f"/conversations/{conversation}")["running"]:
            break
    assert titled.json(f"/conversations/{conversation}")["title"] == "Mine"


def test_a_title_that_takes_long_is_dropped_for_the_next_question(titled: Client, model: Running) -> None:
    slow = {"tag": "slow-title", "fault": "silent-before-first-token", "hold": 60}
    stream = titled.send(json.dumps(slow))
    stream.take(1)
    for _ in deadline(5, "the reply and the title to be asked for"):
        if model.stats("slow-title")["live"] == 2:
            break
    assert titled.stop(stream.run_id)["state"] == "stopped"
    for _ in deadline(5, "both connections to be closed"):
        if model.stats("slow-title")["live"] == 0:
            break


@pytest.mark.parametrize(
    ("written", "title"),
    [
        ("Title: Streams in Flask.", "Streams in Flask"),
        ("<think>hm\nso</think>\n\n“Über SSE”", "Über SSE"),
        ("## **Logs** and `cursors`\nmore", "Logs and cursors"),
        ("a\u202eb\u200bc", "a b c"),
        ("  \n", ""),
        ("word " * 40, "word " * 15 + "word…"),
    ],
)
def test_a_title_is_one_plain_line(written: str, title: str) -> None:
    assert clean(written) == title
