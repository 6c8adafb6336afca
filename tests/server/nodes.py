"""Two nodes, each a gunicorn master with two workers, behind nginx with deploy/nginx.conf and an upstream of two, which
asks them in turn: no visitor stays where they were.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import psutil

from tests.conftest import Server, asking
from tests.server.badmodel import Running
from tests.server.checks import FAULTY
from tests.server.client import Client
from tests.server.history import History, Visitor
from tests.server.proxies import deployed_nginx
from tests.server.test_kill import KEPT

HOSTS = ("here", "there")
"""The nodes' machines: what only processes of one machine can tell each other, these cannot."""


def settings(model: Running, **more: object) -> dict[str, object]:
    return {**asking(model), "SECRET_KEY": "of both", "FLASKCHAT_DRAIN": "0.5", **more}


def kill(history: History, node: Server) -> None:
    """`kill -9` of all of it: workers first, so that the master starts none in their place."""
    master = psutil.Process(node.process.pid)
    master.suspend()
    for process in (*master.children(recursive=True), master):
        history.fault("kill -9", process.pid)
        process.kill()
    node.process.wait()


class Moving(Client):
    """Asks another node with every connection."""

    def __init__(self, ports: list[int], first: int, timeout: float) -> None:
        super().__init__(ports[first % len(ports)], timeout=timeout)
        self._ports = itertools.cycle([*ports[first % len(ports) :], *ports[: first % len(ports)]])

    def connect(self) -> HTTPConnection:
        self.port = next(self._ports)
        return super().connect()


class Nodes:
    """:param front: the proxy's port; the first node's stands in where there is none."""

    def __init__(self, one: Server, other: Server, front: int) -> None:
        self.one, self.other, self.front = one, other, front
        self.both = (one, other)

    def client(self, node: Server | None = None, like: Client | None = None) -> Client:
        """:param node: past the proxy.
        :param like: whose cookie it has.
        """
        made = (node or self.one).client()
        made.port = self.front if node is None else node.port
        made.cookie = "" if like is None else like.cookie
        return made

    def visitor(self, history: History, node: Server, like: Visitor) -> Visitor:
        """The same owner at that node."""
        return history.visitor(like.owner, self.client(node, like.client))


@contextlib.contextmanager
def starting(serve: Callable[..., Server], model: Running, folder: Path) -> Iterator[Callable[..., Nodes]]:
    """Starts two nodes and a proxy of a test's own, with more settings."""
    with contextlib.ExitStack() as stack:

        def begin(**more: object) -> Nodes:
            made = []
            for host in HOSTS:
                own = folder / f"tmp-{host}"  # two machines share no folder
                own.mkdir()
                values = settings(model, TEST_HOST=host, TMPDIR=own, **more)
                made.append(serve(values, app=FAULTY, args=KEPT))
            return Nodes(*made, stack.enter_context(deployed_nginx(folder, *(server.port for server in made))))

        yield begin
