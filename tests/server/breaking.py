"""The test application with shorter patience, and Python models that break a worker: `tests.server.breaking:app`."""

import os
import time
from collections.abc import Iterator

from gevent import monkey

from flaskchat import Request, runs
from tests.server.faulty import app, chat

__all__ = ["app"]

# A log that cannot be used is given up sooner, where a test is not about how soon.
runs.GIVE_UP = float(os.environ.get("TEST_GIVE_UP", runs.GIVE_UP))


class RateLimitError(Exception):
    """What a vendor's client library raises: its words hold the key and the answer's body."""

    def __init__(self) -> None:
        super().__init__("Error code: 429 - {'error': {'message': 'quota of key sk-secret-123 exceeded'}}")
        self.status_code = 429


class ClientLibrary:
    """As vendors' libraries are: a stream that is closed with the block, and an exception in the middle of it."""

    def __enter__(self) -> Iterator[str]:
        return self._pieces()

    def __exit__(self, *_: object) -> None:
        pass

    def _pieces(self) -> Iterator[str]:
        yield "From "
        yield "afar "
        time.sleep(0.05)
        raise RateLimitError


@chat.model("library")
def library(request: Request) -> Iterator[str]:
    with ClientLibrary() as pieces:
        yield from pieces


@chat.model("holds")
def holds(request: Request) -> Iterator[str]:
    """Waits in C for so many seconds, as a library does that knows nothing of gevent."""
    yield "Before "
    monkey.get_original("time", "sleep")(float(request.text))
    yield "after"


@chat.model("spins")
def spins(request: Request) -> Iterator[str]:
    """Lets nobody else run any more, ever."""
    yield "Before "
    time.sleep(0.3)
    while True:
        pass
