"""A conversation's title: at once from the question, then from the model, and never over a person's own."""

import json
import uuid
from collections.abc import Callable

import pytest

from flaskchat.titles import clean
from tests.conftest import Server
from tests.server.badmodel import Running
from tests.server.client import Client, deadline


@pytest.fixture
def titling(serve: Callable[..., Server], model: Running) -> Server:
    return serve({"FLASKCHAT_MODEL": "openai:fake", "FLASKCHAT_OPENAI_BASE_URL": f"{model.origin}/v1"})


@pytest.fixture
def titled(titling: Server) -> Client:
    return titling.client()


def test_the_model_s_title_takes_the_place_of_the_question_s_first_words(titled: Client) -> None:
    question = json.dumps({"tag": "title", "text": '"A **short** title."', "rate": 20})
    start = json.loads(titled.send(question).take(1)[0].data)
    assert start["title"].startswith("{")
    path = f"/conversations/{start['conversation_id']}"
    for _ in deadline(30, "the title of the model"):
        if titled.json(path)["title"] == "A short title":
            break


def test_a_title_that_a_person_gave_meanwhile_stays(titled: Client, model: Running) -> None:
    stream = titled.send(json.dumps({"tag": "mine", "text": "Another title", "rate": 3}))
    conversation = json.loads(stream.take(1)[0].data)["conversation_id"]
    assert titled.request("PATCH", f"/conversations/{conversation}", {"title": "Mine"}).status == 200
    stream.rest()
    for _ in deadline(30, "both answers of the model"):
        if model.stats("mine")["finished"] == 2 and not titled.json(f"/conversations/{conversation}")["running"]:
            break
    assert titled.json(f"/conversations/{conversation}")["title"] == "Mine"


def test_another_answer_to_the_first_question_leaves_a_persons_title_alone(titled: Client, model: Running) -> None:
    stream = titled.send(json.dumps({"tag": "again", "text": "Another title"}))
    start = json.loads(stream.take(1)[0].data)
    stream.rest()
    path = f"/conversations/{start['conversation_id']}"
    for _ in deadline(30, "the title of the model"):
        if titled.json(path)["title"] == "Another title":
            break
    assert titled.request("PATCH", path, {"title": "Mine"}).status == 200
    before = model.stats("again")["posts"]
    again = {"action": "regenerate", "message_id": start["message_id"], "request_id": str(uuid.uuid4())}
    titled.request("POST", "/conversation", again).rest()
    for _ in deadline(30, "the end of the second answer"):
        if not titled.json(path)["running"]:
            break
    assert model.stats("again")["posts"] == before + 1, "a title was asked for, which nobody needs"
    assert titled.json(path)["title"] == "Mine"


@pytest.mark.parametrize("fault", ["silent-before-head", "silent-before-first-token"])
def test_a_title_that_takes_long_gives_way_to_stop_and_the_worker_lives(
    titling: Server, model: Running, fault: str
) -> None:
    client, workers = titling.client(), titling.workers()
    for number in range(12):
        tag = f"{fault}-{number}"
        stream = client.send(json.dumps({"tag": tag, "fault": fault, "hold": 60}))
        stream.take(1)
        for _ in deadline(30, "the reply and the title to be asked for"):
            if model.stats(tag)["live"] == (2 if fault == "silent-before-first-token" else 1):
                break
        assert client.stop(stream.run_id)["state"] == "stopped"
        for _ in deadline(30, "both connections to be closed"):
            if model.stats(tag)["live"] == 0:
                break
    assert titling.workers() == workers, "a worker died"


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
