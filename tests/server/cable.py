"""A second machine on the same host: a network namespace, and the cable to it, which a test can pull."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

CLONE_NEWNET = 0x40000000
HERE, THERE = "198.18.77.1", "198.18.77.2"  # RFC 2544: for tests, routed nowhere


class Cable:
    def __init__(self, name: str) -> None:
        self.name, self.near, self.far = name, f"{name}a", f"{name}b"

    def socket(self) -> socket.socket:
        """A TCP socket of the other machine. What is made in a thread that is there stays there."""
        made: list[socket.socket] = []

        def make() -> None:
            with Path(f"/run/netns/{self.name}").open() as there:
                if ctypes.CDLL(None, use_errno=True).setns(there.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.socket())

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made[0]

    def pull(self) -> None:
        ip("-n", self.name, "link", "set", self.far, "down")

    def plug_in(self) -> None:
        ip("-n", self.name, "link", "set", self.far, "up")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


@contextlib.contextmanager
def laid() -> Iterator[Cable | None]:
    """A cable from HERE to THERE, or None where this process may not lay one."""
    cable = Cable(f"fc{os.getpid()}")
    try:
        if shutil.which("ip") is None:
            raise FileNotFoundError("ip")
        ip("netns", "add", cable.name)
        ip("link", "add", cable.near, "type", "veth", "peer", "name", cable.far, "netns", cable.name)
        ip("address", "add", f"{HERE}/30", "dev", cable.near)
        ip("link", "set", cable.near, "up")
        ip("-n", cable.name, "address", "add", f"{THERE}/30", "dev", cable.far)
        cable.plug_in()
    except (OSError, subprocess.CalledProcessError):
        yield None
    else:
        yield cable
    finally:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            ip("netns", "delete", cable.name)  # and with it both ends
