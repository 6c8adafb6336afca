"""Greenlets where gevent has patched the process, threads elsewhere: the same behaviour, shown in both."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import threading
import time

import pytest

from flaskchat import tasks
from flaskchat.poller import HANGUP, READ, Poller
from tests.conftest import ROOT


def on_greenlets(code: str) -> str:
    """What a script prints in a process of its own that gevent has patched. It fails like an assertion here."""
    head = "from gevent import monkey; monkey.patch_all()\nimport gevent, socket, threading, time\n"
    head += "from flaskchat import tasks\nassert tasks.cooperative()\n"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", head + code], cwd=ROOT, capture_output=True, text=True, timeout=90,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_without_gevent_tasks_are_threads() -> None:
    assert not tasks.cooperative()
    found: list[threading.Thread] = []
    task = tasks.spawn(lambda: found.append(threading.current_thread()))
    task.join(60)
    assert not task.is_alive()
    assert found[0] is not threading.current_thread()
    assert found[0].daemon
    task.kill()


def test_a_greenlet_can_be_killed_where_it_waits_and_joined() -> None:
    on_greenlets(
        """
ended = []
def wait():
    try:
        tasks.sleep(60)
    finally:
        ended.append(1)
task = tasks.spawn(wait)
tasks.sleep(0.01)
assert task.is_alive()
task.kill()
task.join(60)
assert not task.is_alive() and ended == [1]
"""
    )


def test_a_call_that_waits_in_c_leaves_the_hub_free() -> None:
    on_greenlets(
        """
sleep = monkey.get_original("time", "sleep")
pool, beats = tasks.Offloader(2), []
def beat():
    while True:
        beats.append(1)
        tasks.sleep(0.005)
tasks.spawn(beat)
before = threading.get_ident()
assert pool.call(lambda a, b: (sleep(0.3), a + b)[1], 1, b=2) == 3
assert len(beats) > 20, len(beats)
pool.close()
pool.call(int)
pool.close()
"""
    )


def test_a_call_hands_on_what_it_raises() -> None:
    code = """
pool = tasks.Offloader(1)
try:
    pool.call(int, "x")
except ValueError:
    print("raised")
pool.close()
"""
    assert on_greenlets(code) == "raised\n"
    with pytest.raises(ValueError, match="invalid literal"):
        tasks.Offloader(1).call(int, "x")


def test_what_a_failed_call_came_through_is_let_go_of_without_the_collector() -> None:
    code = """
import gc, weakref
class Fault(Exception):
    pass
def fail():
    raise Fault
def fault_of(pool):
    try:
        pool.call(fail)
    except Fault as fault:
        return weakref.ref(fault)
gc.disable()
print([fault_of(pool)() for pool in (tasks.Offloader(1), tasks.Errands())])
"""
    assert on_greenlets(code) == "[None, None]\n"


def test_what_a_call_raises_is_let_go_of_also_where_its_caller_was_killed() -> None:
    code = """
import gc, weakref
class Fault(Exception):
    pass
sleep = monkey.get_original("time", "sleep")
def faults_of(pool, wait):
    faults = []
    def fail():
        wait(0.2)
        fault = Fault()
        faults.append(weakref.ref(fault))
        try:
            raise fault
        finally:
            del fault
    task = tasks.spawn(pool.call, fail)
    tasks.sleep(0.05)
    task.kill()
    task.join(60)
    while not faults:
        tasks.sleep(0.01)
    tasks.sleep(0.05)
    del task
    return [fault() for fault in faults]
gc.disable()
print(faults_of(tasks.Offloader(1), sleep), faults_of(tasks.Errands(), tasks.sleep))
"""
    assert on_greenlets(code) == "[None] [None]\n"


def test_a_caller_that_is_killed_goes_only_after_its_call_has_ended() -> None:
    """Else its connection would be handed on while a thread is still in it."""
    on_greenlets(
        """
sleep = monkey.get_original("time", "sleep")
pool, order = tasks.Offloader(1), []
def work():
    sleep(0.2)
    order.append("call ended")
def caller():
    try:
        pool.call(work)
    finally:
        order.append("caller gone")
for kills in (1, 3):
    order.clear()
    task = tasks.spawn(caller)
    for _ in range(kills):
        tasks.sleep(0.03)
        task.kill()
    task.join(60)
    assert order == ["call ended", "caller gone"], order
pool.close()
"""
    )


CALLS = """
{head}
import threading, time
pool, inside, most = tasks.Offloader(2), [], []
def work():
    inside.append(1)
    most.append(len(inside))
    {sleep}(0.02)
    inside.pop()
callers = [tasks.spawn(pool.call, work) for _ in range(8)]
for caller in callers:
    caller.join(60)
assert max(most) == 2, most
assert len(most) == 8
pool.close()
"""


def test_no_more_calls_are_made_at_once_than_there_are_places() -> None:
    on_greenlets(CALLS.format(head="", sleep='monkey.get_original("time", "sleep")'))
    exec(CALLS.format(head="from flaskchat import tasks", sleep="time.sleep"), {})


WAITER = """
{head}
waiter, order = tasks.waiter(), []
waiter.wake()
waiter.wake()
waiter.wait()
order.append("a wake before the wait is not lost")
def waits():
    for _ in range(3):
        waiter.wait()
        order.append("woken")
        bell.set()
bell = tasks.Event()
task = tasks.spawn(waits)
for _ in range(3):
    bell.clear()
    tasks.sleep(0.01)
    waiter.wake()
    assert bell.wait(60)
task.join(60)
assert not task.is_alive()
assert order[1:] == ["woken"] * 3
"""


def test_a_waiter_is_woken_as_often_as_it_waits() -> None:
    on_greenlets(WAITER.format(head=""))
    exec(WAITER.format(head="from flaskchat import tasks"), {})


def test_a_killed_waiter_is_forgotten() -> None:
    on_greenlets(
        """
waiter = tasks.waiter()
task = tasks.spawn(waiter.wait)
tasks.sleep(0.01)
task.kill()
task.join(60)
waiter.wake()
tasks.sleep(0.01)
waiter.wait()
"""
    )


READABLE = """
{head}
import socket, time
one, two = socket.socketpair()
began = time.monotonic()
assert not tasks.wait_readable(one.fileno(), 0.1)
assert 0.05 < time.monotonic() - began < 20
two.send(b"x")
assert tasks.wait_readable(one.fileno(), 60)
one.recv(1)
two.close()
assert tasks.wait_readable(one.fileno(), 60), "a peer that has closed"
one.close()
"""


def test_waiting_for_a_descriptor_sees_bytes_and_the_peer_s_end() -> None:
    on_greenlets(READABLE.format(head=""))
    exec(READABLE.format(head="from flaskchat import tasks"), {})


def test_a_descriptor_with_a_large_number_is_waited_for_as_well() -> None:
    large = 1100
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= large:
        resource.setrlimit(resource.RLIMIT_NOFILE, (large + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    one, two = socket.socketpair()
    os.dup2(one.fileno(), large)
    try:
        assert not tasks.wait_readable(large, 0.01)
        two.send(b"x")
        assert tasks.wait_readable(large, 60)
    finally:
        os.close(large)
        one.close()
        two.close()


# -- the selector ----------------------------------------------------------------------------------------------------

POLLER = """
{head}
import socket, time
from flaskchat.poller import HANGUP, READ, Poller
poller = Poller()
began = time.monotonic()
poller.wait(0.05)
assert poller.ready() == []
assert time.monotonic() - began < 20
poller.ring()
poller.ring()
began = time.monotonic()
poller.wait(60)
assert time.monotonic() - began < 20, "a ring before the wait is not lost"
assert poller.ready() == []
pairs = {{kind: socket.socketpair() for kind in (READ, HANGUP)}}
for kind, (mine, _) in pairs.items():
    poller.register(mine.fileno(), kind, kind)
for _, theirs in pairs.values():
    theirs.send(b"x")
poller.wait(60)
assert poller.ready() == [(READ, False)], "bytes are no hang-up"
assert poller.ready() == [(READ, False)], "as long as they are not read"
pairs[READ][0].recv(1)
pairs[HANGUP][1].close()
poller.wait(60)
assert poller.ready() == [(HANGUP, True)]
for kind in pairs:
    poller.unregister(pairs[kind][0].fileno())
poller.unregister(pairs[READ][0].fileno())
assert poller.ready() == []
began = time.monotonic()
tasks.spawn(lambda: (tasks.sleep(0.05), poller.ring()))
poller.wait(60)
assert 0.02 < time.monotonic() - began < 20, "a ring while it waits"
poller.close()
for pair in pairs.values():
    for sock in pair:
        sock.close()
"""


def test_the_selector_tells_bytes_hang_ups_and_rings() -> None:
    on_greenlets(POLLER.format(head=""))
    exec(POLLER.format(head="from flaskchat import tasks"), {})


def test_rings_from_many_threads_are_never_lost() -> None:
    poller = Poller()
    seen, end = 0, threading.Event()
    asked = [0] * 4

    def ring(number: int) -> None:
        while not end.is_set():
            asked[number] += 1
            poller.ring()
            time.sleep(0.0005)

    threads = [threading.Thread(target=ring, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 0.5
    while seen <= 50 or time.monotonic() < until:
        began = time.monotonic()
        poller.wait(60)
        assert time.monotonic() - began < 20, "a ring was lost"
        poller.ready()
        seen += 1
    end.set()
    for thread in threads:
        thread.join()
    poller.close()


def test_a_descriptor_s_number_that_is_used_again_belongs_to_the_new_owner() -> None:
    poller = Poller()
    read, write = os.pipe()
    poller.register(read, READ, "old")
    os.write(write, b"x")
    assert poller.ready() == [("old", False)]
    poller.unregister(read)
    os.close(read)
    os.close(write)
    again, other = os.pipe()
    assert read in (again, other)
    poller.register(again, HANGUP, "new")
    os.close(other)
    assert poller.ready() == [("new", True)]
    poller.unregister(again)
    os.close(again)
    poller.close()
