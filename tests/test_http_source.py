# ruff: noqa: F811  (fixtures are imported by name)

"""HTTPSource against real processes and sockets. All of it is run a second time under gevent's patches."""

from __future__ import annotations

import gc
import json
import os
import ssl
import subprocess
import sys
import threading
import time
import weakref

import pytest

from flaskchat.errors import (
    ModelBusy,
    ModelClosedEarly,
    ModelFailed,
    ModelProtocolError,
    ModelRefused,
    ModelTimeout,
    ModelUnreachable,
)
from flaskchat.models import Delta, Done, Reasoning, Tool
from flaskchat.providers import http

from .server import badmodel
from .server.client import deadline
from .sockets import (  # noqa: F401
    HI,
    HI_EVENTS,
    PROVIDERS,
    STREAM,
    _no_descriptor_is_left_open,
    ask,
    bad,
    bad_tls,
    certificate,
    chunked,
    play,
    provider_at,
    reach,
    server,
    text_in,
)

WHOLE = [None, "invalid-utf8", "no-done", "one-byte", "split", "fields", "surrogates", "json"]


@pytest.mark.parametrize("framing", ["chunked", "close"])
@pytest.mark.parametrize("fault", WHOLE)
@pytest.mark.parametrize("name", PROVIDERS)
def test_a_reply_is_whole_however_it_comes(reach, name, fault, framing):
    directive = {"fault": fault, "framing": framing, "tokens": 40, "seed": f"{name}{fault}"}
    events, error = play(ask(reach(name), json.dumps(directive)))
    assert error is None
    assert text_in(events) == badmodel.text_of(directive)
    assert isinstance(events[-1], Done)
    assert events[-1].finish_reason == "stop"
    assert events[-1].usage.input_tokens == 7


@pytest.mark.parametrize("name", PROVIDERS)
def test_reasoning_and_tool_calls_come_with_the_text(bad, name):
    directive = {"reasoning": 2, "tool": True, "tokens": 3, "finish": "tool_calls", "tag": "all"}
    events, error = play(ask(provider_at(bad.base_url, name), json.dumps(directive)))
    assert error is None
    assert events[:3] == [
        Reasoning("thought 0 thought 1 "),
        Delta(badmodel.text_of(directive)),
        Tool("call_1", "look", '{"at":"it"}'),
    ]
    assert events[3].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("error", ModelFailed),
        ("reset", ModelClosedEarly),
        ("invalid-json", ModelProtocolError),
        ("huge-line", ModelProtocolError),
        ("no-finish", ModelClosedEarly),
    ],
)
@pytest.mark.parametrize("name", PROVIDERS)
def test_what_came_before_a_fault_is_kept_and_the_error_comes_after_it(reach, name, fault, kind):
    directive = {"fault": fault, "after": 7, "seed": fault}
    reads = []
    events, error = play(ask(reach(name), json.dumps(directive)), reads)
    assert type(error) is kind
    expected = badmodel.text_of if fault == "no-finish" else badmodel.text_before_fault
    assert text_in(events) == expected(directive)


def test_a_body_that_ends_too_soon_is_no_reply(bad):
    directive = {"fault": "close", "after": 7}
    events, error = play(ask(provider_at(bad.base_url), json.dumps(directive)))
    assert isinstance(error, ModelClosedEarly)
    assert text_in(events) == badmodel.text_before_fault(directive)


def test_a_busy_server_says_when_to_come_back_and_a_fresh_source_gets_the_reply(bad):
    provider = provider_at(bad.base_url)
    directive = {"tag": "busy", "fault": 429, "times": 2, "retry_after": 3, "text": "at last"}
    for _ in range(2):
        with pytest.raises(ModelBusy) as caught:
            ask(provider, json.dumps(directive)).open()
        assert caught.value.retry_after == 3
    events, error = play(ask(provider, json.dumps(directive)))
    assert (text_in(events), error) == ("at last", None)


@pytest.mark.parametrize("status", badmodel.STATUSES)
def test_a_status_that_is_no_success_is_an_error_with_the_servers_words_in_its_detail(bad, status):
    with pytest.raises((ModelBusy, ModelRefused)) as caught:
        ask(provider_at(bad.base_url), json.dumps({"fault": status})).open()
    assert type(caught.value) is (ModelRefused if status in ("302", "400", "401", "404", "422") else ModelBusy)
    assert status in caught.value.detail
    assert ("example.test" if status == "302" else f"status {status}") in caught.value.detail


def test_a_page_in_place_of_a_reply_is_a_protocol_error(bad):
    with pytest.raises(ModelProtocolError, match=r"text/html.*Please sign in"):
        ask(provider_at(bad.base_url), json.dumps({"fault": "html200"})).open()


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
KNOWN = STREAM + b"Content-Length: %d\r\n\r\n" % len(HI) + HI

ANSWERS = {
    "the body with the head": ([STREAM + b"\r\n" + HI], HI_EVENTS),
    "byte by byte": (
        [bytes([byte]) for byte in STREAM + CHUNKED + chunked(HI)],
        HI_EVENTS,
    ),
    "early hints first": (
        [
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nContent-Type: text/html\r\n\r\n",
            STREAM + b"\r\n" + HI,
        ],
        HI_EVENTS,
    ),
    "hints and answer in one": ([b"HTTP/1.1 100 Continue\r\nX: 1\r\n\r\n" + STREAM + b"\r\n" + HI], HI_EVENTS),
    "HTTP/1.0": ([b"HTTP/1.0 200 OK\r\ncontent-type: Text/Event-Stream;charset=utf-8\r\n\r\n" + HI], HI_EVENTS),
    "a known length": ([KNOWN], HI_EVENTS),
    "trailers": (
        [STREAM + CHUNKED + chunked(HI)[:-2] + b"Status: 500\r\n\r\n"],
        HI_EVENTS,
    ),
    "another answer after it": (
        [KNOWN + STREAM + b"\r\n" + HI],
        HI_EVENTS,
    ),
    "garbage after it": ([STREAM + CHUNKED + chunked(HI) + b"\0garbage\r\n"], HI_EVENTS),
    "no blank line at the end": ([STREAM + b"\r\n" + HI.rstrip()], HI_EVENTS),
    "identity is no compression": ([STREAM + b"Content-Encoding: identity\r\n\r\n" + HI], HI_EVENTS),
    "nothing": ([], ModelUnreachable),
    "half a head": ([STREAM], ModelUnreachable),
    "no HTTP": ([b"SSH-2.0-OpenSSH_9.2\r\n"], ModelProtocolError),
    "a switch of protocols": (
        [b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"],
        ModelProtocolError,
    ),
    "a head without end": ([b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000], ModelProtocolError),
    "hints without end": ([b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" * 4000], ModelProtocolError),
    "compressed": ([STREAM + b"Content-Encoding: gzip\r\n\r\n\x1f\x8b"], ModelProtocolError),
    "no content type": ([b"HTTP/1.1 200 OK\r\n\r\n" + HI], ModelProtocolError),
    "no content": ([b"HTTP/1.1 204 No Content\r\n\r\n"], ModelProtocolError),
    "a broken chunk": ([STREAM + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"], ModelProtocolError),
    "framing without end": (
        [STREAM + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * 200_000],
        ModelProtocolError,
    ),
    "an empty body": ([STREAM + b"\r\n"], ModelClosedEarly),
    "a JSON error": ([b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"error":"no"}'], ModelFailed),
}


@pytest.mark.parametrize(("script", "expected"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_is_a_reply_or_an_error(script, expected):
    with server(script) as (url, _):
        events, error = play(ask(provider_at(url)))
    if isinstance(expected, list):
        assert (events, error) == (expected, None)
    else:
        assert (events, type(error)) == ([], expected), error


def test_a_key_that_a_server_echoes_is_not_in_the_detail():
    script = [b"HTTP/1.1 401 X\r\nContent-Type: text/plain\r\n\r\nBad key sk-secret-12345. " + b"x" * 5000]
    with server(script) as (url, received), pytest.raises(ModelRefused) as caught:
        ask(provider_at(url)).open()
    assert b"Authorization: Bearer sk-secret-12345\r\n" in received[0]
    assert "Bad key ***." in caught.value.detail
    assert "sk-secret" not in caught.value.detail + str(caught.value)
    assert len(caught.value.detail) < 2200


def test_a_server_that_answers_before_it_has_read_the_request_is_heard():
    script = [b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 7\r\n\r\ntoo big"]
    with server(script) as (url, _), pytest.raises((ModelRefused, ModelUnreachable)) as caught:
        ask(provider_at(url), text="x" * 20_000_000).open()
    assert "413" in caught.value.detail or "reset" in caught.value.detail.lower()  # a RST may overtake the answer


def test_a_long_request_is_sent_whole():
    whole = []

    def take(sock):
        size = 0
        while size < 5_000_000 and (data := sock.recv(1 << 20)):
            size += len(data)
        whole.append(size)

    with server([take, STREAM + b"\r\n" + HI]) as (url, _):
        events, error = play(ask(provider_at(url), text="x" * 5_100_000))
    assert (events, error) == (HI_EVENTS, None)


def test_redirects_are_not_followed():
    with server([STREAM + b"\r\n" + HI]) as (elsewhere, asked):
        answer = b"HTTP/1.1 307 X\r\nLocation: " + elsewhere.encode() + b"\r\nContent-Length: 0\r\n\r\n"
        with server([answer]) as (url, _), pytest.raises(ModelRefused):
            ask(provider_at(url)).open()
        assert asked == []
        play(ask(provider_at(elsewhere)))


def test_the_environments_proxies_are_not_used(monkeypatch, bad):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    events, error = play(ask(provider_at(bad.base_url)))
    assert error is None
    assert events


def test_a_server_that_stays_silent_before_its_head_is_a_timeout(bad):
    started = time.monotonic()
    with pytest.raises(ModelTimeout):
        ask(provider_at(bad.base_url, first_byte_timeout=0.2), json.dumps({"fault": "silent-before-head"})).open()
    assert 0.19 < time.monotonic() - started < 20


def test_a_head_that_comes_drop_by_drop_does_not_stretch_the_time():
    def drip(sock):
        for _ in range(3000):  # a minute
            sock.sendall(b"X: y\r\n")
            time.sleep(0.02)

    with server([b"HTTP/1.1 200 OK\r\n", drip]) as (url, _):
        started = time.monotonic()
        with pytest.raises(ModelTimeout):
            ask(provider_at(url, first_byte_timeout=0.2)).open()
        assert time.monotonic() - started < 20


@pytest.mark.parametrize("encrypted", [False, True])
def test_one_read_is_bounded_and_a_fast_model_loses_nothing(bad, bad_tls, certificate, encrypted):
    tls = ssl.create_default_context(cafile=certificate[0]) if encrypted else None
    directive = {"text": "0123456789abcdef" * 200_000, "size": 5000}
    reads = []
    provider = provider_at((bad_tls if encrypted else bad).base_url, tls=tls)
    events, error = play(ask(provider, json.dumps(directive)), reads)
    assert error is None
    assert text_in(events) == directive["text"]
    assert max(len(text_in(new)) for new in reads) < http.MAX_READ


def test_what_came_with_the_head_is_pending_and_needs_no_readable_socket():
    released = threading.Event()
    frame = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
    with server([STREAM + b"\r\n" + frame, lambda _: released.wait(5)]) as (url, _):
        source = ask(provider_at(url))
        source.open()
        assert source.pending
        assert source.read() == [Delta("Hi")]
        assert not source.pending
        assert source.read() == []
        source.close()
        released.set()


def test_a_source_goes_without_the_collector(reach):
    source = ask(reach())
    assert play(source)[1] is None
    parts = [weakref.ref(source), weakref.ref(source._decoder)]
    if source._connection._tls is not None:
        parts.append(weakref.ref(source._connection._tls))
    gc.collect()
    gc.disable()
    try:
        del source
        assert [part() for part in parts] == [None] * len(parts)
    finally:
        gc.enable()


FRAME = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
LASTS = {
    "cut": chunked(FRAME),
    "error": chunked(FRAME + b'data: {"error": {"message": "overloaded"}}\n\n'),
    "framing": chunked(FRAME).removesuffix(b"0\r\n\r\n") + b"zz\r\n",
}


@pytest.mark.parametrize("last", LASTS.values(), ids=LASTS)
def test_a_source_goes_without_the_collector_that_is_closed_before_its_error_is_raised(last):
    released = threading.Event()
    head = STREAM + b"Transfer-Encoding: chunked\r\n\r\n"
    with server([head, lambda _: released.wait(5), last]) as (url, _):
        source = ask(provider_at(url))
        source.open()
        released.set()
        events = []
        while not (events and source.pending):
            events += source.read()
            time.sleep(0.01)
        parts = [weakref.ref(source), weakref.ref(source._decoder)]
        gc.collect()
        gc.disable()
        try:
            source.close()
            del source
            assert [part() for part in parts] == [None, None]
        finally:
            gc.enable()


def test_an_error_that_was_our_own_close_keeps_nothing(bad, monkeypatch):
    source = ask(provider_at(f"{bad.origin}/v1"))
    source.open()
    error = ModelFailed("kept by the decoder")

    def closed_meanwhile(source):
        source.close()
        raise error

    monkeypatch.setattr(http.HTTPSource, "_read", closed_meanwhile)
    assert source.read() == []
    assert error.__traceback__ is None


class UnknownName(OSError):
    """One that can be watched."""


def test_a_name_that_is_not_found_leaves_nothing_to_the_collector(monkeypatch):
    faults = []

    def unknown(*_, **__):
        fault = UnknownName(-2, "Name or service not known")
        faults.append(weakref.ref(fault))
        try:
            raise fault
        finally:
            del fault

    monkeypatch.setattr("flaskchat.providers.connection.socket.getaddrinfo", unknown)
    source = ask(provider_at("https://nowhere.invalid/v1"))
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ModelUnreachable, match="not known"):
            source.open()
        for _ in deadline(30, "the task that looked it up to be gone"):
            if faults[0]() is None:
                break
    finally:
        gc.enable()


@pytest.mark.skipif("gevent.monkey" in sys.modules, reason="this is the second run")
@pytest.mark.parametrize("module", ["test_http_source.py", "test_http_close.py"])
def test_all_of_it_holds_under_gevents_patches(module):
    code = "from gevent import monkey; monkey.patch_all(); import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    path = os.path.join(os.path.dirname(__file__), module)
    command = [sys.executable, "-c", code, "-q", "-p", "no:cacheprovider", path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout
