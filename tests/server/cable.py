"""A second machine on the same host: a network namespace, and the cables to it, which a test can pull.

A pulled cable says nothing: no FIN, no RST, no answer to a SYN, and what is sent is lost. Nor does ARP tell, which
would from the next room, but not from behind a router.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
NET = f"198.{18 + os.getpid() // 256 % 2}.{os.getpid() % 256}"
"""RFC 2544: for tests, routed nowhere. Each test process has its own, because all have the near ends in one place."""


class Machine:
    def __init__(self, name: str) -> None:
        self.name = name

    def do(self, function: Callable[[], T]) -> T:
        """Call `function` in a thread that is there. The sockets that it makes, and the processes, stay there."""
        made: list[T] = []

        def work() -> None:
            with Path(f"/run/netns/{self.name}").open() as there:
                if ctypes.CDLL(None, use_errno=True).setns(there.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(function())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return made[0]


class Cable:
    """:param number: of those to this machine."""

    def __init__(self, machine: Machine, number: int) -> None:
        self.machine = machine
        self.near, self.far = f"{machine.name}{number}a", f"{machine.name}{number}b"
        self._mac = f"02:00:00:00:00:{number:02x}"
        self.here, self.there = f"{NET}.{4 * number + 1}", f"{NET}.{4 * number + 2}"

    def lay(self) -> None:
        there = self.machine.name
        ip("link", "add", self.near, "type", "veth", "peer", "name", self.far, "netns", there)
        ip("address", "add", f"{self.here}/30", "dev", self.near)
        ip("link", "set", self.near, "up")
        ip("-n", there, "address", "add", f"{self.there}/30", "dev", self.far)
        ip("-n", there, "link", "set", self.far, "address", self._mac)
        self.plug_in()
        ip("neighbour", "add", self.there, "lladdr", self._mac, "dev", self.near)  # permanent

    def socket(self) -> socket.socket:
        """A TCP socket of the other machine."""
        return self.machine.do(socket.socket)

    def pull(self) -> None:
        ip("-n", self.machine.name, "link", "set", self.far, "down")

    def plug_in(self) -> None:
        ip("-n", self.machine.name, "link", "set", self.far, "up")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=60)


@contextlib.contextmanager
def laid(cables: int = 1) -> Iterator[list[Cable]]:
    """Cables to a machine of their own; none where this process may not lay them."""
    machine = Machine(f"fc{os.getpid()}")
    found = [Cable(machine, number) for number in range(cables)]
    try:
        if shutil.which("ip") is None:
            raise FileNotFoundError("ip")
        ip("netns", "add", machine.name)
        ip("-n", machine.name, "link", "set", "lo", "up")
        for cable in found:
            cable.lay()
    except (OSError, subprocess.CalledProcessError):
        yield []
    else:
        yield found
    finally:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            ip("netns", "delete", machine.name)  # and with it both ends of each
