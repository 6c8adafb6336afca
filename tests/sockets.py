"""What the tests of HTTPSource share: sources, a reader in the pump's place, and servers of a few lines."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
import ssl
import subprocess
import threading
import time

import pytest

from flaskchat.config import load
from flaskchat.errors import ModelError
from flaskchat.models import Delta, Done, Request, Turn
from flaskchat.providers.anthropic import AnthropicProvider
from flaskchat.providers.openai import OpenAIProvider

from .replies import joined
from .server import badmodel

PROVIDERS = {"openai": OpenAIProvider, "anthropic": AnthropicProvider}
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
HI = b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
HI_EVENTS = [Delta("Hi"), Done("stop")]


def chunked(*bodies):
    return b"".join(b"%x\r\n%b\r\n" % (len(body), body) for body in bodies) + b"0\r\n\r\n"


def provider_at(base_url, name="openai", tls=None, **settings):
    config = {"FLASKCHAT_OPENAI_BASE_URL": base_url, "FLASKCHAT_ANTHROPIC_BASE_URL": base_url}
    config |= {"FLASKCHAT_OPENAI_API_KEY": "sk-secret-12345", "FLASKCHAT_ANTHROPIC_API_KEY": "sk-secret-12345"}
    config |= {"FLASKCHAT_PLAIN_HTTP": True}  # `model.test` is looked up by the tests themselves
    config |= {f"FLASKCHAT_{key.upper()}": value for key, value in settings.items()}
    return PROVIDERS[name](load(config), tls=tls)


def ask(provider, text="Hi", model="m"):
    return provider.source(Request(model=model, turns=[Turn("user", text)]))


def read_all(source, seconds=60.0, reads=None):
    """What the pump would get: `read` when the socket is readable or something is pending, until the end."""
    events, until = [], time.monotonic() + seconds
    while not (events and isinstance(events[-1], Done)):
        assert time.monotonic() < until, f"no end after {events[-3:]}"
        if not source.pending:
            poll = select.poll()
            poll.register(source.fileno(), select.POLLIN)
            if not poll.poll(100):
                continue
        new = source.read()
        if reads is not None:
            reads.append(new)
        events += new
    return joined(events)


def play(source, reads=None):
    """Events and the error that ended them, if one did."""
    reads = [] if reads is None else reads
    try:
        source.open()
        read_all(source, reads=reads)
    except ModelError as error:
        return joined(event for new in reads for event in new), error
    finally:
        assert source.close() is True
    return joined(event for new in reads for event in new), None


def text_in(events):
    return "".join(event.text for event in events if isinstance(event, Delta))


@contextlib.contextmanager
def server(*scripts, tls=None):
    """A server that plays one script for each connection: bytes are sent, functions called with the socket."""
    listener = socket.create_server(("127.0.0.1", 0))
    received = []

    def serve():
        for script in scripts:
            with contextlib.suppress(OSError):
                sock, _ = listener.accept()
                with tls.wrap_socket(sock, server_side=True) if tls else sock as sock:
                    request = b""
                    while b"\r\n\r\n" not in request and (data := sock.recv(65536)):
                        request += data
                    received.append(request)
                    for step in script:
                        step(sock) if callable(step) else sock.sendall(step)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{listener.getsockname()[1]}/v1", received
    finally:
        listener.close()
        thread.join(30)


@pytest.fixture(scope="module")
def bad():
    with badmodel.running() as running:
        yield running


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    command += [
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
        "-subj",
        "/CN=model",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture(scope="module")
def bad_tls(certificate):
    with badmodel.running("--cert", str(certificate[0]), "--key", str(certificate[1])) as running:
        yield running


@pytest.fixture(params=["http", "https"])
def reach(request, certificate):
    """A function that makes a provider for the model server over plain TCP, and one over TLS."""
    if request.param == "http":
        running, tls = request.getfixturevalue("bad"), None
    else:
        running, tls = request.getfixturevalue("bad_tls"), ssl.create_default_context(cafile=certificate[0])
    return functools.partial(provider_at, running.base_url, tls=tls)


@pytest.fixture(autouse=True)
def _no_descriptor_is_left_open(request):
    if {"bad", "bad_tls", "reach"} & set(request.fixturenames):  # their processes hold some, from the first test on
        request.getfixturevalue("bad")
        request.getfixturevalue("bad_tls")
    before = open_sockets()
    yield
    until = time.monotonic() + 30
    while open_sockets() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert open_sockets() <= before


def open_sockets():
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    return count
