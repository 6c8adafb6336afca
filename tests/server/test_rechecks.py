"""A live stream does not outlive its reader's right to it: logout, a deleted user, a revoked token (within 5 s)."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

import pytest

from flaskchat.readers import LATE
from tests.conftest import Server
from tests.server.client import Client, Stream, deadline

WITHIN = 5.0
SLACK = 20.0
"""Seconds more than promised that these tests give a busy machine."""


@pytest.fixture
def guarded(serve: Callable[..., Server]) -> Callable[..., Server]:
    def start(kind: str) -> Server:
        settings = {"GUARDED": kind, "FLASKCHAT_MODELS": "silent", "FLASKCHAT_DRAIN": "1", "FLASKCHAT_HEARTBEAT": "0.5"}
        return serve(settings, app="tests.server.guarded:app")

    return start


class Browser(Client):
    """Keeps all its cookies."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.port)
        self.jar: dict[str, str] = {}
        server._clients.append(self)

    def request(self, method: str, path: str, body: object = None, **more: object) -> Stream:  # type: ignore[override]
        self.cookie = "; ".join(f"{name}={value}" for name, value in self.jar.items())
        stream = super().request(method, path, body, **more)  # type: ignore[arg-type]
        for line in stream.headers.get_all("Set-Cookie") or []:
            name, _, value = line.partition(";")[0].partition("=")
            self.jar[name] = value
            if "Max-Age=0" in line or "Expires=Thu, 01 Jan 1970" in line:
                self.jar.pop(name, None)
        return stream

    def go(self, path: str) -> None:
        stream = self.get(path)
        assert stream.status == 200, (path, stream.status)
        stream.response.read()


def on_both_workers(server: Server, browser: Browser) -> list[Stream]:
    """The stream of a reply that is being written, and one that follows it, each on another worker."""
    first = browser.send("x", model="silent")
    assert first.status == 200, first.json()
    first.take(2)
    other = next(pid for pid in server.workers() if pid != first.worker)
    second = browser.follow(first.run_id, connection=browser.connect_to(other))
    second.take(2)
    assert second.worker == other
    return [first, second]


def ended(streams: list[Stream]) -> float:
    """Seconds until the last of them has ended, without a terminal event: the reply itself goes on."""
    began = time.monotonic()
    threads = [threading.Thread(target=stream.rest) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WITHIN + SLACK)
    assert not any(thread.is_alive() for thread in threads), "a stream outlived its reader's right"
    for stream in streams:
        assert all(frame.event in ("start", "delta") for frame in stream.frames)
    return time.monotonic() - began


def stays(stream: Stream) -> bool:
    """Whether it is sent heartbeats for a while, as one is that was not ended."""
    before = stream.heartbeats
    until = time.monotonic() + 30
    while stream.heartbeats < before + 6:
        assert time.monotonic() < until, "neither ended nor sent heartbeats"
        data = stream.response.read1(65536)
        if not data:
            return False
        stream._decoder.feed(data)
    return True


def alive(stream: Stream) -> None:
    assert stays(stream), "it ended"


@pytest.mark.parametrize("kind", ["login", "session", "g"])
def test_streams_end_on_all_workers_when_their_user_signs_out(guarded: Callable[..., Server], kind: str) -> None:
    server = guarded(kind)
    ada, bob = Browser(server), Browser(server)
    ada.go("/login/ada")
    bob.go("/login/bob")
    theirs = bob.send("x", model="silent")
    theirs.take(2)
    streams = on_both_workers(server, ada)
    ada.go("/logout")
    assert ended(streams) < WITHIN + SLACK
    again = ada.follow(streams[0].run_id, 2)
    assert again.status in (401, 404)
    alive(theirs)


@pytest.mark.parametrize("kind", ["login", "g"])
def test_streams_end_on_all_workers_when_their_user_is_deleted(guarded: Callable[..., Server], kind: str) -> None:
    server = guarded(kind)
    ada, bob = Browser(server), Browser(server)
    ada.go("/login/ada")
    bob.go("/login/bob")
    theirs = bob.send("x", model="silent")
    theirs.take(2)
    streams = on_both_workers(server, ada)
    alive(streams[0])
    bob.go("/gone/ada")
    assert ended(streams) < WITHIN + SLACK
    alive(theirs)


def test_a_token_that_is_taken_back_and_one_that_the_host_tells_of(guarded: Callable[..., Server]) -> None:
    server = guarded("header")
    admin, client = server.client(), server.client()
    for name in ("ada", "bob"):
        admin.get(f"/login/{name}").response.read()
    streams = {}
    for name in ("ada", "bob"):
        body = {"message": {"id": "1", "text": "x"}, "model": "silent"}
        stream = client.request("POST", "/conversation", body, headers={"X-Token": name})
        assert stream.status == 200
        stream.take(2)
        streams[name] = stream
    admin.get("/gone/ada").response.read()
    ended([streams["ada"]])
    alive(streams["bob"])
    assert admin.get("/revoke/bob").response.read() == b"told"
    ended([streams["bob"]])


def test_a_stream_of_somebody_who_stays_is_not_ended(guarded: Callable[..., Server]) -> None:
    server = guarded("g")
    ada = Browser(server)
    ada.go("/login/ada")
    (stream, _) = on_both_workers(server, ada)
    until = time.monotonic() + 7  # two rounds
    while time.monotonic() < until:
        data = stream.response.read1(65536)
        assert data, "it ended"


def test_a_worker_that_has_served_no_chat_yet_tells_the_others_of_a_sign_out(guarded: Callable[..., Server]) -> None:
    server = guarded("session")
    browser = Browser(server)
    browser.go("/login/ada")
    stream = browser.send("x", model="silent")
    stream.take(2)
    fresh = next(pid for pid in server.workers() if pid != stream.worker)
    assert browser.get("/logout", connection=browser.connect_to(fresh)).status == 200
    ended([stream])


def test_a_browser_that_comes_back_before_it_has_the_answer_to_its_logout_reads_no_longer(
    guarded: Callable[..., Server]
) -> None:
    """Its session lies in its cookie, which is as good as before; a page comes back as soon as its stream has ended."""
    server = guarded("session")
    ada, page = Browser(server), Browser(server)
    for _ in deadline(120, "a logout, and the return before the answer, in less than two seconds"):
        ada.go("/login/ada")
        streams = on_both_workers(server, ada)
        page.jar = dict(ada.jar)
        connections = [page.connect_to(pid) for pid in server.workers()]
        began = time.monotonic()
        ada.go("/logout")
        ended(streams)
        late = [page.follow(streams[0].run_id, 2, connection=connection) for connection in connections]
        if time.monotonic() - began < LATE:
            break
    assert [stream.status for stream in late] == [200, 200]
    ended(late)


def test_on_another_device_the_same_user_comes_back_by_itself(guarded: Callable[..., Server]) -> None:
    """Their stream ends as well, and their browser's next request finds them signed in."""
    server = guarded("session")
    laptop, phone = Browser(server), Browser(server)
    for device in (laptop, phone):
        device.go("/login/ada")
    stream = laptop.send("x", model="silent")
    stream.take(2)
    follower = phone.follow(stream.run_id)
    follower.take(2)
    laptop.go("/logout")
    ended([stream, follower])
    for _ in deadline(30, "a stream that is not ended"):  # as that of the browser that left may be, once more
        again = phone.follow(stream.run_id, 2)
        assert again.status == 200
        if stays(again):
            break
    for _ in deadline(30, "Stop"):
        if phone.stop(stream.run_id)["state"] == "stopped":
            break
    assert [frame.event for frame in again.rest()] == ["stopped"]
    assert json.loads(again.frames[-1].data) == {}
