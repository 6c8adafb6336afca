from __future__ import annotations

import contextlib
import json
import socket
import threading
import time

import pytest

from flaskchat.config import load
from flaskchat.errors import ConfigurationError, Invalid
from flaskchat.models import Delta, Done, Request, Turn
from flaskchat.providers.anthropic import AnthropicProvider
from flaskchat.providers.callable import CallableProvider
from flaskchat.providers.openai import OpenAIProvider
from flaskchat.providers.registry import Registry, Server, discover


def parrot(request):
    yield from request.text.split()


def registry(functions=None, **settings):
    return Registry(load({f"FLASKCHAT_{key.upper()}": value for key, value in settings.items()}), functions)


@pytest.mark.parametrize(
    ("functions", "settings", "chosen", "why"),
    [
        ({}, {}, "guide", "because no model is connected"),
        ({}, {"anthropic_api_key": "key"}, "anthropic:claude-sonnet-5", "because ANTHROPIC_API_KEY is set"),
        ({}, {"openai_api_key": "key"}, "openai:gpt-5-mini", "because OPENAI_API_KEY is set"),
        ({}, {"openai_api_key": "k", "anthropic_api_key": "k"}, "openai:gpt-5-mini", "because OPENAI_API_KEY is set"),
        ({}, {"openai_base_url": "https://gpu:8000/v1"}, "openai:gpt-5-mini", "because OPENAI_BASE_URL is set"),
        ({}, {"openai_base_url": "https://api.openai.com/v1/"}, "guide", "because no model is connected"),
        ({"a": parrot, "b": parrot}, {"openai_api_key": "key"}, "a", "because the application registered it"),
        ({"a": parrot}, {"model": "openai:llama3:8b"}, "openai:llama3:8b", "because FLASKCHAT_MODEL is set"),
        ({"a": parrot}, {"model": " guide "}, "guide", "because FLASKCHAT_MODEL is set"),
        ({"a": parrot, "b": parrot}, {"model": "python:b"}, "b", "because FLASKCHAT_MODEL is set"),
        ({}, {"model": "openai:org/name"}, "openai:org/name", "because FLASKCHAT_MODEL is set"),
    ],
)
def test_the_default_is_chosen_and_says_why(functions, settings, chosen, why):
    choice = registry(functions, **settings).default()
    assert (choice.id, choice.why) == (chosen, why)
    assert str(choice) == f"{chosen}, {why}"


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "llama3:8b"},
        {"model": "openai:"},
        {"model": "python:"},
        {"model": "a b"},
        {"models": "openai:x, nope:y"},
        {"models": "open ai"},
    ],
)
def test_a_model_id_that_cannot_be_is_refused_at_start(settings):
    with pytest.raises(ConfigurationError, match="FLASKCHAT_MODEL"):
        registry(**settings)


def test_a_default_that_nobody_registered_is_refused_when_it_is_asked_for():
    functions = {}
    models = registry(functions, model="parrot")
    with pytest.raises(ConfigurationError, match=r"FLASKCHAT_MODEL='parrot'.*guide"):
        models.default()
    functions["parrot"] = parrot
    assert models.default().id == "parrot"


@pytest.mark.parametrize("key", ["openai_api_key", "anthropic_api_key"])
def test_a_key_that_no_header_can_carry_is_refused_at_start(key):
    with pytest.raises(ConfigurationError):
        registry(**{key: "a\nb"})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": "openai:gpt-5"}, [("FLASKCHAT_MODEL names openai:gpt-5,", "FLASKCHAT_OPENAI_API_KEY")]),
        ({"model": " anthropic:x "}, [("FLASKCHAT_MODEL names anthropic:x,", "FLASKCHAT_ANTHROPIC_API_KEY")]),
        (
            {"model": "openai:a", "models": "openai:b, anthropic:c", "openai_base_url": "https://api.openai.com/v1/"},
            [("FLASKCHAT_MODEL names openai:a,", "OPENAI"), ("FLASKCHAT_MODELS names anthropic:c,", "ANTHROPIC")],
        ),
        ({"model": "openai:gpt-5", "openai_api_key": "sk-hunter2"}, []),
        ({"model": "openai:x", "openai_base_url": "http://127.0.0.1:9/v1"}, []),
        ({"model": "anthropic:x", "anthropic_base_url": "http://127.0.0.1:9"}, []),
        ({"model": "guide"}, []),
        ({}, []),
    ],
)
def test_a_named_model_whose_key_is_missing_is_told_with_the_setting(settings, told):
    found = registry(**settings).without_key()
    assert len(found) == len(told)
    for words, parts in zip(found, told, strict=True):
        assert all(part in words for part in parts), words


@pytest.mark.parametrize(
    ("functions", "settings", "told"),
    [
        ({}, {"openai_base_url": "http://127.0.0.1:9/v1"}, True),
        ({}, {"openai_base_url": "http://127.0.0.1:9/v1", "openai_api_key": "sk-hunter2"}, True),
        ({}, {"openai_base_url": "http://127.0.0.1:9/v1", "model": "openai:x"}, False),
        ({"a": parrot}, {"openai_base_url": "http://127.0.0.1:9/v1"}, False),
        ({}, {"openai_api_key": "sk-hunter2"}, False),
        ({}, {}, False),
    ],
)
def test_a_model_s_name_that_nobody_chose_is_told_with_the_setting(functions, settings, told):
    words = registry(functions, **settings).taken_name()
    assert (words is not None) == told
    if words is not None:
        assert all(part in words for part in ("http://127.0.0.1:9/v1", "gpt-5-mini", "FLASKCHAT_MODEL=openai:"))
        assert "hunter2" not in words


@pytest.mark.parametrize("name", ["parrot", "my-model_2.0", "A"])
def test_a_name_of_letters_digits_and_some_signs_can_be_a_models(name):
    Registry.check_name(name)
    assert registry({name: parrot}).default().id == name


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a/b", "ä", "a\n", None, 4])
def test_another_name_cannot(name):
    with pytest.raises(ConfigurationError, match="model name"):
        Registry.check_name(name)


def test_a_model_registered_after_the_start_is_found():
    functions = {}
    models = registry(functions)
    functions["parrot"] = parrot
    assert models.offered() == ["parrot"]
    assert models.resolve("parrot")[1] == "parrot"


def test_the_list_begins_with_the_default_and_has_each_model_once():
    models = registry({"a": parrot}, model="openai:x", models="anthropic:y,openai:x, a,guide,openai:z,unregistered")
    assert models.items() == [
        {"id": "openai:x", "label": "x", "default": True, "capabilities": ["text", "reasoning", "stop"]},
        {"id": "a", "label": "a", "default": False, "capabilities": ["text", "stop"]},
        {"id": "anthropic:y", "label": "y", "default": False, "capabilities": ["text", "reasoning", "stop"]},
        {"id": "guide", "label": "Guide", "default": False, "capabilities": ["text", "stop"]},
        {"id": "openai:z", "label": "z", "default": False, "capabilities": ["text", "reasoning", "stop"]},
    ]


def test_the_list_is_json():
    assert json.loads(json.dumps(registry().items()))[0]["id"] == "guide"


def test_one_that_is_asked_for_is_picked_before_the_conversations_and_the_default():
    models = registry({"a": parrot, "b": parrot}, models="openai:x")
    assert models.pick(None, None) == "a"
    assert models.pick(None, "b") == "b"
    assert models.pick("openai:x", "b") == "openai:x"
    assert models.pick("python:b", None) == "b"
    assert models.pick(None, "openai:gone") == "a"


@pytest.mark.parametrize(
    "asked", ["openai:gpt-99", "anthropic:x", "guide", "nobody", "", "python:", "openai:", "openai:x:y"]
)
def test_one_that_is_not_offered_cannot_be_picked(asked):
    """A key is set, so that the operator would pay."""
    models = registry({"a": parrot}, openai_api_key="key", models="openai:x")
    with pytest.raises(Invalid) as caught:
        models.pick(asked, None)
    assert caught.value.errors == [{"field": "model", "reason": "not offered; GET /models lists the models that are"}]


@pytest.mark.parametrize(
    ("model_id", "kind", "name"),
    [
        ("openai:gpt-5-mini", OpenAIProvider, "gpt-5-mini"),
        ("openai:org/llama3:8b", OpenAIProvider, "org/llama3:8b"),
        ("anthropic:claude", AnthropicProvider, "claude"),
        ("a", CallableProvider, "a"),
        ("python:a", CallableProvider, "a"),
        ("guide", CallableProvider, "guide"),
    ],
)
def test_an_id_is_resolved_to_a_provider_and_a_name(model_id, kind, name):
    provider, found = registry({"a": parrot}).resolve(model_id)
    assert (type(provider), found) == (kind, name)
    assert provider.source(Request(model=found, turns=[Turn("user", "Hi")])) is not None


@pytest.mark.parametrize("model_id", ["gone", "python:gone", "mistral:x", ""])
def test_an_unknown_id_is_not_resolved(model_id):
    with pytest.raises(Invalid):
        registry().resolve(model_id)


def test_a_host_may_have_its_own_guide():
    models = registry({"guide": parrot})
    provider, name = models.resolve("guide")
    source = provider.source(Request(model=name, turns=[Turn("user", "Hi")]))
    source.open()
    until = time.monotonic() + 30
    events = []
    while not events or not isinstance(events[-1], Done):
        assert time.monotonic() < until
        events += source.read()
        time.sleep(0.001)
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "Hi"
    assert models.items()[0]["label"] == "guide"


@contextlib.contextmanager
def listening(body=None, head=b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n", delay=0.0):
    """A server that gives one answer; without a body it accepts and stays silent."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked = []

    def serve():
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with sock:
                    asked.append(sock.recv(65536))
                    if body is None:
                        sock.recv(1)
                        continue
                    time.sleep(delay)
                    sock.sendall(head + (body if isinstance(body, bytes) else json.dumps(body).encode()))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def listed(*ids):
    return {"object": "list", "data": [{"id": name} for name in ids]}


def test_a_model_server_on_this_host_is_found_with_its_first_chat_model():
    with listening(listed("nomic-embed-text", "llama3.2:latest", "qwen3")) as (port, asked):
        found = discover(20.0, [Server("Ollama", port)])
    assert found is not None
    assert found.id == "openai:llama3.2:latest"
    assert found.openai_base_url == f"http://127.0.0.1:{port}/v1"
    assert found.why == f"because Ollama answers on 127.0.0.1:{port}"
    assert asked[0].startswith(b"GET /v1/models HTTP/1.1\r\n")
    choice = registry(model=found.id, openai_base_url=found.openai_base_url).default()
    assert choice.id == found.id


def test_the_first_in_the_list_is_taken_though_another_is_quicker():
    with listening(listed("slow"), delay=0.05) as (first, _), listening(listed("quick")) as (second, _):
        found = discover(20.0, [Server("A", first), Server("B", second)])
    assert found is not None
    assert found.id == "openai:slow"


def test_a_server_that_stays_silent_does_not_keep_the_others_from_being_found_in_time():
    with listening() as (silent, _), listening(listed("m")) as (good, _):
        started = time.monotonic()
        found = discover(2.0, [Server("A", silent), Server("B", good)])
        assert time.monotonic() - started < 15
    assert found is not None
    assert found.id == "openai:m"


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        {},
        [],
        {"data": None},
        {"data": []},
        {"data": [{}]},
        {"data": [{"id": 4}]},
        {"data": [{"id": " "}]},
        b"[" * 5000,
        b"\xff",
    ],
)
def test_something_else_that_listens_there_is_no_model_server(body):
    with listening(body) as (port, _):
        assert discover(2.0, [Server("X", port)]) is None


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 404 X\r\n\r\n", b"HTTP/1.1 302 X\r\nLocation: /v1\r\n\r\n", b"garbage\r\n\r\n"]
)
def test_an_answer_that_is_no_success_is_no_model_server(head):
    with listening(listed("m"), head=head) as (port, _):
        assert discover(2.0, [Server("X", port)]) is None


def test_nobody_there_is_nothing_found():
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    assert discover(0.3, [Server("X", port)]) is None
    assert discover(0.3, []) is None
