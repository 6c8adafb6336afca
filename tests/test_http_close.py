# ruff: noqa: F811  (fixtures are imported by name)

"""Close from anywhere and at any time, and what cannot be connected. Run a second time under gevent's patches."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import threading
import time

import pytest

from flaskchat.errors import ModelClosedEarly, ModelUnreachable
from flaskchat.models import Delta, Done
from flaskchat.providers.connection import Connection

from .server import badmodel
from .sockets import (  # noqa: F401
    HI,
    HI_EVENTS,
    STREAM,
    _no_descriptor_is_left_open,
    ask,
    bad,
    bad_tls,
    certificate,
    play,
    provider_at,
    reach,
    read_all,
    server,
    text_in,
)

AT_ONCE = 5.0
"""Seconds; far less than what is waited for otherwise, on a machine that has much to do."""


@contextlib.contextmanager
def full():
    """A server that takes no more connections: who connects waits."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    waiting = []
    for _ in range(8):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(listener.getsockname())
        waiting.append(sock)
    time.sleep(0.02)
    try:
        yield listener.getsockname()[1]
    finally:
        for sock in (*waiting, listener):
            sock.close()


def opening(source):
    """Open in a task of its own; the outcome comes into the list."""
    outcome = []

    def run():
        try:
            source.open()
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def assert_close_wakes(source, reached):
    """:param reached: waits until `open` is where it should be closed."""
    thread, outcome = opening(source)
    reached()
    assert outcome == []
    started = time.monotonic()
    assert source.close() is True
    thread.join(30)
    assert time.monotonic() - started < AT_ONCE
    assert [type(error) for error in outcome] == [ModelClosedEarly]
    assert source.fileno() is None
    assert source.read() == []


def wait_for(condition, what, seconds=30.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.005)


def test_close_during_the_name_lookup(monkeypatch):
    asked, release = threading.Event(), threading.Event()

    def slow(*args, **kwargs):
        asked.set()
        release.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    try:
        assert_close_wakes(ask(provider_at("http://model.test/v1")), lambda: asked.wait(30))
    finally:
        release.set()


def test_close_while_connecting():
    with full() as port:
        source = ask(provider_at(f"http://127.0.0.1:{port}/v1"))
        assert_close_wakes(source, lambda: wait_for(lambda: source.fileno() is not None, "no socket"))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_close_while_the_server_says_nothing(scheme):
    """With https it is the handshake that waits."""
    listener = socket.create_server(("127.0.0.1", 0))
    accepted = []

    def reached():
        sock, _ = listener.accept()
        accepted.append(sock)
        assert sock.recv(100)

    try:
        assert_close_wakes(ask(provider_at(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/v1")), reached)
        accepted[0].settimeout(AT_ONCE)
        while accepted[0].recv(65536):
            pass
    finally:
        for sock in (*accepted, listener):
            sock.close()


@pytest.mark.parametrize("fault", ["silent-before-head", "silent-before-first-token", "stall"])
def test_the_model_sees_the_close_at_once_before_its_head_before_its_first_token_and_in_a_silence(
    reach, bad, bad_tls, fault
):
    model = bad_tls if reach.keywords["tls"] else bad
    tag = f"{fault}-{model.port}"
    source = ask(reach(), json.dumps({"tag": tag, "fault": fault, "after": 3}))
    thread, outcome = opening(source)
    if fault == "silent-before-head":
        wait_for(lambda: model_live(model, tag), "the question")
        assert outcome == []
    else:
        thread.join(30)
        assert outcome == [None]
    if fault == "stall":
        events = []
        while text_in(events) != badmodel.text_before_fault({"tag": tag, "after": 3}):
            events += source.read()
            time.sleep(0.001)
    closed = time.monotonic()
    assert source.close() is True
    wait_for(lambda: model_stats(model, tag)["aborted"], "the model to notice")
    thread.join(30)
    (noticed,) = model_stats(model, tag)["closed_at"]
    assert noticed - closed < AT_ONCE
    assert source.close() is True
    assert source.read() == []


def model_stats(model, tag):
    if not model.origin.startswith("https"):
        return model.stats(tag)
    with contextlib.closing(socket.create_connection(("127.0.0.1", model.port))) as sock:
        context = ssl._create_unverified_context()
        with context.wrap_socket(sock) as tls:
            tls.sendall(b"GET /stats HTTP/1.1\r\nHost: x\r\n\r\n")
            data = b""
            while more := tls.recv(65536):
                data += more
    return json.loads(data.partition(b"\r\n\r\n")[2])["tags"].get(tag, {"live": 0, "aborted": 0})


def model_live(model, tag):
    return model_stats(model, tag)["live"]


def test_a_source_that_was_closed_before_does_not_open(bad):
    source = ask(provider_at(bad.base_url), json.dumps({"tag": "never"}))
    assert source.close() is True
    with pytest.raises(ModelClosedEarly):
        source.open()
    assert bad.stats("never")["posts"] == 0


def is_open(descriptor):
    with contextlib.suppress(OSError):
        os.fstat(descriptor)
        return True
    return False


def test_a_close_in_the_middle_of_a_read_leaves_the_descriptor_to_the_reader(bad):
    """Closed under its hands, the number could be another connection's by the time it reads: somebody else's reply."""
    source = ask(provider_at(bad.base_url), json.dumps({"tokens": 3}))
    source.open()
    descriptor, receive, during = source.fileno(), source._receive, []

    def closing(size):
        assert source.close() is True
        during.append(is_open(descriptor))
        return receive(size)

    source._receive = closing
    source.read()
    assert during == [True]
    assert not is_open(descriptor)
    assert source.read() == []


def test_a_close_in_the_middle_of_opening_leaves_the_descriptor_to_the_opener(monkeypatch, bad):
    source = ask(provider_at(bad.base_url), json.dumps({"tokens": 3}))
    send, during = Connection.send, []

    def closing(connection, data, by):
        descriptor = connection.fileno()
        assert source.close() is True
        during.extend([descriptor, is_open(descriptor)])
        send(connection, data, by)

    monkeypatch.setattr(Connection, "send", closing)
    with pytest.raises(ModelClosedEarly):
        source.open()
    descriptor, was_open = during
    assert was_open
    assert not is_open(descriptor)


def test_a_read_while_it_opens_gives_nothing_and_does_not_disturb_it(bad):
    source = ask(provider_at(bad.base_url), json.dumps({"tag": "early", "fault": "silent-before-head", "hold": 0.1}))
    thread, outcome = opening(source)
    wait_for(lambda: bad.stats("early")["live"], "the question")
    assert source.read() == []
    assert source._busy
    thread.join(30)
    assert outcome == [None]
    assert isinstance(read_all(source)[-1], Done)
    source.close()


def test_nobody_listens():
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    with pytest.raises(ModelUnreachable, match="refused"):
        ask(provider_at(f"http://127.0.0.1:{port}/v1")).open()


def test_a_connection_that_is_not_taken_in_time_is_given_up():
    with full() as port:
        started = time.monotonic()
        with pytest.raises(ModelUnreachable, match="in time"):
            ask(provider_at(f"http://127.0.0.1:{port}/v1", connect_timeout=0.2)).open()
        assert 0.19 < time.monotonic() - started < 20


def test_a_handshake_that_does_not_come_is_given_up():
    listener = socket.create_server(("127.0.0.1", 0))
    try:
        with pytest.raises(ModelUnreachable, match="in time"):
            ask(provider_at(f"https://127.0.0.1:{listener.getsockname()[1]}/v1", connect_timeout=0.2)).open()
    finally:
        listener.close()


def test_a_name_that_is_not_found_in_time_is_given_up(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: release.wait(60) and [])
    try:
        with pytest.raises(ModelUnreachable, match="in time"):
            ask(provider_at("http://model.test/v1", connect_timeout=0.2)).open()
    finally:
        release.set()


@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long")])
def test_a_name_that_is_unknown(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(ModelUnreachable, match=r"model\.test"):
        ask(provider_at("http://model.test/v1")).open()


def test_all_addresses_are_tried(monkeypatch):
    free = socket.create_server(("127.0.0.1", 0))
    unused = free.getsockname()
    free.close()
    with server([STREAM + b"\r\n" + HI]) as (url, _), full() as port:
        good = ("127.0.0.1", int(url.split(":")[2].split("/")[0]))
        kind = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
        found = [
            (socket.AF_INET6, socket.SOCK_STREAM, 0, "", ("2001:db8::1", 9, 0, 0)),
            (*kind, unused),
            (*kind, ("127.0.0.1", port)),
            (*kind, good),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
        assert play(ask(provider_at("http://model.test/v1", connect_timeout=1))) == (HI_EVENTS, None)


def test_localhost_is_found(bad):
    events, error = play(ask(provider_at(f"http://localhost:{bad.port}/v1")))
    assert error is None
    assert isinstance(events[-1], Done)


def test_a_certificate_nobody_vouches_for_is_refused(bad_tls):
    with pytest.raises(ModelUnreachable, match=r"(?i)certificate verify failed"):
        ask(provider_at(bad_tls.base_url)).open()


def test_a_certificate_for_another_name_is_refused(bad_tls, certificate):
    tls = ssl.create_default_context(cafile=certificate[0])
    with pytest.raises(ModelUnreachable, match=r"(?i)certificate verify failed"):
        ask(provider_at(f"https://localhost:{bad_tls.port}/v1", tls=tls)).open()


def test_a_server_without_tls_is_unreachable_over_it(bad):
    with pytest.raises(ModelUnreachable):
        ask(provider_at(f"https://127.0.0.1:{bad.port}/v1", connect_timeout=0.3)).open()


def test_bytes_that_tls_held_back_are_not_lost_when_the_server_says_goodbye_and_stays(certificate):
    """After close_notify the socket may never be readable again."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    released = threading.Event()
    frame = b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\n'

    def goodbye(sock):
        sock.settimeout(0.1)
        with contextlib.suppress(OSError):
            sock.unwrap()  # sends close_notify, and waits in vain for ours
        released.wait(5)

    with server([STREAM + b"\r\n", frame, goodbye], tls=context) as (url, _):
        tls = ssl.create_default_context(cafile=certificate[0])
        try:
            assert play(ask(provider_at(url, tls=tls))) == (HI_EVENTS, None)
        finally:
            released.set()


def test_while_one_waits_for_a_head_the_others_go_on(bad):
    source = ask(provider_at(bad.base_url), json.dumps({"fault": "silent-before-head"}))
    thread, outcome = opening(source)
    gaps, last = [], time.monotonic()
    until = last + 0.3
    while last < until or len(gaps) < 20:
        time.sleep(0.005)
        now = time.monotonic()
        gaps.append(now - last)
        last = now
    assert outcome == []
    source.close()
    thread.join(30)
    assert min(gaps) < 0.05


def test_text_that_came_before_the_close_was_given_as_it_came(bad):
    source = ask(provider_at(bad.base_url), json.dumps({"tokens": 3, "rate": 100, "fault": "stall", "after": 2}))
    source.open()
    events = []
    wait_for(lambda: events.extend(source.read()) or len(text_in(events)) > 3, "text")
    assert all(isinstance(event, Delta) for event in events)
    source.close()
